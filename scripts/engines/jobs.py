"""A job from a program: a shipped configuration, values for it, and its run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.engines.given import given
from scripts.runtime.error_report import find_user_error

__all__ = ["CONFIGS", "job_config", "run_job"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_RESULT = "result_of_job"


def job_config(
    name: str,
    values: Mapping[str, Any],
    block: str,
    settings: Mapping[str, Any],
    over: str | None = None,
) -> dict[str, Any]:
    """A shipped configuration with a program's values and settings, which MONAI doesn't read.

    Args:
        name: its file.
        values: by id, such as ``train#dataset#data``.
        block: key of its settings.
        settings: for that block, nested.
        over: a second file, whose values replace those of the first.
    """
    config = ConfigParser.load_config_file(str(CONFIGS / name))
    for id, value in (ConfigParser.load_config_file(str(CONFIGS / over)) if over else {}).items():
        _set(config, id, value)
    for id, value in values.items():
        _set(config, id, given(value))
    _merge(config[block], settings)
    return config


def run_job(config: dict[str, Any], run_id: str, result: str | None = None) -> Any:
    """Run a configuration; a user's error is raised itself, without MONAI's wrapping.

    Args:
        config: see `job_config`.
        run_id: what to run.
        result: an expression whose value is returned.

    Raises:
        TractAtlasError: settings, files, device or folders can't be used.
    """
    parser: ConfigParser = ConfigParser(config)
    if result is not None:
        parser[_RESULT] = result
    hook = sys.excepthook  # jobs install one for the command line; a notebook keeps its own
    try:
        parser.get_parsed_content(run_id)
        return None if result is None else parser.get_parsed_content(_RESULT)
    except Exception as error:
        explained = find_user_error(error)
        if explained is None or explained is error:
            raise
        raise explained from error
    finally:
        sys.excepthook = hook


def _set(config: dict[str, Any], id: str, value: Any) -> None:
    *sections, last = id.split("#")
    for section in sections:
        config = config[section]
    config[last] = value


def _merge(section: dict[str, Any], settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            if not isinstance(section.get(key), dict):
                section[key] = {}
            _merge(section[key], value)
        else:
            section[key] = given(value)
