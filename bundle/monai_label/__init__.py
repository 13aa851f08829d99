"""MONAI Label tried on the bundle: its environment, and a check of a server with the model."""
