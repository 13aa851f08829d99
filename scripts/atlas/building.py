"""Networks for a cohort, and networks that were published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import network_of
from scripts.cohort import Cohort
from scripts.errors import CheckpointError
from scripts.networks.described import FORMAT
from scripts.networks.grids import averaged
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["build_network", "initial_templates"]

TRAINED_ON_DIGITS = 16
"""Leading digits of each training map's SHA-256 that a model keeps, to know them again."""
_COARSE = 12  # voxels along the longest axis of the pictures that subjects are clustered by
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
    network = network_of(template, description)
    present = torch.from_numpy(cohort.mean_density > 0).float()[None]
    pool = F.max_pool3d if network.spatial_dims == 3 else F.max_pool2d
    network.set_support(pool(present, 2 * _REACH + 1, stride=1, padding=_REACH))
    return network
