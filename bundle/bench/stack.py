"""Registration of stacks of sections beside pystackreg, SimpleITK, OpenCV and a loop of Adam.

    python -m bundle.bench.stack straight <folder>
    python -m bundle.bench.stack long <folder>
    python -m bundle.bench.stack banana <folder>
    python -m bundle.bench.stack em <folder>
    python -m bundle.bench.stack lung <folder> --data <landmarks/cima_lung3>
    python -m bundle.bench.stack mouse <folder> --data <stack/glta_mouse>
    python -m bundle.bench.stack memory <folder> --sections 100 400

Each part writes its figures as JSON and as a Markdown table into the folder. Times are
CPU-seconds of one thread. The peers are those of `bundle.bench.stack_peers`; one that isn't
installed is left out and named.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bundle.bench.stack_memory import memory
from bundle.bench.stack_real import lung, mouse
from bundle.bench.stack_synthetic import banana, em, long, straight


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    names = list(rows[0])

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(cell(row[name]) for name in names)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run a part."""
    parts = {
        "straight": straight, "long": long, "banana": banana, "em": em, "lung": lung,
        "mouse": mouse, "memory": memory,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=parts)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="of lung and mouse")
    parser.add_argument("--count", type=int, help="sections, instead of the part's default")
    parser.add_argument("--size", type=int, help="pixels a side (straight: 512, memory: 2048)")
    parser.add_argument("--sigma", type=float, default=8.0, help="of the placement (banana)")
    parser.add_argument("--bend", type=float, default=60.0, help="pixels (banana)")
    parser.add_argument("--sections", type=int, nargs="+", default=[100, 400], help="of memory")
    parser.add_argument("--pairs", type=int, help="max_pairs of memory: the rest follows")
    parser.add_argument("--workers", type=int, default=4, help="of memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = parts[options.part](options)
    (options.folder / f"{options.part}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.folder / f"{options.part}.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
