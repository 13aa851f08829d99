"""Builds the network that learns a cohort's atlas, and initialises its templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from scripts.atlas.components import atlas_loss
from scripts.atlas.initial import InitialNetwork, open_initial
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import carried_transforms, changed_parts, network_of
from scripts.cohort import Cohort
from scripts.data import LogDensityd
from scripts.errors import CheckpointError, ConfigurationError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.described import FORMAT
from scripts.networks.grids import averaged
from scripts.networks.integration import VelocityIntegration
from scripts.networks.smoothing import GaussianSmoothing
from scripts.networks.unet import RegistrationUNet
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.warp import Warp

__all__ = ["build_network", "initial_templates"]

TRAINED_ON_DIGITS = 16
"""Leading digits of each training map's SHA-256 that a model records to recognise the map."""
_COARSE = 12  # voxels along the longest axis of the coarse images for clustering subjects
_REACH = 5  # voxels by which a sharpened template may exceed the cohort's support


def initial_templates(
    mean_density: np.ndarray,
    n_templates: int,
    dataset: Iterable[dict[str, Any]] = (),
    log_offset: float = 1e-3,
    seed: int = 0,
) -> np.ndarray:
    """Initial templates: the cohort's mean, or the means of K clusters of subjects.

    K equal templates would stay equal. The clusters come from k-means on coarse log densities,
    which shifts of a few voxels hardly change.

    Args:
        mean_density: ``(C, *shape)``, mean of the cohort.
        n_templates: K.
        dataset: log densities (``image``); only read for K > 1.
        log_offset: see `log_density_of`.
        seed: of the clustering.

    Returns:
        Log densities ``(K, C, *shape)`` float32.
    """
    if n_templates == 1:
        return np.log1p(mean_density[None] / log_offset).astype(np.float32)
    pictures = np.stack([_coarse(torch.as_tensor(item["image"])) for item in dataset])
    if len(pictures) < n_templates:
        raise CheckpointError(f"{n_templates} templates need at least as many subjects")
    labels = _clusters(pictures, n_templates, seed)
    total = np.zeros((n_templates, *mean_density.shape))
    for label, item in zip(labels, dataset, strict=True):
        total[label] += np.expm1(np.asarray(item["image"], dtype=np.float64))
    count = np.bincount(labels, minlength=n_templates).reshape(-1, *([1] * mean_density.ndim))
    return np.log1p(total / np.maximum(count, 1)).astype(np.float32)


def _clusters(pictures: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The best of ten k-means runs without an empty cluster."""
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
    cohort: Cohort,
    settings: LearnedAtlasConfig,
    dataset: Any = (),
    unet: RegistrationUNet | None = None,
    integration: VelocityIntegration | None = None,
    smoothing: GaussianSmoothing | None = None,
    warp: Warp | None = None,
    loss: AtlasLoss | None = None,
    overrides: Mapping[str, Any] | None = None,
    initial: InitialNetwork | None = None,
) -> AtlasNetwork:
    """The network that learns a cohort's atlas, with initialised templates.

    The network describes itself in its checkpoint: whatever its parts, the loss and the transforms
    have beyond the settings is recorded there, so that a later job needs only the model.

    Args:
        cohort: grid, box and mean.
        settings: of the model.
        dataset: log densities of the cohort, a MONAI dataset; values are only read for K > 1.
        unet: see `AtlasNetwork`; None: all four parts according to the settings.
        integration: see ``unet``.
        smoothing: see ``unet``.
        warp: see ``unet``.
        loss: of the training; None: according to the settings.
        overrides: see `config_overrides`.
        initial: what the network starts from; None: as the settings say.

    Raises:
        ConfigurationError: a part can't be recorded in a model, or parts contradict each other.
    """
    if initial is None:
        initial = open_initial(settings, len(cohort.crop.shape))
    transforms = getattr(getattr(dataset, "transform", None), "transforms", ())
    _check_offset(transforms, settings)
    torch.manual_seed(settings.optimizer.seed)
    template = initial_templates(
        cohort.mean_density,
        settings.model.n_templates,
        dataset,
        settings.loss.log_offset,
        settings.optimizer.seed,
    )
    values = settings.as_dict()
    values["model"]["passes"] = initial.passes
    description: dict[str, Any] = {
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
        # The number of the device isn't part of a model, and differs between processes.
        "settings": {**values, "device": torch.device(settings.device).type},
    }
    if initial.described is not None:
        description["initial"] = dict(initial.described)
    if cohort.coding is not None:
        description["covariates"] = cohort.coding.as_list()
    parts: dict[str, Any] | None = None
    if unet is not None:
        parts = {
            "unet": unet,
            "integration": integration,
            "smoothing": smoothing,
            "warp": warp,
        }
        changed = changed_parts(template, description, parts)
        if changed:
            description["parts"] = changed
    if loss is not None:
        changed = _changed_loss(loss, atlas_loss(cohort.grid.spacing, settings))
        if changed:
            description["loss"] = changed
    if overrides:
        description["overrides"] = dict(overrides)
        carried, left = carried_transforms(overrides, transforms)
        description |= {"transforms": carried, "not_carried": left}
    passes = (1,) if initial.weights is None else initial.passes
    network = network_of(template, description, passes=passes, parts=parts)
    initial.load_into(network.unet)
    present = torch.from_numpy(cohort.mean_density > 0).float()[None]
    pool = F.max_pool3d if network.spatial_dims == 3 else F.max_pool2d
    network.set_support(pool(present, 2 * _REACH + 1, stride=1, padding=_REACH))
    return network


def _check_offset(transforms: Sequence[Any], settings: LearnedAtlasConfig) -> None:
    """Refuse log densities with another offset than the template's."""
    for index, one in enumerate(transforms):
        if isinstance(one, LogDensityd) and one.log_offset != settings.loss.log_offset:
            raise ConfigurationError(
                f"train#preprocessing#transforms#{index}#log_offset = {one.log_offset!r}: must be "
                f"{settings.loss.log_offset!r}, that of the template; change both with "
                "--learned_atlas#loss#log_offset"
            )


def _changed_loss(loss: AtlasLoss, alone: AtlasLoss) -> dict[str, Any]:
    """The parts of a loss that the settings alone don't determine."""
    result: dict[str, Any] = {}
    theirs = alone.arguments
    for name, value in loss.arguments.items():
        if isinstance(value, dict):
            value = {key: one for key, one in value.items() if one != theirs[name].get(key)}
            if value:
                result[name] = value
        elif value != theirs[name]:
            result[name] = value
    return result
