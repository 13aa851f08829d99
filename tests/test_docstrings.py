"""Docstrings: the arguments that they describe are those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def described(docstring: str) -> list[str]:
    """Names in the section Args, whose entries are indented by four blanks."""
    _, _, section = docstring.partition("\nArgs:\n")
    entries = re.match(r"(?:(?:    .*)?\n)*", f"{section}\n")
    assert entries is not None
    found = re.findall(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): ", entries[0], re.MULTILINE)
    return [name.lstrip("*") for names in found for name in names.split(", ")]


def documented(tree: ast.Module) -> Iterator[tuple[str, list[str], list[str]]]:
    """Of each function or class with such a section: its name, described names, parameters."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        names = described(ast.get_docstring(node) or "")
        if not names:
            continue
        if isinstance(node, ast.FunctionDef):
            yield node.name, names, parameters(node)
            continue
        makers = [
            one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"
        ]
        fields = [
            one.target.id
            for one in node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        ]
        if makers or node.decorator_list:  # a dataclass; others have the arguments of their base
            yield node.name, names, parameters(makers[0]) if makers else fields


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    single = [one for one in (given.vararg, given.kwarg) if one is not None]
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *single]
    return [one.arg for one in every if one.arg not in ("self", "cls")]


def test_described_arguments_are_those_of_the_code() -> None:
    wrong, count = [], 0
    for folder in ("scripts", "bundle"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name, names, code in documented(ast.parse(path.read_text(encoding="utf-8"))):
                count += 1
                if unknown := set(names) - set(code):
                    wrong.append(f"{path.relative_to(ROOT)}: {name} has no {sorted(unknown)}")
    assert not wrong
    assert count > 500
