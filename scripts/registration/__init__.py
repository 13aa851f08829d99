"""Registration by optimisation: pairs of images, and cohorts to their mean."""
