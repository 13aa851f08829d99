"""Paths and settings of a configuration that are known before MONAI is imported."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from bundle.overrides import UsageError
from scripts.errors import ConfigurationError
from scripts.runtime.error_report import find_user_error
from scripts.settings import BLOCKS
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.section import Section

__all__ = [
    "SHIPPED_PATH",
    "STANDALONE_SETTINGS",
    "Settings",
    "early_block",
    "early_check",
    "early_settings",
    "known_path",
    "known_value",
]


# No other setting's rule uses these, so the rest can be checked without them.
STANDALONE_SETTINGS = frozenset({"device", "dtype"})
_UNRESOLVED = object()
_LONGEST_CHAIN = 8  # of references; longer ones are a loop
SHIPPED_PATH = re.compile(r"\$@(\w+) \+ '([^'\\]*)'")
"""A path in the shipped configurations: the key of its folder, and the rest."""
Settings = TypeVar("Settings", bound=Section)


def early_check(config: Mapping[str, Any]) -> LearnedAtlasConfig | None:
    """Validate every settings block of a configuration; see `early_block`.

    Returns:
        The atlas's settings, if they exist and can be determined.
    """
    for name, block in BLOCKS.items():
        # Settings of other jobs needn't be imported.
        if name in config and name != LearnedAtlasConfig.key_path:
            early_block(config, block.schema())
    return early_settings(config)


def early_settings(config: Mapping[str, Any]) -> LearnedAtlasConfig | None:
    """The atlas's settings block by `early_block`."""
    return early_block(config, LearnedAtlasConfig)


def early_block(config: Mapping[str, Any], kind: type[Settings]) -> Settings | None:
    """Validate a settings block as far as possible without MONAI.

    Args:
        config: the configuration, overrides applied.
        kind: the block's settings.

    Returns:
        The settings, or None if there is no block, if it is in another file, or if it can't be
        checked before MONAI evaluates an expression in it.

    Raises:
        ConfigurationError: a setting breaks its rule.
    """
    block = config.get(kind.key_path)
    if block is None or isinstance(block, str):
        return None
    if not isinstance(block, Mapping):
        return kind.load(block)
    left_out: set[str] = set()
    known = _known_part(config, block, left_out, "")
    try:
        return kind.load(known)
    except ConfigurationError:
        if left_out <= STANDALONE_SETTINGS:
            raise
        return None


def _known_part(
    config: Mapping[str, Any], section: Mapping[str, Any], left_out: set[str], path: str
) -> dict[str, Any]:
    """``section`` without the values that only MONAI can determine; adds their paths to
    ``left_out``."""
    known: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            known[key] = _known_part(config, value, left_out, f"{path}{key}#")
            continue
        known_here = known_value(config, value)
        if known_here is _UNRESOLVED:
            left_out.add(f"{path}{key}")
        else:
            known[key] = known_here
    return known


def known_path(config: Mapping[str, Any], key: str) -> str:
    """A top-level path of the configuration such as ``dataset_dir``.

    MONAI is imported only if the path is an expression or a component.

    Raises:
        UsageError: it is missing, or its expression fails.
    """
    value = known_value(config, config.get(key))
    demo = _demo_folder(config, value) if isinstance(value, Mapping) else None
    if demo is not None:
        from scripts.phantom import ensure_demo_cohort

        return ensure_demo_cohort(demo)
    if value is _UNRESOLVED or isinstance(value, Mapping):
        value = _evaluated(config, key)
    if not isinstance(value, str | Path):
        raise UsageError(f"the configuration has no {key}; give --{key} <folder>")
    return str(value)


def _demo_folder(config: Mapping[str, Any], component: Mapping[str, Any]) -> str | None:
    """The folder of configs/train.yaml's demo cohort, if the training takes its data from there."""
    train = config.get("train")
    dataset = train.get("dataset") if isinstance(train, Mapping) else None
    folder = known_value(config, component.get("folder"))
    shipped = {**component, "folder": ""} == {
        "_target_": "scripts.phantom.ensure_demo_cohort", "folder": "",
        "needed": "$@train#dataset#data is None",
    }  # fmt: skip
    takes = shipped and isinstance(dataset, Mapping) and dataset.get("data", "") is None
    return folder if takes and isinstance(folder, str) else None


def _evaluated(config: Mapping[str, Any], key: str) -> Any:
    """Value of a top-level key, evaluated by MONAI."""
    from monai.bundle import ConfigParser

    from scripts.settings.monai_command import require_expressions

    require_expressions()
    try:
        return ConfigParser(copy.deepcopy(dict(config))).get_parsed_content(key)
    except Exception as error:  # an expression may raise anything
        if find_user_error(error) is not None:
            raise
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        reason = " ".join(str(causes[-1]).split())
        raise UsageError(
            f"{key} = {config[key]!r} can't be evaluated: {reason}; give --{key} <folder>"
        ) from error


def known_value(config: Mapping[str, Any], value: Any, depth: int = 0) -> Any:
    """A value, with a reference to a top-level key resolved, else the mark for "unknown".

    Of expressions only ``$@key + 'text'`` is evaluated, the form of the shipped paths: MONAI takes
    seconds to load.
    """
    if isinstance(value, list):
        entries = [known_value(config, entry, depth) for entry in value]
        return _UNRESOLVED if any(entry is _UNRESOLVED for entry in entries) else entries
    if not isinstance(value, str) or value[:1] not in ("$", "@", "%"):
        return value
    below = SHIPPED_PATH.fullmatch(value)
    if below is not None and below[1] in config and depth <= _LONGEST_CHAIN:
        folder = known_value(config, config[below[1]], depth + 1)
        return folder + below[2] if isinstance(folder, str) else _UNRESOLVED
    name = value[1:]
    if value[0] != "@" or name not in config or depth > _LONGEST_CHAIN:
        return _UNRESOLVED
    return known_value(config, config[name], depth + 1)
