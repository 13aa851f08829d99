"""Networks that estimate the affine transform of a pair of images: layers, training, inference.

Every matrix is 4x4 in world millimetres (RAS) and maps POINTS of the fixed image's grid to points
of the moving image, which is resampled. This is the direction in which images are sampled and in
which ITK stores transforms.
"""
