"""The user's command line and the resulting configuration, without torch or monai.

MONAI reads the same files and overrides again when a job runs. They are read early here, so that a
mistake is reported at once instead of after MONAI's imports.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue

from bundle.typed_values import as_expression, kind_of, typed_value
from scripts.errors import shown
from scripts.runtime.input_files import FileError, read_text, say
from scripts.runtime.plain_data import DEEPEST, parse_json, parse_yaml, require_depth
from scripts.settings import BLOCKS

# Arguments of MONAI's `run`, `ConfigWorkflow` and experiment tracking: never keys of a config.
MONAI_ARGUMENTS = frozenset(
    {
        "run_id",
        "init_id",
        "final_id",
        "meta_file",
        "logging_file",
        "tracking",
        "args_file",
        "workflow_type",
        "properties_path",
        "tracking_uri",
        "experiment_name",
        "run_name",
        "save_execute_config",
        "_meta_",
    }
)


class UsageError(Exception):
    """A mistake in the command line; the message says what and why."""

    def __str__(self) -> str:
        return shown(super().__str__())


# ---------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------


def parse_overrides(
    arguments: Sequence[str], several: bool = False
) -> tuple[list[str], dict[str, Any]]:
    """Read ``--key value`` and ``--key=value`` as ``python -m monai.bundle run`` does.

    Values are Python literals whose bare words are text (Fire's rule). On top of that ``true``,
    ``false`` and ``null`` mean what they mean in YAML; MONAI would take them for text, and the text
    ``"false"`` for true. A key without a value is true. The last of several equal keys wins, while
    ``--config_file`` adds up. Keys that hold a path, a name or other text take the word as it was
    typed, see `scripts.settings.values.Typed`.

    Args:
        arguments: the words after the verb.
        several: for a sweep: texts with commas are several values.

    Returns:
        The configuration files in order, and the other keys with their values.

    Raises:
        UsageError: a word is neither a key nor a value.
    """
    files: list[str] = []
    overrides: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not _is_key(word):
            raise UsageError(f"unexpected argument {word!r}; settings are given as --key value")
        key, equals, text = word.lstrip("-").partition("=")
        key = key.replace("-", "_").replace("::", "#")
        if not key.strip("#"):
            raise UsageError(f"{word!r} has no key")
        kind = kind_of(key)
        of_text = bool(kind) or key == "config_file"
        if not equals and words and not _is_key(words[0], of_text):
            text, equals = words.pop(0), "="
        value: Any = True
        if equals and kind and not (several and _is_several(kind, text)):
            value = typed_value(kind, text)
        elif equals:
            value = parse_value(text)
        if value is True and kind == "path":
            raise UsageError(f"--{key} needs a path")
        if key == "config_file":
            files += _file_names(value, text)
        else:
            overrides.pop(key, None)  # a repeated key moves to its last place
            overrides[key] = value
    return files, overrides


def parse_value(text: str) -> Any:
    """A value as typed: Python literal, else YAML's ``true``/``false``/``null``, else text."""
    value = DefaultParseValue(text)
    if isinstance(value, str):
        return {"true": True, "false": False, "null": None, "~": None}.get(value, value)
    return value


def _is_key(word: str, of_text: bool = False) -> bool:
    """Whether a word is a key; after a key that holds text a single dash begins a value."""
    return word.startswith("--") or (not of_text and re.match(r"-[a-zA-Z]", word) is not None)


def _is_several(kind: str, text: str) -> bool:
    """Whether a sweep is to try several texts, parted by commas, which a path may have itself."""
    return "," in text and (kind == "text" or (kind == "path" and not Path(text).exists()))


def _file_names(value: Any, text: str) -> list[str]:
    """One path, or a list of them in one word as MONAI takes it."""
    several = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    if several and not Path(text).expanduser().exists():
        return list(value)
    if not text:
        raise UsageError("--config_file needs a path")
    return [text]


# ---------------------------------------------------------------------------------------------
# The configuration
# ---------------------------------------------------------------------------------------------


def locate_config_files(names: Sequence[str], root: Path) -> list[Path]:
    """Absolute paths of the files, searched in the current folder, then in the bundle's root.

    Raises:
        UsageError: a file doesn't exist.
    """
    result = []
    for name in names:
        candidates = [Path(name).expanduser().resolve(), (root / name).resolve()]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise UsageError(f"no such configuration file: {name}")
        result.append(path)
    return result


def read_config(files: Sequence[Path]) -> dict[str, Any]:
    """Merge configuration files as MONAI does: a later file's top-level key replaces an earlier's.

    Raises:
        UsageError: a file can't be read or isn't a mapping.
    """
    merged: dict[str, Any] = {}
    for path in files:
        try:
            text = read_text(path)
            content = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
        except FileError as error:
            raise UsageError(str(error)) from error
        except ValueError as error:
            raise UsageError(f"{path} can't be read: {say(error)}") from error
        if not isinstance(content, dict):
            raise UsageError(f"{path} contains no mapping of keys")
        for key, value in content.items():
            _merge(merged, str(key), value)
    return merged


def _merge(config: dict[str, Any], key: str, value: Any) -> None:
    """``key`` replaces; ``+key`` adds to the existing value; ``#`` in it separates levels."""
    added = key.startswith("+")
    first, *deeper = key.removeprefix("+").replace("::", "#").split("#", 1)
    if deeper and isinstance(config.get(first), dict):
        _merge(config[first], ("+" if added else "") + deeper[0], value)
        return
    present = config.get(key[1:]) if key.startswith("+") else None
    if isinstance(present, dict) and isinstance(value, dict):
        present.update(value)
    elif isinstance(present, list) and isinstance(value, list):
        present.extend(value)
    else:
        config[key.removeprefix("+")] = value


def apply_overrides(config: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Set all overrides in ``config`` (in place) and return them in the form for MONAI.

    MONAI accepts any new top-level key, so ``--datset_dir`` would silently train on the wrong data.
    Here a key must exist. In the settings block it may be new, because a configuration may leave
    out a whole section there, and the schema checks every key.

    Args:
        config: the merged configuration; changed.
        overrides: value by key, ``#`` between levels.

    Returns:
        The overrides for ``monai.bundle.run``: a missing section is passed as one mapping (MONAI
        only sets keys in an existing section), and null as an expression (MONAI drops overrides
        that are None).

    Raises:
        UsageError: a key isn't in the configuration.
    """
    passed: dict[str, Any] = {}
    for key, typed in overrides.items():
        _require_shallow(key, typed)
        parts = key.split("#")
        kind = kind_of(key)
        if kind == "path" and isinstance(typed, str) and isinstance(config.get(key), list):
            typed = typed_value("paths", typed)  # a key of this name may hold one path elsewhere
        value = as_expression(config, typed) if kind else typed
        if parts[0] in MONAI_ARGUMENTS:
            passed[key] = value
            continue
        if parts[0] not in config:
            raise UsageError(f"--{key}: the configuration has no {parts[0]}{_hint(config, parts)}")
        depth = _set(config, parts, value)
        if depth is None:
            passed[key] = "$None" if value is None else value
        else:
            place = "#".join(parts[: depth + 1])
            passed[place] = _none_as_expression(_get(config, parts[: depth + 1]))
    return passed


def _hint(config: Mapping[str, Any], parts: Sequence[str]) -> str:
    """The key that was meant: a setting of this name in a block, or a similar key."""
    from bundle.keys_help import shown_keys

    settings = [key for key, _ in shown_keys(config) if key.split("#")[-len(parts) :] == [*parts]]
    close = difflib.get_close_matches(parts[0], [*config, *MONAI_ARGUMENTS], n=1)
    meant = [*settings, *close]
    return f"; did you mean --{meant[0]}?" if meant else ""


def quoted_texts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides for MONAI of paths and names in a configuration that MONAI would change.

    MONAI replaces ``#`` by ``::`` in every text, so ``dataset_dir: study#2`` of a file would be
    another folder. Expressions, references and macros stay what they are.

    Args:
        config: merged configuration files.

    Returns:
        The same values as expressions, by their keys.
    """
    result: dict[str, Any] = {}

    def walk(section: Mapping[Any, Any], above: str) -> None:
        for name, value in section.items():
            key = f"{above}{name}"
            if kind_of(key):
                if (quoted := as_expression(config, value, typed=False)) != value:
                    result[key] = quoted
            elif isinstance(value, Mapping):
                walk(value, f"{key}#")

    walk(config, "")
    return result


def _require_shallow(key: str, value: Any) -> None:
    """Refuse what MONAI, which reads a configuration by recursion, couldn't read."""
    try:
        levels = key.count("#")
        if levels > DEEPEST:
            raise ValueError(f"leads {levels} levels deep, more than {DEEPEST}")
        require_depth(value)
    except ValueError as error:
        raise UsageError(f"--{key[:100]}{'...' * (len(key) > 100)}: {error}") from None


def _set(config: dict[str, Any], parts: Sequence[str], value: Any) -> int | None:
    """Set a nested value; return the depth of the first section that had to be made, if any."""
    here: Any = config
    made: int | None = None
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            index: Any = int(part)
        elif isinstance(here, dict) and (part in here or last or parts[0] in BLOCKS):
            index = part
        elif isinstance(here, str) and here[:1] in "$@%":
            return None  # only MONAI knows the content of an expression
        else:
            raise UsageError(
                f"--{'#'.join(parts)}: {'#'.join(parts[:depth])} in the configuration has no {part}"
            )
        if last:
            here[index] = value
        else:
            if isinstance(here, dict) and here.get(index) is None:
                here[index] = {}
                made = depth if made is None else made
            here = here[index]
    return made


def _get(config: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        config = config[int(part) if isinstance(config, list) else part]
    return config


def _none_as_expression(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_as_expression(entry) for key, entry in value.items()}
    return "$None" if value is None else value
