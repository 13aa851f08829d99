"""Affine alignment: families of transforms, resampling, estimation, alignment of cohorts.

Nothing is imported here, so that the settings of this room stay free of torch.

Every matrix is 4x4 in world millimetres (RAS) and maps POINTS of the grid that is wanted (the
fixed image's) to points of the image that is resampled (the moving one): the direction in which
images are read, and in which ITK stores transforms.
"""
