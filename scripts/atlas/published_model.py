"""The model of a published atlas: its file, geometry, settings and covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

from scripts.atlas.network import AtlasNetwork
from scripts.cohort import CovariateCoding
from scripts.errors import CheckpointError
from scripts.networks.described import description_in, load_described
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.grid import CropBox, Grid

__all__ = [
    "PublishedNetwork",
    "published_coding",
    "published_geometry",
    "published_network",
    "published_settings",
]


_ONE_PASS = [1]
"""Of models that say nothing of passes: they were made before there were several."""

# Settings that made a model what it is: no later job can change them (but for model.passes).
_MODELS_OWN = (
    "training_space", "model.", "loss.", "optimizer.", "cohort.normalisation", "cohort.tracts",
    "refine.rounds", "refine.iterations", "refine.network_",
)  # fmt: skip


class PublishedNetwork(AtlasNetwork):
    """The network of a published model, which becomes another one that is loaded into it.

    Servers keep a network and load ``model.pt`` again when it was trained anew: template, box and
    what it says of itself then change together with the weights. Device, mode and hooks stay.
    """

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Become the model of these weights, or stay as it is if they don't fit what they say."""
        description = description_in(state_dict)
        other: AtlasNetwork = self
        if description and description != self.description:
            other = _published(state_dict["template"].cpu(), description)
        # Not `AtlasNetwork`'s: what doesn't fit its own description is damaged, not another cohort.
        found = nn.Module.load_state_dict(other, state_dict, strict=strict, assign=assign)
        if other is not self:
            self._become(other.to(self.template.device).train(self.training))
        return found

    def _become(self, other: AtlasNetwork) -> None:
        """Hold what another network is made of: its modules, tensors and plain attributes."""
        for held in (self._modules, self._parameters, self._buffers):
            for name in list(held):
                delattr(self, name)
        for name, module in other.named_children():
            self.add_module(name, module)
        for name, parameter in other.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in other.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, value in vars(other).items():
            if not name.startswith("_"):  # what starts so is `nn.Module`'s own
                setattr(self, name, value)


def network_of(
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
    return network_of(template, description, PublishedNetwork, passes)


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

    def build(description: dict[str, Any], weights: dict[str, torch.Tensor]) -> AtlasNetwork:
        return _published(weights["template"], description)

    return load_described(path, "atlas model", "template", build)


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
