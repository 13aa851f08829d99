"""Networks for a cohort, and networks that were published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from scripts.cohort import Cohort, CovariateCoding, CropBox, Grid
from scripts.errors import CheckpointError
from scripts.networks.atlas_network import AtlasNetwork, description_in
from scripts.networks.checkpoint import load_checkpoint
from scripts.networks.grids import averaged
from scripts.settings import LearnedAtlasConfig

__all__ = [
    "PublishedNetwork",
    "build_network",
    "initial_templates",
    "published_coding",
    "published_geometry",
    "published_network",
    "published_settings",
]

FORMAT = 1
TRAINED_ON_DIGITS = 16
"""Leading digits of each training map's SHA-256 that a model keeps, to know them again."""
_ONE_PASS = [1]
"""Of models that say nothing of passes: they were made before there were several."""
_COARSE = 12  # voxels along the longest axis of the pictures that subjects are clustered by
# Settings that made a model what it is: no later job can change them (but for model.passes).
_MODELS_OWN = (
    "training_space", "model.", "loss.", "optimizer.", "cohort.normalisation", "cohort.tracts",
    "refine.rounds", "refine.iterations", "refine.network_",
)  # fmt: skip
_REACH = 5  # voxels a sharpened template may lie beyond the cohort's support


def initial_templates(
    mean_density: np.ndarray,
    n_templates: int,
    dataset: Iterable[dict[str, Any]] = (),
    log_offset: float = 1e-3,
    seed: int = 0,
) -> np.ndarray:
    """Where the templates start: the cohort's mean, or the means of K clusters of subjects.

    K equal templates would stay equal. Clusters come from k-means over coarse pictures of the
    log densities, which moves of a few voxels hardly change.

    Args:
        mean_density: ``(C, *shape)``, the cohort's.
        n_templates: K.
        dataset: log densities, in any number (``image``); only read for K > 1.
        log_offset: see `log_density_of`.
        seed: of the clustering.

    Returns:
        log densities ``(K, C, *shape)`` float32.
    """
    if n_templates == 1:
        return np.log1p(mean_density[None] / log_offset).astype(np.float32)
    pictures = np.stack([_coarse(torch.as_tensor(item["image"])) for item in dataset])
    if len(pictures) < n_templates:
        raise CheckpointError(f"{n_templates} templates need as many subjects")
    labels = _clusters(pictures, n_templates, seed)
    total = np.zeros((n_templates, *mean_density.shape))
    for label, item in zip(labels, dataset, strict=True):
        total[label] += np.expm1(np.asarray(item["image"], dtype=np.float64))
    count = np.bincount(labels, minlength=n_templates).reshape(-1, *([1] * mean_density.ndim))
    return np.log1p(total / np.maximum(count, 1)).astype(np.float32)


def _clusters(pictures: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The best of ten k-means, none of whose clusters is empty."""
    best, best_spread = np.arange(len(pictures)) % count, np.inf
    for attempt in range(10):
        rng = np.random.default_rng([seed, attempt])
        centres, labels = kmeans2(pictures, count, minit="++", rng=rng)
        spread = float(((pictures - centres[labels]) ** 2).sum())
        if len(np.unique(labels)) == count and spread < best_spread:
            best, best_spread = labels, spread
    return best


def _coarse(image: torch.Tensor) -> np.ndarray:
    factor = max(1, max(image.shape[1:]) // _COARSE)
    return averaged(image[None].float(), factor).flatten().numpy().astype(np.float64)


def build_network(
    cohort: Cohort, settings: LearnedAtlasConfig, dataset: Sequence[dict[str, Any]] = ()
) -> AtlasNetwork:
    """The network that learns a cohort's atlas, with its templates at their start.

    Args:
        cohort: grid, box and mean.
        settings: of the model.
        dataset: log densities of the cohort, read for K > 1 alone.
    """
    torch.manual_seed(settings.optimizer.seed)
    template = initial_templates(
        cohort.mean_density,
        settings.model.n_templates,
        dataset,
        settings.loss.log_offset,
        settings.optimizer.seed,
    )
    description = {
        "format": FORMAT,
        "cohort": cohort.identity(),
        "trained_on": [
            one.sha256[:TRAINED_ON_DIGITS] for subject in cohort.subjects for one in subject.maps
        ],
        "grid": {
            **cohort.grid.as_dict(),
            "sform_code": int(cohort.grid.header["sform_code"]),
            "qform_code": int(cohort.grid.header["qform_code"]),
        },
        "crop": {"start": list(cohort.crop.start), "stop": list(cohort.crop.stop)},
        "normalisation": cohort.normalisation,
        "tracts": list(cohort.tracts),
        # Which of several devices it was is no part of a model, and differs between processes.
        "settings": {**settings.as_dict(), "device": torch.device(settings.device).type},
    }
    if cohort.coding is not None:
        description["covariates"] = cohort.coding.as_list()
    network = _network(template, description)
    present = torch.from_numpy(cohort.mean_density > 0).float()[None]
    pool = F.max_pool3d if network.spatial_dims == 3 else F.max_pool2d
    network.set_support(pool(present, 2 * _REACH + 1, stride=1, padding=_REACH))
    return network


class PublishedNetwork(AtlasNetwork):
    """The network of a published model, which becomes another one that is loaded into it.

    Servers keep a network and load ``model.pt`` again when it was trained anew: template, box and
    what it says of itself then change together with the weights.
    """

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Become the model of these weights."""
        description = description_in(state_dict)
        if description and description != self.description:
            other = _published(state_dict["template"].cpu(), description)
            other.train(self.training).to(self.template.device)
            self.__dict__ = other.__dict__
        # Not `AtlasNetwork`'s: what doesn't fit its own description is damaged, not another cohort.
        return torch.nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)


def _network(
    template: np.ndarray | torch.Tensor,
    description: dict[str, Any],
    kind: type[AtlasNetwork] = AtlasNetwork,
    passes: Sequence[int] = (1,),
) -> AtlasNetwork:
    model = description["settings"]["model"]
    coding = _coding(description)
    return kind(
        template,
        log_offset=description["settings"]["loss"]["log_offset"],
        enc_features=model["enc_features"],
        dec_features=model["dec_features"],
        int_steps=model["int_steps"],
        field_resolution=model["field_resolution"],
        velocity_smoothing=model["velocity_smoothing"],
        checkpointing=model["checkpointing"],
        description=description,
        covariates=0 if coding is None else len(coding.columns),
        passes=passes,
    )


def _published(template: torch.Tensor, description: dict[str, Any]) -> AtlasNetwork:
    passes = _trained_passes(description["settings"])
    return _network(template, description, PublishedNetwork, passes)


def _trained_passes(settings: Mapping[str, Any]) -> list[int]:
    """The passes of a finished network: only the last epochs teach it more than one."""
    if settings["refine"].get("network_epochs", 0) == 0:
        return _ONE_PASS
    return settings["model"].get("passes", _ONE_PASS)


def _coding(description: dict[str, Any]) -> CovariateCoding | None:
    said = description.get("covariates")
    return None if said is None else CovariateCoding.from_list(said)


def published_coding(network: AtlasNetwork) -> CovariateCoding | None:
    """How the covariates of a conditional template are coded; None for an unconditional one."""
    return _coding(network.description)


def published_network(path: str | Path) -> AtlasNetwork:
    """The network of a published ``model.pt``, built from what the file says of itself.

    Raises:
        CheckpointError: if the file is missing, isn't one of ours, or holds anything but
            tensors (code in a pickle is never run).
    """
    if not Path(path).exists():
        raise CheckpointError(f"{path}: no such model; train one first, or name it with --ckpt_dir")
    state = load_checkpoint(path)
    if not {"described", "template"} <= set(state):
        raise CheckpointError(f"{path}: not a model of this bundle")
    try:
        description = json.loads(bytes(state["described"].numpy()).decode())
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: written in format {description['format']!r}, this version reads {FORMAT}"
            )
        network = _published(state["template"], description)
        network.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: damaged or foreign: {reason}") from error
    return network.eval()


def published_geometry(network: AtlasNetwork) -> tuple[Grid, CropBox]:
    """The grid and box that a published network works in."""
    said = network.description
    affine = np.array(said["grid"]["affine"])
    header = nib.Nifti1Header()
    header.set_data_shape(said["grid"]["shape"])
    header.set_sform(affine, code=said["grid"]["sform_code"])
    header.set_qform(affine, code=said["grid"]["qform_code"])
    header.set_xyzt_units("mm")
    grid = Grid(tuple(said["grid"]["shape"]), affine, header)
    crop = CropBox(tuple(said["crop"]["start"]), tuple(said["crop"]["stop"]))
    return grid, crop


def published_settings(network: AtlasNetwork, asked: LearnedAtlasConfig) -> LearnedAtlasConfig:
    """The settings that a model was made with, and over them what a later job asks for.

    What the job's own block leaves out is as it was in the training: where the maps lie, what
    counts as present, which maps are emitted. Only the device is always the job's.

    Args:
        network: as published.
        asked: the validated block of the job; what it doesn't name isn't asked for.

    Raises:
        CheckpointError: where it contradicts the model; a line for each setting.
        ConfigurationError: where the settings don't go together.
    """
    settings = network.description["settings"]
    settings["model"].setdefault("passes", _ONE_PASS)
    # Channels keep the tracts that they were learned for, also where the dataset named them.
    settings["cohort"]["tracts"] = network.description["tracts"]
    contradictions = []
    for path, value in asked.by_path(given_only=True).items():
        *sections, key = path.split(".")
        place = settings
        for section in sections:
            place = place[section]
        trained = place.get(key, value)  # older models know fewer settings
        if path.startswith(_MODELS_OWN) and path != "model.passes" and trained != value:
            contradictions.append(
                f"learned_atlas.{path} = {value!r}: the model was trained with {trained!r}, "
                "which only another training can change"
            )
        place[key] = value
    if contradictions:
        raise CheckpointError("\n".join(contradictions))
    settings["device"] = asked.device
    return LearnedAtlasConfig.load(settings)
