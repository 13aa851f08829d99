"""Atlases that need no network: the plain average and the Wasserstein barycentre."""
