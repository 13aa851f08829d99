"""The model of a published atlas: its file, geometry, settings and covariates."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

from scripts.atlas.model_rules import require_usable
from scripts.atlas.network import AtlasNetwork
from scripts.cohort import CovariateCoding
from scripts.errors import CheckpointError, ConfigurationError
from scripts.networks.described import description_in, load_described
from scripts.networks.integration import VelocityIntegration
from scripts.networks.pair_inputs import pair_inputs
from scripts.networks.smoothing import GaussianSmoothing
from scripts.networks.unet import RegistrationUNet
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.warp import Warp

__all__ = [
    "PublishedNetwork",
    "published_coding",
    "published_geometry",
    "published_network",
    "published_settings",
    "published_transforms",
]

logger = logging.getLogger(__name__)

_ONE_PASS = [1]
"""Passes of models that don't record them: they are older than the setting."""

# Settings that define a model: no later job can change them (except model.passes).
_MODELS_OWN = (
    "training_space", "model.", "loss.", "optimizer.", "cohort.normalisation", "cohort.tracts",
    "refine.rounds", "refine.iterations", "refine.network_",
)  # fmt: skip


class PublishedNetwork(AtlasNetwork):
    """The network of a published model; loading another model into it replaces it completely.

    Servers keep a network and load ``model.pt`` again when it has been trained again. Template, box
    and description then change together with the weights. Device, mode and hooks stay.
    """

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Replace the network by that of these weights; no change if they don't fit."""
        description = description_in(state_dict)
        other: AtlasNetwork = self
        if description and description != self.description:
            other = _published(state_dict, description)
        # Not `AtlasNetwork`'s method: weights that don't fit their description are damaged.
        result = nn.Module.load_state_dict(other, state_dict, strict=strict, assign=assign)
        if other is not self:
            self._become(other.to(self.template.device).train(self.training))
        return result

    def _become(self, other: AtlasNetwork) -> None:
        """Take over the modules, tensors and plain attributes of another network."""
        for held in (self._modules, self._parameters, self._buffers):
            for name in list(held):
                delattr(self, name)
        for name, module in other.named_children():
            vars(self).pop(name, None)  # None where this network had no such module
            self.add_module(name, module)
        for name, parameter in other.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in other.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, value in vars(other).items():
            if not name.startswith("_"):  # these belong to `nn.Module`
                setattr(self, name, value)


_PARTS: dict[str, type[torch.nn.Module]] = {
    "unet": RegistrationUNet,
    "integration": VelocityIntegration,
    "smoothing": GaussianSmoothing,
    "warp": Warp,
}
"""A network's parts, as ``network_def`` of ``configs/train.yaml`` names them."""


def part_arguments(
    template: np.ndarray | torch.Tensor, description: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What settings and initial network alone make of each part.

    The ``arguments`` of a part describe it.

    Args:
        template: ``(K, C, *shape)``.
        description: of a model; its ``initial`` network, where it had one, goes before the
            settings.
    """
    model = {**description["settings"]["model"], **description.get("initial", {})}
    factor, spatial_dims = model["field_resolution"], template.ndim - 2
    inputs, shown = model.get("inputs", "images"), 2 * template.shape[1]
    if inputs != "images":
        shown = pair_inputs(inputs).channels(spatial_dims)
    return {
        "unet": {
            "spatial_dims": spatial_dims,
            "in_channels": shown,
            "enc_features": list(model["enc_features"]),
            "dec_features": list(model["dec_features"]),
            "factor": factor,
            "checkpointing": model["checkpointing"],
        },
        "integration": {"int_steps": model["int_steps"], "factor": factor},
        "smoothing": {"sigma": model["velocity_smoothing"] / factor},
        "warp": {},
    }


def changed_parts(
    template: np.ndarray | torch.Tensor,
    description: Mapping[str, Any],
    parts: Mapping[str, torch.nn.Module],
) -> dict[str, dict[str, Any]]:
    """Arguments of ready parts that the description lacks: settings and initial network alone.

    Raises:
        ConfigurationError: a part has another class, which a model file can't contain, or doesn't
            match the others.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, alone in part_arguments(template, description).items():
        part, kind = parts[name], _PARTS[name]
        if type(part) is not kind:
            raise ConfigurationError(
                f"network_def#{name} is a {type(part).__name__}: must be a {kind.__name__}; only "
                "its arguments can be overridden, because model.pt has to record what it is made of"
            )
        given: dict[str, Any] = part.arguments  # type: ignore[assignment]
        alone = kind(**alone).arguments if name != "unet" else alone  # type: ignore[assignment]
        for key, value in given.items():
            if value == alone[key]:
                continue
            if key in ("factor", "spatial_dims", "in_channels"):
                raise ConfigurationError(
                    f"network_def#{name}#{key} = {value!r}: must be {alone[key]!r}, which follows "
                    "from the cohort, learned_atlas#model#channels and "
                    "learned_atlas#model#field_resolution"
                )
            result.setdefault(name, {})[key] = value
    return result


def network_of(
    template: np.ndarray | torch.Tensor,
    description: dict[str, Any],
    kind: type[AtlasNetwork] = AtlasNetwork,
    passes: Sequence[int] = (1,),
    parts: Mapping[str, Any] | None = None,
) -> AtlasNetwork:
    """The network of a description.

    Args:
        template: ``(K, C, *shape)`` log density.
        description: see `build_network`.
        kind: class of the network.
        passes: see `AtlasNetwork`.
        parts: U-Net, integration, smoothing and warp, if they already exist.
    """
    model = description["settings"]["model"]
    coding = _coding(description)
    if parts is None:
        recorded = description.get("parts", {})
        arguments = part_arguments(template, description)
        parts = {
            name: part(**{**arguments[name], **recorded.get(name, {})})
            for name, part in _PARTS.items()
        }
    return kind(
        template,
        log_offset=description["settings"]["loss"]["log_offset"],
        field_resolution=model["field_resolution"],
        description=description,
        covariates=0 if coding is None else len(coding.columns),
        passes=passes,
        inputs=description.get("initial", {}).get("inputs", "images"),
        **parts,
    )


def _published(weights: Mapping[str, Any], description: dict[str, Any]) -> AtlasNetwork:
    require_usable(description, weights)
    passes = _trained_passes(description)
    template = weights["template"].cpu()
    return network_of(template, description, PublishedNetwork, passes)


def _trained_passes(description: Mapping[str, Any]) -> list[int]:
    """The passes of a finished network: only the last epochs teach it more than one.

    An initial network has its passes from the start.
    """
    settings = description["settings"]
    if "initial" in description:
        return description["initial"]["passes"]
    if settings["refine"].get("network_epochs", 0) == 0:
        return _ONE_PASS
    return settings["model"].get("passes", _ONE_PASS)


def _coding(description: dict[str, Any]) -> CovariateCoding | None:
    recorded = description.get("covariates")
    return None if recorded is None else CovariateCoding.from_list(recorded)


def published_coding(network: AtlasNetwork) -> CovariateCoding | None:
    """The coding of the covariates of a conditional template; None for an unconditional one."""
    return _coding(network.description)


def published_network(path: str | Path) -> AtlasNetwork:
    """Load the network of a published ``model.pt``, built from the description in the file.

    Raises:
        CheckpointError: the file is missing, isn't a model of this bundle, or contains more than
            tensors (code in a pickle is never run).
    """
    if not Path(path).exists():
        raise CheckpointError(f"{path}: no such model; train one first, or name it with --ckpt_dir")

    def build(description: dict[str, Any], weights: dict[str, torch.Tensor]) -> AtlasNetwork:
        return _published(weights, description)

    return load_described(path, "atlas model", "template", build)


def published_geometry(network: AtlasNetwork) -> tuple[Grid, CropBox]:
    """The grid and box that a published network works in."""
    recorded = network.description
    affine = np.array(recorded["grid"]["affine"])
    header = nib.Nifti1Header()
    header.set_data_shape(recorded["grid"]["shape"])
    header.set_sform(affine, code=recorded["grid"]["sform_code"])
    header.set_qform(affine, code=recorded["grid"]["qform_code"])
    header.set_xyzt_units("mm")
    grid = Grid(tuple(recorded["grid"]["shape"]), affine, header)
    crop = CropBox(tuple(recorded["crop"]["start"]), tuple(recorded["crop"]["stop"]))
    return grid, crop


def published_settings(network: AtlasNetwork, asked: LearnedAtlasConfig) -> LearnedAtlasConfig:
    """The settings of a model, updated with those that a later job gives.

    Settings that the job leaves out are those of the training: where the maps are, what counts as
    present, which maps are emitted. Only the device always comes from the job.

    Args:
        network: as published.
        asked: the validated block of the job; only the settings that it names are used.

    Raises:
        CheckpointError: a setting contradicts the model; one line per setting.
        ConfigurationError: the settings contradict each other.
    """
    settings = network.description["settings"]
    settings["model"].setdefault("passes", _ONE_PASS)
    # Channels keep the tracts that they were learned for, even if the dataset named them.
    settings["cohort"]["tracts"] = network.description["tracts"]
    kept = settings["cohort"].pop("density_dir", None)
    if kept is not None and asked.cohort.density_dir is None:
        # The job would write there, and the model may be a stranger's.
        logger.warning(
            "the model's training kept counted maps in %s: they are kept in the dataset folder, "
            "unless --learned_atlas#cohort#density_dir names one",
            kept,
        )
    contradictions = []
    for path, value in asked.by_path(given_only=True).items():
        *sections, key = path.split(".")
        place = settings
        for section in sections:
            place = place[section]
        trained = place.get(key, value)  # older models have fewer settings
        if path.startswith(_MODELS_OWN) and path != "model.passes" and trained != value:
            contradictions.append(
                f"learned_atlas.{path} = {value!r}: the model was trained with {trained!r}, "
                "which only another training can change"
            )
        place[key] = value
    if contradictions:
        raise CheckpointError(*contradictions)
    settings["device"] = asked.device
    return LearnedAtlasConfig.load(settings)


# The reader is a name that would be imported; the others belong to the job.
_NOT_CARRIED = ("keys", "reader", "track_meta")


def carried_transforms(
    overrides: Mapping[str, Any], transforms: Sequence[Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Split overrides of a training's transforms into those that later jobs repeat, and the rest.

    Args:
        overrides: see `config_overrides`.
        transforms: those of the training, in order.

    Returns:
        Plain arguments by class, and the ids of everything else, which a model file can't contain:
        other classes, expressions.
    """
    plain: dict[str, dict[str, Any]] = {}
    left = []
    for id, value in overrides.items():
        if not id.startswith("train#preprocessing"):
            continue
        place = re.fullmatch(r"train#preprocessing#transforms#(\d+)#([a-z]\w*)", id)
        if place is None or place[2] in _NOT_CARRIED or not _is_plain(value):
            left.append(id)
        else:
            name = type(transforms[int(place[1])]).__name__
            plain.setdefault(name, {})[place[2]] = value
    return plain, left


def _is_plain(value: Any) -> bool:
    """Whether MONAI reads a value unchanged."""
    if isinstance(value, Mapping):
        return False
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not (isinstance(value, str) and value.startswith(("$", "@", "%")))


def published_transforms(network: AtlasNetwork) -> dict[str, dict[str, Any]]:
    """Arguments of the training's transforms that differ from the settings, by class."""
    recorded = network.description
    if recorded.get("not_carried"):
        logger.warning(
            "the model was trained with another %s, which a model file doesn't contain: give the "
            "same to this job's configuration to get the same densities",
            ", ".join(recorded["not_carried"]),
        )
    return {
        name: {key: value for key, value in arguments.items() if key not in _NOT_CARRIED}
        for name, arguments in recorded.get("transforms", {}).items()
    }
