"""Networks of fields as files, and how they are built and read again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.errors import CheckpointError, CohortError, StorageError
from scripts.networks.checkpoint import check_earlier_model, load_checkpoint, save_checkpoint
from scripts.networks.described import FORMAT, description_in
from scripts.runtime.input_files import read_json
from scripts.runtime.ownership import check_contents
from scripts.runtime.storage import check_replaceable, publish_folder
from scripts.settings.train_fields import NETWORKS, TrainFieldsConfig, TrainFieldsModelConfig
from scripts.supervised.field_network import STANDARDISATION, FieldNetwork
from scripts.supervised.global_network import GlobalNetwork
from scripts.supervised.loading import FieldPairs
from scripts.supervised.local_network import LocalNetwork
from scripts.supervised.merging import MergedNetwork

__all__ = [
    "build_field_network",
    "check_places",
    "load_field_network",
    "network_path",
    "save_field_network",
    "saved_optimizer",
]


def network_path(folder: str | Path, network: str) -> Path:
    """``<folder>/fields_<network>.pt``; saved separately, the folder of that name without .pt."""
    return Path(folder) / f"fields_{network}.pt"


def _built(description: Mapping[str, Any]) -> FieldNetwork:
    """The network of a description."""
    kind, shape = description["network"], [int(n) for n in description["shape"]]
    if kind not in NETWORKS:
        raise ValueError(f"network is {kind!r}")
    if kind == "merged":
        parts = [_built(description[part]) for part in ("global", "local")]
        assert isinstance(parts[0], GlobalNetwork)
        assert isinstance(parts[1], LocalNetwork)
        return MergedNetwork(parts[0], parts[1], description)
    model = TrainFieldsModelConfig.load(description["model"])
    if kind == "global":
        return GlobalNetwork(shape, model.global_filters, model.dense, model.inputs, description)
    return LocalNetwork(
        len(shape), model.start_filters, model.down_filters, model.middle_filters,
        model.up_filters, model.end_filters, model.compute_inv, model.inputs, description,
    )  # fmt: skip


def build_field_network(
    pairs: FieldPairs, settings: TrainFieldsConfig, ckpt_dir: str | Path
) -> FieldNetwork:
    """The network that the settings ask for, initialised by their seed, or by saved networks.

    Args:
        pairs: to train on.
        settings: of the run.
        ckpt_dir: where a merged network's parts are read from.

    Raises:
        CheckpointError: a saved network can't be used.
        CohortError: the images are too small for it.
    """
    torch.manual_seed(settings.optimizer.seed)
    description: dict[str, Any] = {
        "format": FORMAT,
        "network": settings.network,
        "shape": list(pairs.shape),
        "model": settings.model.as_dict(),
        "standardisation": STANDARDISATION,
        "losses": settings.loss_names(),
        "losses_weights": settings.loss_weights(),
        "pairs": pairs.identity(),
    }
    if settings.network == "merged":
        parts = {
            name: load_field_network(given or network_path(ckpt_dir, name), name)
            for name, given in (("global", settings.global_model), ("local", settings.local_model))
        }
        description |= {name: part.description for name, part in parts.items()}
        network = _built(description)
        assert isinstance(network, MergedNetwork)
        for joined, part in (
            (network.global_network, parts["global"]),
            (network.local_network, parts["local"]),
        ):
            joined.load_state_dict(part.state_dict())
        _check_dims(network, pairs, "the joined networks")
    else:
        network = _built(description)
    if settings.start is not None:
        saved = load_field_network(settings.start, settings.network)
        try:
            kept = network.described
            network.load_state_dict({**saved.state_dict(), "described": kept})
        except RuntimeError as error:
            reason = " ".join(str(error).splitlines()[1:2]).strip()[:200]
            raise CheckpointError(
                f"{settings.start}: belongs to a network with other settings ({reason})"
            ) from error
    return network


def _check_dims(network: FieldNetwork, pairs: FieldPairs, name: str) -> None:
    dims = len(network.description["global"]["shape"]), len(network.description["local"]["shape"])
    if set(dims) != {len(pairs.shape)}:
        raise CohortError(
            f"{name} are of {dims[0]} and {dims[1]} dimensions, the pairs of {len(pairs.shape)}"
        )


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def _places(path: Path) -> tuple[Path, Path]:
    """A network's file, and its folder where it was saved separately."""
    return (path, path.with_suffix("")) if path.suffix == ".pt" else (Path(f"{path}.pt"), path)


def check_places(path: str | Path, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Make sure that what a network will replace is an earlier network, and no input.

    Args:
        path: of the network.
        overwrite: whether a network may be replaced at all.
        inputs: what the job reads.

    Raises:
        StorageError: something else is there; a network is there, without ``overwrite``.
    """
    file, folder = _places(Path(path))
    check_earlier_model(file)
    check_replaceable(folder, inputs=inputs)
    for place in (file, folder):
        if place.exists() and not overwrite:
            raise StorageError(
                f"{place}: exists already; choose another --ckpt_dir, or replace it with "
                "--train_fields#overwrite true"
            )


def save_field_network(
    path: str | Path,
    network: FieldNetwork,
    optimizer: torch.optim.Optimizer | None,
    settings: TrainFieldsConfig,
) -> Path:
    """Save a network with what training needs to continue, or alone for prediction.

    Args:
        path: ``.../fields_<network>.pt``.
        network: as trained.
        optimizer: its moments are saved with it, together.
        settings: of the run; ``save`` decides.

    Returns:
        the file, or the folder with ``network.json`` and ``weights.pt``.
    """
    file, folder = _places(Path(path))
    weights = {
        name: torch.as_tensor(value).detach().cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    if settings.save == "separate":
        with publish_folder(folder) as staging:
            text = json.dumps(network.description, indent=1) + "\n"
            (staging / "network.json").write_text(text, encoding="utf-8")
            save_checkpoint(weights, staging / "weights.pt")
        file.unlink(missing_ok=True)  # of an earlier run: two of a name would contradict each other
        return folder
    save_checkpoint(
        {
            "network": weights,
            "losses": settings.loss_names(),
            "losses_weights": settings.loss_weights(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
        },
        file,
    )
    check_contents(folder)  # an earlier network's, saved separately, and nothing else
    shutil.rmtree(folder, ignore_errors=True)
    return file


def _saved(path: Path) -> tuple[Path, dict[str, Any]]:
    """The saved file, together or separate, and its content."""
    file, folder = _places(path)
    if not file.exists() and (folder / "weights.pt").is_file():
        about = folder / "network.json"
        weights = load_checkpoint(folder / "weights.pt")
        try:
            description = read_json(about)
        except ValueError as error:
            raise CheckpointError(f"{about}: is not JSON: {error}") from error
        try:
            same = description_in(weights) == description
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / 'weights.pt'}: is damaged: {error}") from error
        if not same:
            raise CheckpointError(f"{about}: isn't of the weights beside it")
        return folder / "weights.pt", {"network": weights}
    return file, load_checkpoint(file)


def load_field_network(path: str | Path, network: str) -> FieldNetwork:
    """A saved network, ready to predict.

    Args:
        path: of its file, or of the folder that it was saved to separately.
        network: global, local or merged.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    file, checkpoint = _saved(Path(path))
    weights = checkpoint.get("network")
    if not isinstance(weights, dict) or "described" not in weights:
        raise CheckpointError(f"{file}: is not a network of fields of this bundle")
    try:
        description = description_in(weights)
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"{file}: written in format {description['format']!r}, this version reads {FORMAT}"
            )
        if description["network"] != network:
            raise CheckpointError(
                f"{file}: is a {description['network']} network, not a {network} one"
            )
        if description.get("standardisation", STANDARDISATION) != STANDARDISATION:
            raise CheckpointError(
                f"{file}: standardises images in another way ({description['standardisation']}) "
                f"than this version does ({STANDARDISATION})"
            )
        made = _built(description)
        made.load_state_dict(weights)
    except (
        LookupError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError,
        RecursionError, CohortError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file}: can't be read as a network of fields; it is damaged or of another kind: "
            f"{reason}"
        ) from error
    return made.eval()


def saved_optimizer(path: str | Path) -> dict[str, Any] | None:
    """The optimiser's state in a file that was saved together; None without one.

    Raises:
        CheckpointError: the file can't be read.
    """
    state = _saved(Path(path))[1].get("optimizer")
    return state if isinstance(state, dict) else None
