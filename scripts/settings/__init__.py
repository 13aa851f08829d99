"""The blocks of settings, one per file, validated without torch or monai.

The command line and the settings page read the table `BLOCKS`: a new block is one line.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scripts.settings.section import Section

__all__ = ["BLOCKS", "Block"]


class Block(NamedTuple):
    """A block of settings.

    Attributes:
        target: ``module:Class`` that validates it; imported when needed.
        configs: the shipped configurations with this block, the most typical one first.
    """

    target: str
    configs: tuple[str, ...]

    def schema(self) -> type[Section]:
        """The class that validates the block."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


BLOCKS = {
    "learned_atlas": Block(
        "scripts.settings.atlas:LearnedAtlasConfig",
        ("train", "export", "inference", "average", "barycentre", "tract_similarity", "evaluate"),
    ),
    "align": Block("scripts.settings.align:AlignConfig", ("align",)),
    "refine": Block("scripts.settings.refine:RefineConfig", ("refine",)),
    "warp": Block("scripts.settings.warp:WarpConfig", ("warp",)),
    "warp_streamlines": Block(
        "scripts.settings.warp_streamlines:WarpStreamlinesConfig", ("warp_streamlines",)
    ),
    "learned_affine": Block("scripts.settings.affine:LearnedAffineConfig", ("train_affine",)),
    "estimate_affine": Block(
        "scripts.settings.image_pairs:EstimateAffineConfig", ("estimate_affine",)
    ),
    "learned_elastic": Block("scripts.settings.elastic:LearnedElasticConfig", ("train_elastic",)),
    "register_elastic": Block(
        "scripts.settings.image_pairs:RegisterElasticConfig", ("register_elastic",)
    ),
    "make_pairs": Block("scripts.settings.make_pairs:MakePairsConfig", ("make_pairs",)),
    "train_fields": Block("scripts.settings.train_fields:TrainFieldsConfig", ("train_fields",)),
    "predict_fields": Block(
        "scripts.settings.predict_fields:PredictFieldsConfig", ("predict_fields",)
    ),
    "atlas_to_patient": Block(
        "scripts.settings.applications:AtlasToPatientConfig", ("atlas_to_patient",)
    ),
    "tract_similarity": Block(
        "scripts.settings.applications:TractSimilarityConfig", ("tract_similarity",)
    ),
    "tract_stats": Block("scripts.settings.tract_stats:TractStatsConfig", ("tract_stats",)),
    "barycentre": Block("scripts.settings.applications:BarycentreConfig", ("barycentre",)),
    "evaluate": Block("scripts.settings.evaluate:EvaluateConfig", ("evaluate",)),
    "label_transfer": Block(
        "scripts.settings.label_transfer:LabelTransferConfig", ("transfer_labels",)
    ),
    "register_stack": Block("scripts.settings.stack:RegisterStackConfig", ("register_stack",)),
    "apply_stack": Block("scripts.settings.stack:ApplyStackConfig", ("apply_stack",)),
}


def __getattr__(name: str) -> ModuleType:
    """Import a block when it is first used, as `scripts` does with its rooms."""
    qualified = f"{__name__}.{name}"
    if name.startswith("__") or importlib.util.find_spec(qualified) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(qualified)
