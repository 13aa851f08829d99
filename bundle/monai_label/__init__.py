"""Tests the bundle under MONAI Label: its environment, and a check of a server with the model."""
