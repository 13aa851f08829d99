"""The demo stack: sections of a made-up organ with their true transforms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from scripts.errors import StorageError
from scripts.phantom.serial_sections import SerialSections
from scripts.runtime.storage import publish_folder
from scripts.stack.ome_zarr import OmeZarr

__all__ = ["DEMO", "write_demo_stack"]

DEMO = SerialSections(count=24, shape=(256, 320), seed=7, torn=(9,), ruined=(15,), blank=(19,))
"""24 sections; of one half is gone, one shows something else, one is empty."""

_SPACING = (50.0, 10.0, 10.0)


def write_demo_stack(folder: str | Path, sections: SerialSections = DEMO) -> str:
    """Write ``sections.zarr``, ``labels.zarr`` and ``truth.json`` into a folder.

    Labels are 1 where the section shows tissue. ``truth.json`` is a file of placements: the true
    transforms, as ``register_stack#placement`` reads them.

    Args:
        folder: is created; an earlier demo in it is replaced.
        sections: what to write.

    Returns:
        the path of ``sections.zarr``.

    Raises:
        StorageError: the folder contains something else, or can't be written.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / "truth.json").is_file():
        raise StorageError(
            f"{target}: contains something other than a demo stack; choose another folder"
        )
    with publish_folder(target) as staging:
        shape = (sections.count, *sections.shape)
        images = OmeZarr(staging / "sections.zarr", shape, 0, np.dtype(np.uint8))
        labels = OmeZarr(staging / "labels.zarr", shape, 0, np.dtype(np.uint8), labels=True)
        for one, name in ((images, "sections"), (labels, "labels")):
            one.create(name, "micrometer", _SPACING, (0.0, 0.0, 0.0), {})
        for z in range(sections.count):
            section = sections.section(z)
            images.write(z, section)
            labels.write(z, (section < 190).astype(np.uint8))
        truth = {
            "shape": list(shape),
            "spacing": list(_SPACING),
            "unit": "micrometer",
            "seed": sections.seed,
            "torn": list(sections.torn),
            "ruined": list(sections.ruined),
            "blank": list(sections.blank),
            "sections": [
                {"index": z, "composed": matrix.tolist()}
                for z, matrix in enumerate(sections.composed)
            ],
        }
        (staging / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", "utf-8")
    return str(target / "sections.zarr")
