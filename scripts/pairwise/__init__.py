"""What the networks for pairs of images share: their data, training and measurement."""
