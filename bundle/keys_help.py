"""The keys that a job's help shows: those of its configuration, with their values there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.early_values import SHIPPED_PATH
from bundle.overrides import read_config
from scripts.settings import BLOCKS

__all__ = ["keys_help", "shown_keys"]

_PARTS = {"imports", "bundle_root", "run"}
"""Top-level keys that are not values of a job."""


def keys_help(files: Sequence[Path]) -> str:
    """Lines of a help text.

    Args:
        files: the job's configurations, in order.
    """
    config = read_config(files)
    keys = list(shown_keys(config))
    width = max((len(key) for key, _ in keys), default=0)
    lines = [f"    --{key:<{width}}  {_shown(value)}" for key, value in keys]
    blocks = [name for name in BLOCKS if isinstance(config.get(name), Mapping)]
    pages = [f"docs/settings.md#{name}" for name in blocks]
    every = [f"every setting, with its rule: {', '.join(pages)}"] if pages else []
    return "\n".join(["", "keys, with their values in that configuration:", *lines, *every, ""])


def shown_keys(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys that a user sets, with ``#`` between levels, and their values.

    The parts that a configuration is assembled from are left out, and so are settings that only
    repeat a key above them.
    """
    for key, value in config.items():
        if key in _PARTS or value == "@bundle_root":
            continue
        if key in BLOCKS:
            if isinstance(value, Mapping):
                yield from _settings(value, key)
        elif isinstance(value, Mapping):
            if key == "dataset_dir":  # made on first use
                yield key, "(the demo cohort)"
        elif isinstance(value, list):
            parts = (isinstance(one, Mapping) or str(one)[:1] in ("$", "@") for one in value)
            if not any(parts):
                yield key, value
        elif not _is_expression(value):
            yield key, value


def _is_expression(value: Any) -> bool:
    """Whether a value is computed, in another way than the help explains."""
    if not isinstance(value, str) or value[:1] not in ("$", "@"):
        return False
    if value[0] == "@":
        return not value.endswith("_dir")
    return SHIPPED_PATH.fullmatch(value) is None and "torch.cuda" not in value


def _settings(block: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{above}#{key}")
        elif not (isinstance(value, str) and value.startswith("@")):
            yield f"{above}#{key}", value


def _shown(value: Any) -> str:
    below = SHIPPED_PATH.fullmatch(value) if isinstance(value, str) else None
    if below is not None:
        return f"<{below[1].replace('bundle_root', 'root')}>{below[2]}"
    if isinstance(value, str) and value[:1] == "@":
        return f"<{value[1:]}>"
    if isinstance(value, str) and "torch.cuda" in value:
        return "cuda if there is a GPU, else cpu"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "''" if value == "" else str(value)
