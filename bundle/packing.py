"""Writes the archive for the model zoo: the bundle with one published model."""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bundle.sharing import Shared, model_card, require_no_signs, shared_description
from scripts.atlas.network import AtlasNetwork
from scripts.atlas.published_model import published_network
from scripts.errors import StorageError, shown
from scripts.networks.checkpoint import checkpoint_bytes
from scripts.networks.described import DescribedNetwork
from scripts.runtime.input_files import FileError, check_file
from scripts.runtime.inside import inside
from scripts.runtime.ownership import NAME
from scripts.runtime.storage import write_whole
from scripts.runtime.watched_files import WatchedFiles

__all__ = [
    "LARGE",
    "Archive",
    "completed_metadata",
    "pack",
    "packed",
    "trained_config",
]

LARGE = 25_000_000
"""The zoo wants larger files (bytes) hosted elsewhere, with the address in large_files.yml."""

# Content of each folder, so that no other file in it is published.
_SHIPPED = {
    "bundle/weights": {".gz", ".json", ".pt"},
    "configs": {".conf", ".json", ".yaml"},
    "docs": {".md", ".png", ".svg", ".txt"},
    "scripts": {".js", ".py"},
}
_METADATA = "configs/metadata.json"
_TRAIN = "configs/train.yaml"
_CARD = "docs/model_card.md"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip file


@dataclass(frozen=True)
class Archive:
    """The content of an archive.

    Attributes:
        contents: bytes of each file by its path below the archive's root folder, sorted.
        left_out: what the model's description reveals of people and places, and the archive's
            doesn't.
    """

    contents: dict[str, bytes]
    left_out: tuple[str, ...]

    def table(self) -> str:
        """Size and name of each file, and what was left out, as lines of text."""
        lines = [f"{len(data):12,d}  {shown(name)}" for name, data in self.contents.items()]
        lines.append(f"{sum(map(len, self.contents.values())):12,d}  bytes in all")
        lines += [f"left out of models/model.pt: {shown(what)}" for what in self.left_out]
        return "\n".join(lines)


def packed(root: Path, ckpt_dir: Path, data_source: str | None = None) -> Archive:
    """The archive's files; nothing is written.

    The model's description is packed without entries about people and the trainer's machine, see
    `shared_description`; ``docs/model_card.md`` lists the rest.

    Args:
        root: of the bundle.
        ckpt_dir: contains ``model.pt``.
        data_source: description of the training data; None: from configs/metadata.json.

    Raises:
        CheckpointError: there is no ``model.pt``, it isn't one of this bundle's, or says what can
            be neither packed nor left out.
        CohortError: a link in the bundle leads out of it.
    """
    model = ckpt_dir / "model.pt"
    watched = WatchedFiles([model] if model.is_file() else [])
    network = published_network(model)
    if data_source is not None:
        require_no_signs("--data_source", data_source)
    shared = shared_description(model, network.description)
    metadata = json.loads((root / _METADATA).read_text(encoding="utf-8"))
    metadata = completed_metadata(metadata, network, data_source)
    contents = {name: inside(root, name).read_bytes() for name in _shipped(root)}
    train = contents[_TRAIN].decode()
    contents[_TRAIN] = trained_config(train, shared.description["settings"]).encode()
    contents[_METADATA] = (json.dumps(metadata, indent=4, ensure_ascii=False) + "\n").encode()
    contents[_CARD] = model_card(network, shared, metadata["data_source"]).encode()
    contents["models/model.pt"] = _model_bytes(model, network, shared)
    watched.check()  # it was read more than once
    return Archive(dict(sorted(contents.items())), shared.left_out)


def _model_bytes(model: Path, network: AtlasNetwork, shared: Shared) -> bytes:
    """The model's file, or one of the same weights whose description is the shared one."""
    if shared.description == network.description:
        return model.read_bytes()
    state = dict(network.state_dict())
    state["described"] = DescribedNetwork(shared.description).described
    return checkpoint_bytes(state)


def pack(
    root: Path, ckpt_dir: Path, output: Path, data_source: str | None = None
) -> dict[str, int]:
    """Write the archive completely or not at all; equal files give equal bytes.

    Args:
        root: of the bundle.
        ckpt_dir: holds ``model.pt``.
        output: the zip file.
        data_source: see `packed`.

    Returns:
        Size in bytes of each file in the archive, by its path below the archive's root folder.

    Raises:
        CheckpointError: see `packed`.
        StorageError: the archive can't be written.
    """
    _check_output(output)
    contents = packed(root, ckpt_dir, data_source).contents
    with write_whole(output) as staged, zipfile.ZipFile(staged, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(f"{NAME}/{name}", date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, on whatever system this runs
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    return {name: len(data) for name, data in contents.items()}


def _check_output(output: Path) -> None:
    """Refuse to write over anything but an earlier archive of this bundle.

    Raises:
        StorageError: something else is there.
    """
    if not os.path.lexists(output):
        return
    try:
        check_file(output)
        with zipfile.ZipFile(output) as archive:
            ours = f"{NAME}/{_METADATA}" in archive.namelist()
    except (FileError, OSError, ValueError, zipfile.BadZipFile):
        ours = False
    if not ours:
        raise StorageError(
            f"{output}: would be replaced, but is not an archive of this bundle; move it "
            "elsewhere, or choose another --output"
        )


def _shipped(root: Path) -> Iterator[str]:
    yield "LICENSE"
    for folder, suffixes in _SHIPPED.items():
        for path in (root / folder).rglob("*"):
            name = path.relative_to(root)
            hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)
            if (path.is_file() or path.is_symlink()) and path.suffix in suffixes and not hidden:
                yield name.as_posix()


def completed_metadata(
    metadata: dict[str, Any], network: AtlasNetwork, data_source: str | None = None
) -> dict[str, Any]:
    """The bundle's metadata, completed from a published model.

    The network's output is a density. `channel_def` of ``pred`` names the labels that the
    postprocessing of configs/inference.yaml makes from it, because annotation tools look there.

    Args:
        metadata: of configs/metadata.json.
        network: as published.
        data_source: see `pack`.
    """
    network_format = metadata["network_data_format"]
    image, pred = network_format["inputs"]["image"], network_format["outputs"]["pred"]
    tracts = _tract_names(network)
    for tensor in (image, pred):
        tensor["num_channels"] = network.channels
        tensor["spatial_shape"] = list(network.shape)
    image["channel_def"] = {str(channel): name for channel, name in enumerate(tracts)}
    pred["channel_def"] = {str(label): name for label, name in enumerate(["background", *tracts])}
    # Linear interpolation stays within the template's range.
    pred["value_range"] = [0, _above(float(network.template_density().max()))]
    if network.description["normalisation"] == "none":
        largest = float(network.template.detach().max())
    else:
        largest = math.log1p(1 / network.log_offset)  # densities are shares, up to 1
    image["value_range"] = [0, _above(largest)]
    if data_source is not None:
        metadata["data_source"] = data_source
    return metadata


def trained_config(text: str, settings: dict[str, Any]) -> str:
    """The configuration of the training with the settings of the model's training.

    Users who train from the archive, for example with an annotation tool that passes no settings,
    then get a model of the same kind from maps of the same kind.

    Args:
        text: of configs/train.yaml.
        settings: of the model; the device stays that of the configuration.
    """
    block = re.search(r"^learned_atlas:\n(?:[ \t].*\n|\n(?=[ \t]))+", text, re.MULTILINE)
    if block is None:
        raise ValueError("the configuration has no block learned_atlas")
    shipped = yaml.safe_load(block[0])["learned_atlas"]
    stated = yaml.safe_dump(
        {"learned_atlas": {**settings, "device": shipped["device"]}},
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=math.inf,
    )
    return text[: block.start()] + stated + text[block.end() :]


def _tract_names(network: AtlasNetwork) -> list[str]:
    named = network.description["tracts"]
    if named:
        return list(named)
    if network.channels == 1:
        return ["tract"]
    return [f"tract_{channel + 1}" for channel in range(network.channels)]


def _above(value: float) -> float:
    """An upper bound of ``value`` with two digits."""
    if value <= 0:
        return 0.0
    digits = 1 - math.floor(math.log10(value))
    return float(f"{math.ceil(value * 10**digits) / 10**digits:.6g}")
