"""Networks that estimate the affine transform of a pair of images: layers, training, inference.

Every matrix is 4x4 in world millimetres (RAS) and maps POINTS of the grid that is wanted (the
fixed image's) to points of the image that is resampled (the moving one): the direction in which
images are read, and in which ITK stores transforms.
"""
