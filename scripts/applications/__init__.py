"""Uses of an atlas: its maps in a patient's space, similarity of tracts, warped images."""
