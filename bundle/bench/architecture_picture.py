"""Draws the architecture: the rooms of `scripts/` on their floors, and the imports between them.

    python -m bundle.bench.architecture_picture docs/pictures/architecture.png

Floors come from the import contract in ``pyproject.toml``, arrows from the imports in the code.
"""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]


def floors(project: Path) -> list[list[str]]:
    """Rooms by floor, the top floor first, as the contract lists them."""
    contract = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = contract["contracts"][0]["layers"]
    return [re.findall(r"scripts\.(\w+)", layer) for layer in layers if "scripts." in layer]


def imports(scripts: Path) -> Counter[tuple[str, str]]:
    """Number of import statements of a room that name another, ``(importer, imported)``."""
    result: Counter[tuple[str, str]] = Counter()
    for path in scripts.rglob("*.py"):
        room = path.relative_to(scripts).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts."):
                other = str(node.module).split(".")[1]
                if other != room:
                    result[room, other] += 1
    return result


def draw(rooms: list[list[str]], arrows: Counter[tuple[str, str]], target: Path) -> None:
    """Boxes on floors; the width of an arrow grows with the number of imports."""
    figure, axes = plt.subplots(figsize=(11, 13))
    place = {}
    for floor, names in enumerate(rooms):
        for i, name in enumerate(names):
            # every second floor is shifted a little, so that arrows pass between the boxes
            x = (i + 0.5) / len(names) + (0.07 if floor % 2 else -0.07) * (len(names) < 3)
            place[name] = (x, -float(floor))
    busiest = max(arrows.values())
    for (importer, imported), count in arrows.items():
        if importer not in place or imported not in place:
            continue
        axes.annotate(
            "",
            xy=place[imported],
            xytext=place[importer],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "tab:blue",
                "alpha": 0.15 + 0.6 * count / busiest,
                "linewidth": 0.5 + 3 * count / busiest,
                "shrinkA": 14,
                "shrinkB": 14,
                "connectionstyle": "arc3,rad=0.08",
            },
        )
    for name, (x, y) in place.items():
        axes.text(
            x, y, name, ha="center", va="center", fontsize=13,
            bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "black"},
        )  # fmt: skip
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-len(rooms) + 0.4, 0.6)
    axes.axis("off")
    figure.savefig(target, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="PNG file to write")
    target = parser.parse_args().target
    draw(floors(ROOT / "pyproject.toml"), imports(ROOT / "scripts"), target)


if __name__ == "__main__":
    main()
