"""How good an atlas is: on subjects whom its training didn't see."""
