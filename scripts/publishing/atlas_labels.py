"""The annotated atlas: label maps of the subjects fused in template space, as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.publishing.sidecars import sidecar_of, write_json
from scripts.runtime.tables import write_table
from scripts.spatial.grid import Grid
from scripts.spatial.label_fusion import LabelSums
from scripts.spatial.volumes import write_labels, write_map

__all__ = ["LABELS_FOLDER", "MAJORITY", "NAMES", "probability_name", "write_atlas_labels"]

LABELS_FOLDER = "labels"
MAJORITY, NAMES = "atlas_dseg.nii.gz", "atlas_dseg.tsv"
"""The majority map and its names, as BIDS names a discrete segmentation."""


def probability_name(label: int) -> str:
    """File name of a label's probability map.

    Example:
        >>> probability_name(17)
        'label-17_probseg.nii.gz'
    """
    return f"label-{label}_probseg.nii.gz"


def write_atlas_labels(
    folder: Path, sums: LabelSums, majority: np.ndarray, grid: Grid, names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Write the majority map, the table of names and a probability map per label.

    Args:
        folder: of the template's maps; must exist.
        sums: over the subjects that have labels.
        majority: of the sums, see `LabelSums.majority`.
        grid: of the template.
        names: of the labels; a label without one is called by its number.

    Returns:
        One entry a label for ``atlas.json``: ``index``, ``name``, ``subjects`` that have it.
    """
    voxel = float(abs(np.linalg.det(grid.affine[:3, :3])))
    write_labels(folder / MAJORITY, majority.reshape((1, *grid.shape, 1)[:4]), grid)
    about = {
        "Description": f"Most probable label over {sums.subjects} subjects; of equally probable "
        "ones the smallest",
        "Manual": False,
        "Atlas": None,
    }
    write_json(sidecar_of(folder / MAJORITY), about)
    (folder / LABELS_FOLDER).mkdir()
    rows = []
    for label in sums.labels:
        probability = sums.probability(label)
        path = folder / LABELS_FOLDER / probability_name(label)
        write_map(path, probability[None], grid)
        name = names.get(label, str(label))
        said = {"Description": f"Share of the subjects with the label {name}", "Units": "1"}
        write_json(sidecar_of(path), said)
        rows.append(
            {
                "index": label,
                "name": name,
                "subjects": sums.counts[label],
                "volume_mm3": round(voxel * int((majority == label).sum()), 3),
            }
        )
    with (folder / NAMES).open("w", newline="", encoding="utf-8") as file:
        write_table(file, ("index", "name", "subjects", "volume_mm3"), rows, tabs=True)
    return [{key: row[key] for key in ("index", "name", "subjects")} for row in rows]
