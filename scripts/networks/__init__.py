"""Layers and models."""

from scripts.networks.atlas_network import AtlasNetwork, density_of, log_density_of
from scripts.networks.building import (
    build_network,
    initial_templates,
    published_coding,
    published_geometry,
    published_network,
    published_settings,
)
from scripts.networks.grids import enlarge
from scripts.networks.integration import VelocityIntegration, invert_displacement
from scripts.networks.precision import autocast, open_device
from scripts.networks.unet import RegistrationUNet
from scripts.networks.warp import Warp, warp

__all__ = [
    "AtlasNetwork",
    "RegistrationUNet",
    "VelocityIntegration",
    "Warp",
    "autocast",
    "build_network",
    "density_of",
    "enlarge",
    "initial_templates",
    "invert_displacement",
    "log_density_of",
    "open_device",
    "published_coding",
    "published_geometry",
    "published_network",
    "published_settings",
    "warp",
]
