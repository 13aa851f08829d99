"""Differences between a run's configuration and the shipped file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from scripts.engines.jobs import CONFIGS
from scripts.errors import ConfigurationError

__all__ = ["config_overrides", "differences"]

_ABSENT = object()


def config_overrides(
    shipped: str, sections: Sequence[str], without: Sequence[str] = ()
) -> dict[str, Any]:
    """The parts of the running configuration that differ from the shipped one.

    A configuration names this function, which finds the parser that is about to call it. Values are
    recorded as written: an expression stays text and is never evaluated, so the record is harmless.

    Args:
        shipped: name of the file in ``configs``, without its suffix.
        sections: ids to compare, such as ``loss`` or ``train#preprocessing``.
        without: ids below them to leave out.

    Returns:
        JSON-able values by their ids, such as ``{"loss#similarity#window": 9}``; None if the
        configuration lacks something that the shipped file has.

    Raises:
        ConfigurationError: no configuration is being read, or the shipped file is missing.
        KeyError: one of the two has no such section.
    """
    parser = _reading_parser()
    path = CONFIGS / f"{shipped}.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: is missing; must be the bundle's file, to compare overridden values with it"
        )
    original = ConfigParser.load_config_file(str(path))
    overrides: dict[str, Any] = {}
    for section in map(_written, sections):
        overrides |= differences(_at(parser.config, section), _at(original, section), section)
    return {
        id: json.loads(json.dumps(value, default=str))
        for id, value in overrides.items()
        if not any(f"{id}#".startswith(f"{one}#") for one in map(_written, without))
    }


def differences(value: Any, original: Any, id: str) -> dict[str, Any]:
    """Differences between two pieces of a configuration, with the values of the first.

    Components of different classes and lists of different lengths count as a single difference.

    Args:
        value: of the running configuration.
        original: of the shipped one.
        id: of both.
    """
    if isinstance(value, Mapping) and isinstance(original, Mapping):
        if value.get("_target_") == original.get("_target_"):
            result: dict[str, Any] = {}
            for key in [*original, *(key for key in value if key not in original)]:
                pair = value.get(key, _ABSENT), original.get(key, _ABSENT)
                result |= differences(*pair, f"{id}#{key}")
            return result
    elif isinstance(value, list | tuple) and isinstance(original, list | tuple):
        if len(value) == len(original):
            result = {}
            for index, pair in enumerate(zip(value, original, strict=True)):
                result |= differences(*pair, f"{id}#{index}")
            return result
    elif _written(value) == _written(original):
        return {}
    return {id: None if value is _ABSENT else value}


def _written(value: Any) -> Any:
    """A value without MONAI's change to text when it reads it: ``#`` becomes ``::``."""
    return value.replace("::", "#") if isinstance(value, str) else value


def _at(config: Any, id: str) -> Any:
    for key in id.split("#"):
        config = config[key]
    return config


def _reading_parser() -> ConfigParser:
    """The calling parser; MONAI doesn't pass the configuration to a component."""
    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigParser):
            return candidate
        frame = frame.f_back
    raise ConfigurationError(
        "config_overrides was called directly; must be named in a MONAI configuration, which it "
        "compares"
    )
