"""Values of settings that hold text, taken as they were typed.

Fire, which MONAI reads its command line with, takes words for Python: ``20240115`` for a number,
``study#2`` for ``study`` and a comment, ``pilot,2`` for two values. For keys that hold text the
word is taken unchanged instead.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from fire.parser import DefaultParseValue

from scripts.settings import BLOCKS
from scripts.settings.section import Section
from scripts.settings.values import Typed, to_path

__all__ = ["PATH_KEYS", "as_expression", "kind_of", "typed_value"]

PATH_KEYS = frozenset(
    {
        "args_file",
        "atlas",
        "atlas_dir",
        "bundle_root",
        "carried_dir",
        "ckpt_dir",
        "dataset_dir",
        "fixed",
        "logging_file",
        "meta_file",
        "output",
        "output_dir",
        "pairs",
        "reference",
        "registered_dir",
        "stack",
        "subject",
        "training_dir",
        "transforms",
    }
)
"""Top-level keys of the configurations that hold a path."""
_TOP_LISTS = {"input": "paths", "moving": "paths"}
_OF_PATHS = ("_dir", "_file", "_config")
_NULL = {"null", "None", ""}


def kind_of(key: str) -> str:
    """What kind of text a key holds; empty if it holds none, or isn't known.

    Args:
        key: as typed, ``#`` between levels.
    """
    first, *rest = key.split("#")
    if not rest:
        return "path" if key in PATH_KEYS else _TOP_LISTS.get(key, "")
    if first not in BLOCKS:  # an argument of a component, or of cross-validation
        last = rest[-1]
        is_path = last in PATH_KEYS | {"folder", "path"} or last.endswith(_OF_PATHS)
        return "path" if is_path else ""
    model: type[Section] | None = BLOCKS[first].schema()
    kind = ""
    for name in rest:
        if kind == "paths_by_name":
            return "path"
        field = None if model is None else model.model_fields.get(name)
        if field is None:
            return ""
        kind = _marked((*field.metadata, field.annotation))
        annotation = field.annotation
        model = (
            annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
        )
    return kind


def _marked(parts: tuple[Any, ...]) -> str:
    """The outermost mark of a type."""
    for part in parts:
        if isinstance(part, Typed):
            return part.kind
    for part in parts:
        metadata = getattr(part, "__metadata__", ())
        inner = get_args(part) if metadata or get_origin(part) in (Union, UnionType) else ()
        result = _marked((*metadata, *inner)) if inner else ""
        if result:
            return result
    return ""


def typed_value(kind: str, text: str) -> Any:
    """The value of a key of some kind, as typed.

    Args:
        kind: see `kind_of`.
        text: the word.
    """
    if kind == "path":
        return None if text in _NULL - {""} else _home(_unquoted(text))
    if kind == "text":
        return None if text in _NULL - {""} else _unquoted(text)
    if text in _NULL or (text[:1] == "$" and kind != "names"):
        return None if text in _NULL else text
    if kind == "transform":
        return _entry(text)
    if kind == "paths_by_name":
        mapping = _mapping(text)
        return text if mapping is None else {name: _home(path) for name, path in mapping.items()}
    if kind == "indexes":
        unquoted = _unquoted(text)
        is_file = unquoted.lower().endswith(".npy") and not _bracketed(text)
        return _home(unquoted) if is_file else DefaultParseValue(text)
    if kind == "names_or_list":
        if text.lower().endswith((".txt", ".csv", ".json")) and not _bracketed(text):
            return _home(_unquoted(text))
        return _words(text, commas=True)
    if kind == "names":
        return _words(text, commas=True)
    if not _bracketed(text) or _exists(text):
        if "," in text and not _exists(text):
            pieces = [_home(_unquoted(one.strip())) for one in text.split(",")]
            if all(_exists(one) for one in pieces):  # what Fire took for a list
                return pieces
        return [_home(_unquoted(text))]
    pieces = _split(text)
    if kind == "transforms" and len(pieces) == 2 and pieces[1] in ("0", "1", "True", "False"):
        return [_entry(text)]  # one [path, 1]
    return [_entry(one) if kind == "transforms" else _home(_unquoted(one)) for one in pieces]


def as_expression(config: Mapping[str, Any], value: Any, typed: bool = True) -> Any:
    """Text such that MONAI, too, takes it for itself: as an expression where it would not.

    MONAI reads ``#``, ``@``, ``%`` and ``$`` in texts. An expression (``$...``) and a reference to
    a key that the configuration has stay what they are.

    Args:
        config: the configuration.
        value: text, or a list or mapping of such.
        typed: from the command line; in a file, any ``@`` or ``%`` in front has MONAI's meaning.
    """
    if isinstance(value, list):
        return [as_expression(config, one, typed) for one in value]
    if isinstance(value, dict):
        return {key: as_expression(config, one, typed) for key, one in value.items()}
    if not isinstance(value, str) or not re.search(r"[#@%$]|::", value) or value[0] == "$":
        return value
    if value[0] in "@%" and (not typed or re.split(r"#|::", value[1:])[0] in config):
        return value
    quoted = repr(value)
    for char in "#@%$:":
        quoted = quoted.replace(char, f"\\x{ord(char):02x}")
    return f"${quoted}"


def _home(path: str) -> str:
    return to_path(path)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(_home(path))
    except (OSError, ValueError):  # no path at all
        return False


def _unquoted(text: str) -> str:
    """Text without quotes that a person put around it for Fire's sake."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
        return value if isinstance(value, str) else text
    return text


def _bracketed(text: str) -> bool:
    return text.strip()[:1] + text.strip()[-1:] in ("[]", "()")


def _words(text: str, commas: bool) -> list[str]:
    pieces = _split(text) if _bracketed(text) else text.split(",") if commas else [text]
    return [_unquoted(piece.strip()) for piece in pieces]


def _split(text: str) -> list[str]:
    """The entries of a list in brackets, at its commas outside of quotes and inner brackets."""
    inner, pieces, depth, quote = text.strip()[1:-1], [""], 0, ""
    for char in inner:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and pieces[-1].rstrip()[-1:] in ("", *"[({:,"):
            quote = char  # not the apostrophe inside a name
        elif char in "[({":
            depth += 1
        elif char in "])}":
            depth -= 1
        if char == "," and not depth and not quote:
            pieces.append("")
        else:
            pieces[-1] += char
    return [piece.strip() for piece in pieces if piece.strip()]


def _mapping(text: str) -> dict[str, str] | None:
    """Texts by name as typed in braces; None for anything else.

    A comma separates entries only if a name and a colon follow it, because paths have commas too.
    """
    text = text.strip()
    if text[:1] + text[-1:] != "{}":
        return None
    entries: list[str] = []
    for piece in _split(text):
        if entries and re.match(r"""(['"]?)[\w .-]+\1\s*:""", piece) is None:
            entries[-1] += f",{piece}"
        else:
            entries.append(piece)
    result = {}
    for entry in entries:
        name, colon, value = entry.partition(":")
        if not colon:
            return None
        result[_unquoted(name.strip())] = _unquoted(value.strip())
    return result


def _entry(text: str) -> Any:
    """A transform as typed: a path, [path, 1], or a mapping."""
    mapping = None if _exists(text) else _mapping(text)
    if mapping is not None:
        return {
            key: int(value) if key == "inverse" and value in ("0", "1") else value
            for key, value in mapping.items()
        }
    text = text.strip()
    if _bracketed(text) and not _exists(text):
        pieces = _split(text)
        if len(pieces) == 2 and pieces[1] in ("0", "1", "True", "False"):
            return [_home(_unquoted(pieces[0])), int(pieces[1] in ("1", "True"))]
    return _home(_unquoted(text))
