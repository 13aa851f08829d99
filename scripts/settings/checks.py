"""Rules that several settings share: paths, placeholders and names. A check raises ValueError."""

from __future__ import annotations

import re
from collections import Counter

from scripts.runtime.inside import file_name_key, name_reason

__all__ = [
    "check_folder_names",
    "check_given",
    "check_names",
    "check_not_blank",
    "check_placeholders",
    "check_relative",
]


def check_not_blank(path: str | None) -> str | None:
    """Refuse a blank path of a setting that may be None."""
    if path is not None and not path.strip():
        raise ValueError("is empty")
    return path


def check_given(path: str | None) -> str | None:
    """Refuse the blank path of a file that a job needs."""
    if path is not None and not path.strip():
        raise ValueError("is missing")
    return path


def check_relative(path: str) -> None:
    """Refuse a path that is blank, absolute, or could leave its folder."""
    if not path.strip():
        raise ValueError("is empty")
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", path):
        raise ValueError("contains a control character")
    if "\\" in path:
        raise ValueError("contains a backslash")
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        raise ValueError("is absolute")
    parts = path.split("/")
    if ".." in parts:
        raise ValueError("contains '..'")
    if "" in parts or "." in parts:
        raise ValueError("contains an empty part or '.'")


def check_placeholders(pattern: str, known: tuple[str, ...]) -> None:
    for name in re.findall(r"\{([^{}]*)\}", pattern):
        if name not in known:
            raise ValueError(f"has an unknown placeholder {{{name}}}")
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise ValueError("has an unmatched brace")
    for part in pattern.split("/"):
        if "**" in part and part != "**":
            raise ValueError("has '**' beside other characters in a part")
    if pattern.split("/")[-1] == "**":
        raise ValueError("has no file name at the end")


def check_names(names: list[str]) -> None:
    for name in names:
        if not name.strip():
            raise ValueError("has an empty name")
    if len(set(names)) < len(names):
        raise ValueError("contains a name twice")


def check_folder_names(names: list[str]) -> None:
    """Refuse names of subjects, one at least, that no folder has, or that one folder could have."""
    if not names:
        raise ValueError("is empty")
    if len(set(names)) < len(names):
        raise ValueError("contains a name twice")
    counts = Counter(map(file_name_key, names))
    for name in names:
        if name_reason(name) is not None or name.startswith("."):
            raise ValueError(f"has a name that can't be a folder name: {name!r}")
        if counts[file_name_key(name)] > 1:
            raise ValueError(f"has two names that some file systems take for one: {name!a}")
