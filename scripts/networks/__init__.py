"""Layers and their numerics."""

from scripts.networks.grids import enlarge
from scripts.networks.integration import VelocityIntegration, invert_displacement
from scripts.networks.precision import autocast, open_device
from scripts.networks.unet import RegistrationUNet

__all__ = [
    "RegistrationUNet",
    "VelocityIntegration",
    "autocast",
    "enlarge",
    "invert_displacement",
    "open_device",
]
