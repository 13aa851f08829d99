"""Propagates labels from a segmented atlas of streamlines by unbalanced optimal transport.

Feydy, Roussillon, Trouvé, Gori, Fast and scalable optimal transport for brain tractograms,
MICCAI 2019 (arXiv 2107.02010).
"""
