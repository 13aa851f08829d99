"""Removes people and places from a model's description before it is shared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scripts.atlas.network import AtlasNetwork
from scripts.errors import CheckpointError, ConfigurationError
from scripts.networks.described import weights_identity
from scripts.settings.atlas import LearnedAtlasConfig

__all__ = ["Shared", "model_card", "require_no_signs", "shared_description"]

# Settings of a cohort that name people, or places on the trainer's machine, and their substitutes.
_PERSONAL: dict[str, Any] = {
    "subjects": None,
    "exclude": [],
    "reference": None,
    "density_dir": None,
    "participants": "participants.tsv",
}
# An absolute path, home, drive, network share or `..`, at the start of a text or of a word in it.
_PLACE = re.compile(
    r"(?:^|[\s'\"=:,(\[])(?:/|~[\w-]*/|[A-Za-z]:[\\/]|\\\\|file:)[\w.~-]|\.\./|^\.\.$"
)
_SIGNS = "`$`, `@` or `%` at the beginning, or `#` anywhere"


@dataclass(frozen=True)
class Shared:
    """A model's description that may be shared.

    Attributes:
        description: without people and places.
        left_out: descriptions of what was removed.
    """

    description: dict[str, Any]
    left_out: tuple[str, ...]


def shared_description(path: Any, description: Mapping[str, Any]) -> Shared:
    """Remove people and places from a model's description.

    Args:
        path: of the model, for messages.
        description: from the model; it isn't changed.

    Raises:
        CheckpointError: its settings aren't this bundle's, a configuration would evaluate a text
            in it, or a text names a place and can't be removed.
    """
    described: dict[str, Any] = json.loads(json.dumps(description))
    try:
        settings = LearnedAtlasConfig.load(described["settings"]).model_dump(
            mode="json", exclude_unset=True
        )
    except (ConfigurationError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its settings can't be used: {error}") from error
    left_out = []
    for key, instead in _PERSONAL.items():
        here = settings.get("cohort") or {}
        if key in here and here[key] != instead:
            number = f" ({len(here[key])} names)" if isinstance(here[key], list) else ""
            left_out.append(f"learned_atlas.cohort.{key}{number}")
            here[key] = instead
    model = settings.get("model") or {}
    if model.get("initial") not in (None, "shipped"):  # a file of the trainer's machine
        left_out.append("learned_atlas.model.initial")
        model["initial"] = None
    described["settings"] = settings
    # A record for the trainer's atlas.json; what a later job needs of it is stored elsewhere.
    if described.pop("overrides", None):
        left_out.append("the record of what was changed in the training's configuration")
    for where, text in _texts({"settings": settings, "tracts": described.get("tracts")}, ""):
        require_no_signs(f"{path}: {where}", text)
    for where, text in _texts(described, ""):
        if _PLACE.search(text):
            raise CheckpointError(
                f"{path}: {where} = {text[:80]!r} names a place on the machine of the training; "
                "must be without, since an archive must not contain it"
            )
    return Shared(described, tuple(left_out))


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """All texts in a description, including keys, with their places."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield f"{where}.{key} (a key)".lstrip("."), str(key)
            yield from _texts(one, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _texts(one, f"{where}[{number}]")


def require_no_signs(where: str, text: str) -> None:
    """Refuse text that a configuration would read as an expression or a reference.

    Args:
        where: its place, for messages.
        text: to be written into a configuration.

    Raises:
        CheckpointError: it begins with ``$``, ``@`` or ``%``, or contains ``#``.
    """
    if text.startswith(("$", "@", "%")) or "#" in text:
        raise CheckpointError(
            f"{where} = {text[:80]!r} would be more than text in a configuration; must be "
            f"without {_SIGNS}, which MONAI reads as its syntax; choose another name"
        )


def model_card(network: AtlasNetwork, shared: Shared, data_source: str) -> str:
    """The page about an archive's model: its content, and what it reveals about people.

    Args:
        network: as it is packed.
        shared: its description.
        data_source: description of the training data.
    """
    described = shared.description
    grid, crop = described["grid"], described["crop"]
    shape = " x ".join(map(str, grid["shape"]))
    rows = {
        "weights (SHA-256)": f"`{weights_identity(network)}`",
        "templates (K)": str(network.n_templates),
        "channels": f"{network.channels} ({', '.join(described['tracts']) or 'the whole map'})",
        "grid": f"{shape} voxels",
        "box of the model": f"from {crop['start']} to {crop['stop']}",
        "normalisation": described["normalisation"],
        "training space": described["settings"]["training_space"],
        "maps that it was trained on": str(len(described.get("trained_on", ()))),
        "trained on": data_source,
    }
    lines = ["# Model card", "", "Content of `models/model.pt` in this archive.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(text)} |" for key, text in rows.items())]
    lines += ["", "## Subjects", ""]
    lines += [
        "The template is a mean image of the cohort; of a small cohort it resembles each subject. "
        "The model contains no map, no name and no path.",
        "",
        f"- `trained_on`: the first {len((described.get('trained_on') or [''])[0])} hexadecimal "
        "digits of the SHA-256 of each map, so that an evaluation can refuse a subject of the "
        "training. Anybody who has a map can test whether it was among them. No map can be made "
        "from these digits.",
    ]
    for one in described.get("covariates") or ():
        lines.append(f"- covariate {_cell(_covariate(one))}")
    if not described.get("covariates"):
        lines.append("- no covariates")
    lines += ["", "## What was left out", ""]
    lines += [f"- {_cell(what)}" for what in shared.left_out] or ["Nothing had to be left out."]
    lines += [
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(described["settings"], indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)


def _covariate(one: Mapping[str, Any]) -> str:
    if one["kind"] == "number":
        return (
            f"{one['name']}: mean {one['mean']:.4g}, standard deviation {one['std']:.4g}, from "
            f"{one['low']:.4g} to {one['high']:.4g} (of single people)"
        )
    shares = zip(one["categories"], one["shares"], strict=True)
    return f"{one['name']}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares)


def _cell(text: str) -> str:
    """Text, escaped for a Markdown page."""
    return re.sub(r"([\\|<>*_\[\]])", r"\\\1", " ".join(text.split()))
