"""Evaluation of an atlas on subjects that it wasn't trained on."""
