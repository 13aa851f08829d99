"""Draws the plain average beside the learned template: the picture of the README.

python -m bundle.bench.picture output/learned_atlas docs/pictures/average_and_learned.png

With ``--before`` another atlas of the same cohort stands between, such as the network's alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from bundle.bench.atlas_quality import subject_density
from scripts.spatial.projections import three_views


def draw(atlas: Path, target: Path, before: Path | None = None) -> None:
    """Rows of three views each: a subject, the average of the maps as they are, the template.

    Args:
        atlas: a published folder.
        target: the PNG.
        before: another one of the same cohort, by the network alone; its template stands in the
            place of the subject.
    """
    about = json.loads((atlas / "atlas.json").read_text())
    shape = tuple(about["cohort"]["grid"]["shape"])
    offset = about["log_offset"]
    subjects = [subject_density(one, shape)[0] for one in about["cohort"]["subjects"]]
    template = _template(atlas)
    average = {f"plain average of {len(subjects)} subjects": np.mean(subjects, axis=0)}
    if before is None:
        name = about["cohort"]["subjects"][0]["subject"]
        rows = {f"one subject ({name})": subjects[0], **average, "learned template": template}
    else:
        rows = {
            **average,
            "after the network alone": _template(before),
            "after instance optimisation": template,
        }
    draw_rows(rows, offset, target, float(template.max()))


def draw_rows(
    rows: Mapping[str, np.ndarray], offset: float, target: Path, brightest: float, dpi: int = 100
) -> None:
    """A row each, three views, logarithmic.

    Args:
        rows: density by title.
        offset: of the logarithm.
        target: the PNG.
        brightest: density at which the colours end.
        dpi: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(rows)), facecolor="black", layout="constrained")
    top = float(np.log1p(brightest / offset))
    for place, (title, volume) in enumerate(rows.items(), start=1):
        axis = figure.add_subplot(len(rows), 1, place)
        axis.imshow(three_views(np.log1p(volume / offset)), cmap="inferno", vmin=0, vmax=top)
        axis.set_title(title, color="white", fontsize=11, loc="left")
        axis.axis("off")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=dpi)


def _template(atlas: Path) -> np.ndarray:
    return np.asarray(nib.load(atlas / "atlas_mean.nii.gz").dataobj)  # type: ignore[attr-defined]


def main() -> None:
    """Draw the picture of one atlas."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("atlas", type=Path, help="the published folder")
    parser.add_argument("target", type=Path, help="the PNG to write")
    parser.add_argument("--before", type=Path, help="an atlas of the cohort by the network alone")
    arguments = parser.parse_args()
    draw(arguments.atlas, arguments.target, arguments.before)


if __name__ == "__main__":
    main()
