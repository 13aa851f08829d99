"""What an atlas is for: its maps in a patient's space, similarity of tracts, warped images."""
