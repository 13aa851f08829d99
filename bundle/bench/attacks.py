"""Tries attacks on the bundle, and prints whether each one was handled correctly.

    python -m bundle.bench.attacks                    # every kind
    python -m bundle.bench.attacks --only "text is code" --only "names of folders"

A kind is a function that gets an empty folder and yields an `Outcome` for each attack that it
tries. It is registered by `attack`, in a module that `MODULES` names. The status is 1 if any attack
succeeds.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.errors import shown

__all__ = ["KINDS", "Outcome", "attack", "table", "tried"]

MODULES = (
    "bundle.bench.attacks_on_trust",
    "bundle.bench.attacks_on_storage",
    "bundle.bench.attacks_on_pairs",
    "bundle.bench.attacks_on_stacks",
    "bundle.bench.attacks_on_streamlines",
    "bundle.bench.attacks_on_processes",
)
"""Modules that register kinds; imported by `main`."""


@dataclass(frozen=True)
class Outcome:
    """The result of an attack.

    Attributes:
        tried: the attack, in a few words.
        held: whether the bundle did the right thing.
        message: the bundle's message, or what went wrong.
    """

    tried: str
    held: bool
    message: str = ""


Kind = Callable[[Path], Iterator[Outcome]]

KINDS: dict[str, Kind] = {}
"""All kinds by name, in the order of the table."""


def attack(name: str) -> Callable[[Kind], Kind]:
    """Register a kind of attack under a name.

    Raises:
        ValueError: the name is already used.
    """

    def register(kind: Kind) -> Kind:
        if name in KINDS:
            raise ValueError(f"{name!r}: there is an attack of that name already")
        KINDS[name] = kind
        return kind

    return register


def tried(names: list[str]) -> dict[str, list[Outcome]]:
    """Try kinds, each in a separate folder that is removed afterwards.

    Args:
        names: keys of `KINDS`.
    """
    outcomes = {}
    for name in names:
        # No TemporaryDirectory: it would also be removed at the end of each forked job.
        folder = Path(tempfile.mkdtemp(prefix="attack-"))
        try:
            outcomes[name] = list(KINDS[name](folder))
        finally:
            shutil.rmtree(folder)
    return outcomes


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """Kind, attack, held, message, as Markdown."""
    lines = ["| kind | tried | held | message |", "|---|---|---|---|"]
    for name, ones in outcomes.items():
        for one in ones:
            cells = (name, one.tried, "yes" if one.held else "**no**", one.message)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return shown(text).replace("|", "\\|")


def main() -> int:
    """Run the selected attacks and print the table."""
    for module in MODULES:
        importlib.import_module(module)
    # As a program this module is `__main__`; kinds are registered in the imported module.
    from bundle.bench import attacks

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(attacks.KINDS), help="a kind")
    options = parser.parse_args()
    outcomes = attacks.tried(options.only or list(attacks.KINDS))
    print(table(outcomes))
    return 0 if all(one.held for ones in outcomes.values() for one in ones) else 1


if __name__ == "__main__":
    sys.exit(main())
