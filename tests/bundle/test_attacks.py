"""The registry of attacks, and its table."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.bench import attacks
from bundle.bench.attacks import Outcome


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "KINDS", {})


def test_kinds_are_tried_in_an_empty_folder_each_and_reported_in_a_table(kinds: None) -> None:
    folders = []

    @attacks.attack("one")
    def one(folder: Path) -> Iterator[Outcome]:
        folders.append(folder)
        assert list(folder.iterdir()) == []
        yield Outcome("a | b", True, "1: \x1b[2J")
        yield Outcome("c", False)

    result = attacks.tried(["one"])
    assert not folders[0].exists()
    assert attacks.table(result).splitlines() == [
        "| kind | tried | held | message |",
        "|---|---|---|---|",
        "| one | a \\| b | yes | 1: \\x1b[2J |",
        "| one | c | **no** |  |",
    ]
    with pytest.raises(ValueError, match="'one'"):
        attacks.attack("one")(one)


@pytest.mark.parametrize("module", attacks.MODULES)
def test_every_module_registers_kinds(module: str) -> None:
    importlib.import_module(module)
    assert any(kind.__module__ == module for kind in attacks.KINDS.values())
