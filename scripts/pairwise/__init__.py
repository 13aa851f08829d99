"""Code shared by the networks for pairs of images: data, training and measurement."""
