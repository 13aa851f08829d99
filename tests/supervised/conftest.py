"""Small stores of pairs that several tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_pairs import SHAPE, sections

from scripts.settings.make_pairs import MakePairsConfig
from scripts.supervised.making import PairMaker


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    """Stores of pairs by the job itself; settings given are laid over small ones."""

    def make(
        name: str = "pairs", shape: tuple[int, ...] = SHAPE, images: int = 4, **changes: Any
    ) -> Path:
        source = tmp_path / f"{name}_sections.npy"
        np.save(source, sections(images, shape))
        block: dict[str, Any] = {
            "reference": [str(source)],
            "count": 6,
            "dims": len(shape),
            "affine": {"translation": 2.0},
            "elastic": {"rms": 1.0, "width": 8.0, "anchor": 0.25},
        }
        if len(shape) == 3:
            block["reference"] = []
            for number, volume in enumerate(sections(images, shape)):
                path = tmp_path / f"{name}_{number}.npy"
                np.save(path, volume)
                block["reference"].append(str(path))
        for key, value in changes.items():
            block[key] = {**block.get(key, {}), **value} if isinstance(value, dict) else value
        return PairMaker(MakePairsConfig.load(block), tmp_path / name).run()

    return make
