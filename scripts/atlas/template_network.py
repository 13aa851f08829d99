"""A network that registers subjects to any template, without a training for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from scripts.atlas.initial import open_initial
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import PublishedNetwork, network_of
from scripts.cohort.density import (
    CleaningRule,
    check_density,
    clean_density,
    density_divisor,
    load_density,
)
from scripts.cohort.usual_densities import UsualDensities
from scripts.errors import CheckpointError, ConfigurationError
from scripts.networks.described import FORMAT
from scripts.runtime.input_files import read_json
from scripts.runtime.storage import file_hash
from scripts.runtime.watched_files import changed
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.grid import CropBox

__all__ = ["DEMO_TEMPLATE", "template_network"]

logger = logging.getLogger(__name__)

DEMO_TEMPLATE = Path(__file__).resolve().parents[2] / "bundle/weights/demo/atlas_mean.nii.gz"
"""The demo cohort's template, which is part of the bundle."""
_LONGEST = 50_000_000  # bytes of an atlas.json
# Settings used instead of a training's, unless the job or the atlas beside the map sets others.
# Maps of other programs differ in scale, so all maps are divided by their maximum, and log_offset
# is computed from the map's values.
_FOREIGN: dict[str, Any] = {
    "dtype": "bfloat16",
    "cohort": {"normalisation": "max"},
    "loss": {"smoothness_weight": 0.7},
}


def template_network(
    path: str | Path, asked: LearnedAtlasConfig, whole_grid: bool = False
) -> AtlasNetwork:
    """The shipped network around one map, which is its template.

    A map of a published atlas (``atlas_mean.nii.gz`` with its ``atlas.json`` beside it) brings the
    normalisation and the offset that it was made with. Any other is divided by its maximum, as the
    subjects' maps then are, unless the job asks for another normalisation; its ``log_offset`` and
    ``presence_value`` follow from its values as in `scripts.cohort.first_look`.

    Args:
        path: NIfTI file of a density or an image of one channel, not negative.
        asked: the settings of the job.
        whole_grid: the network works on the map's whole grid, not in the box of what it shows.

    Raises:
        CohortError: the map can't be used, or changes while it is read.
        ConfigurationError: the settings ask for what one map can't be a template of.
        CheckpointError: the atlas beside the map can't be read, or the shipped network can't.
    """
    file = Path(path)
    loaded = load_density(file)
    clean_density(file, loaded.data, CleaningRule())  # as a template, a map must be clean
    check_density(file, loaded.data)
    ours = file.name == "atlas_mean.nii.gz" and (file.parent / "atlas.json").is_file()
    given = asked.model_dump(mode="json", exclude_unset=True)
    values = _merged(_FOREIGN, _of_atlas(file) if ours else {}, given)
    if file_hash(file) != loaded.sha256:  # another atlas was published, whose description was read
        raise changed(file)
    model = values.setdefault("model", {})
    model["initial"] = model.get("initial") or "shipped"
    settings = LearnedAtlasConfig.load(values)
    _check(settings)
    method = settings.cohort.normalisation
    divisor = 1.0
    if not ours:
        if method != "waytotal":  # a single map has no waytotal: it is already a density
            key = settings.cohort.key("normalisation")
            divisor = density_divisor(method, file, loaded.data, key)
        settings = LearnedAtlasConfig.load(_merged(_usual(loaded.data / divisor), values))
    grid = loaded.grid
    margin = max(grid.shape) if whole_grid else settings.cohort.margin
    crop = CropBox.around(loaded.data > 0).grown(margin, grid.shape)
    density = crop.crop(loaded.data / divisor).astype(np.float32)[None, None]
    template = np.log1p(density / settings.loss.log_offset)
    initial = open_initial(settings, len(grid.shape))
    described = settings.as_dict()
    described["model"]["passes"] = initial.passes
    description: dict[str, Any] = {
        "format": FORMAT,
        "cohort": f"template {loaded.sha256}",
        "template_sha256": loaded.sha256,
        "trained_on": [],
        "grid": {
            **grid.as_dict(),
            "sform_code": int(grid.header["sform_code"]),
            "qform_code": int(grid.header["qform_code"]),
        },
        "crop": {"start": list(crop.start), "stop": list(crop.stop)},
        "normalisation": method,
        "tracts": [],
        "settings": described,
        "initial": dict(initial.described or {}),
    }
    network = network_of(template, description, PublishedNetwork, initial.passes)
    initial.load_into(network.unet)
    logger.info(
        "template %s, maps normalised by %s, log_offset %g, registered by the network %s, which "
        "was trained on generated pairs alone",
        file,
        method,
        settings.loss.log_offset,
        description["initial"].get("name"),
    )
    return network.eval()


def _check(settings: LearnedAtlasConfig) -> None:
    model = settings.model
    for name, wanted in (("channels", 1), ("n_templates", 1), ("covariates", [])):
        value = getattr(model, name)
        if value != wanted:
            raise ConfigurationError(
                f"{model.key(name)} = {value!r}: must be {wanted!r} with a template that is one "
                "map; train an atlas for anything else"
            )


def _usual(density: np.ndarray) -> dict[str, Any]:
    """Settings of a foreign map, as `build` guesses those of a cohort."""
    usual = UsualDensities.of([density])
    return {
        "presence_value": usual.presence_value,
        "loss": {"log_offset": usual.log_offset},
    }


def _of_atlas(file: Path) -> dict[str, Any]:
    """What the published atlas that a map belongs to was made with."""
    about = file.parent / "atlas.json"
    try:
        description = read_json(about, _LONGEST)
        offset, method = description["log_offset"], description["normalisation"]
        presence = description["presence_value"]
        smoothness = description.get("settings", {}).get("loss", {}).get("smoothness_weight", 0.7)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{about}: doesn't describe the atlas that {file.name} belongs to ({error}); publish "
            "the atlas again, or copy the map elsewhere to use it as any other map"
        ) from error
    return {
        "presence_value": presence,
        "cohort": {"normalisation": method},
        "loss": {"log_offset": offset, "smoothness_weight": smoothness},
    }


def _merged(*blocks: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, a later block's over an earlier one's."""
    result: dict[str, Any] = {}
    for block in blocks:
        for key, value in block.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = _merged(result[key], value) if both else value
    return result
