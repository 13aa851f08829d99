"""Maps, fields, Jacobians, publishing."""

from scripts.atlas.fields import field_names, on_full_grid, read_field, write_field
from scripts.atlas.jacobian import (
    jacobian_determinant,
    jacobian_summary,
    smallest_corner_determinant,
)
from scripts.atlas.maps import write_map
from scripts.atlas.publishing import AtlasPublisher, weights_identity
from scripts.atlas.refinement import refine_velocity
from scripts.atlas.registration import (
    Registration,
    estimate_velocity,
    fields_of,
    polished_velocity,
)
from scripts.atlas.statistics import DensityStatistics
from scripts.atlas.unfolding import unfolded_velocity
from scripts.atlas.verification import Verification, verify_atlas

__all__ = [
    "AtlasPublisher",
    "DensityStatistics",
    "Registration",
    "Verification",
    "estimate_velocity",
    "field_names",
    "fields_of",
    "jacobian_determinant",
    "jacobian_summary",
    "on_full_grid",
    "polished_velocity",
    "read_field",
    "refine_velocity",
    "smallest_corner_determinant",
    "unfolded_velocity",
    "verify_atlas",
    "weights_identity",
    "write_field",
    "write_map",
]
