"""Streamlines to every subject's space and back: how far the points are from where they began.

    python -m bundle.bench.round_trip --atlas output/learned_atlas --work output/round_trip

Lines between random voxels of the template are moved to each subject, and from there back to the
template, by ``warp-streamlines``. There and back it takes the two files of the bundle's fields;
with ``--inverse`` one file and its inverse point by point. Prints the distance of the points from
where they began, in voxels: median, 99th percentile and largest, over all subjects, and how far the
fields had moved them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.spatial.fields import field_names
from scripts.tractograms import Streamlines, open_tractogram, write_tractogram

ROOT = Path(__file__).resolve().parents[2]
LINES, POINTS = 500, 40
NAME = "lines.trk"


def lines_in(template: Any) -> Streamlines:
    """Lines whose ends are in the template's support."""
    values = np.asarray(template.dataobj)
    inside = np.argwhere((values > 0).reshape(*values.shape[:3], -1).any(axis=-1))
    ends = inside[np.random.default_rng(0).integers(0, len(inside), (LINES, 2))]
    along = np.linspace(0, 1, POINTS)[:, None]
    voxels = [first + along * (last - first) for first, last in ends]
    points = [nib.affines.apply_affine(template.affine, one) for one in voxels]
    return Streamlines.of([one.astype(np.float32) for one in points])


def warp(options: argparse.Namespace, output: Path, *words: str) -> None:
    """`warp-streamlines`, as a user runs it."""
    command = [
        sys.executable, "-m", "bundle", "warp-streamlines", f"--atlas_dir={options.atlas}",
        f"--output_dir={output}", f"--warp_streamlines#reference={options.atlas}/atlas_mean.nii.gz",
        *words,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Move, move back, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--atlas", type=Path, required=True, help="a published atlas with fields")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--inverse", action="store_true", help="back by the inverse of one file")
    options = parser.parse_args(arguments)
    options.atlas, options.work = options.atlas.absolute(), options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    suffix = field_names("")[0]
    names = sorted(
        path.name.removesuffix(suffix) for path in (options.atlas / "fields").glob(f"*{suffix}")
    )
    template: Any = nib.load(options.atlas / "atlas_mean.nii.gz")
    lines = lines_in(template)
    write_tractogram(options.work / NAME, lines, template.shape[:3], template.affine)
    there, back = options.work / "there", options.work / "back"
    subjects = f"--warp_streamlines#subjects={names}"
    warp(options, there, subjects, "--warp_streamlines#direction=to_subject",
         f"--warp_streamlines#tractogram={options.work}/{NAME}")  # fmt: skip
    home = f"{there}/warped_streamlines/{{subject}}/{NAME}"
    words = [subjects, f"--warp_streamlines#tractogram={home}"]
    if options.inverse:  # the file that moved them there, inverted
        file = f"{options.atlas}/fields/{field_names('{subject}')[0]}"
        words.append(f"--warp_streamlines#transforms=[['{file}', 1]]")
    warp(options, back, *words)
    voxel = float(np.mean(nib.affines.voxel_sizes(template.affine)))
    moved: list[np.ndarray] = []
    apart: list[np.ndarray] = []
    for name in names:
        for base, found in ((there, moved), (back, apart)):
            read = open_tractogram(base / "warped_streamlines" / name / NAME).read()
            found.append(np.linalg.norm(read.points - lines.points, axis=1) / voxel)
    for title, values in (("moved by, voxels", moved), ("error, voxels", apart)):
        every = np.concatenate(values)
        middle, high = np.quantile(every, (0.5, 0.99))
        print(f"{title:20} median {middle:.4f}, 99 % {high:.4f}, largest {every.max():.4f}")


if __name__ == "__main__":
    main()
