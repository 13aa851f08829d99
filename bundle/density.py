"""The verb ``density``: from tractograms to a map, with a progress bar."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tqdm import tqdm

from scripts.cohort import count_density
from scripts.errors import ConfigurationError
from scripts.runtime.storage import check_writable
from scripts.spatial.volumes import check_earlier_density, read_reference, write_density
from scripts.tractograms import open_tractogram

__all__ = ["write_map_of"]


def write_map_of(options: argparse.Namespace) -> str:
    """Count and write.

    Args:
        options: of the command line: tractograms, reference, output, weights, ends.

    Returns:
        A line that describes the result.

    Raises:
        TractAtlasError: a file can't be read or written, or stands in the map's place; then there
            is not a map.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    output: Path = options.output
    if not output.name.endswith((".nii", ".nii.gz")):
        raise ConfigurationError(f"--output {output}: must end with .nii or .nii.gz")
    check_writable(output.absolute().parent)
    check_earlier_density(output)
    for path in (options.reference, *options.tractograms, *map(Path, options.weights)):
        if output.exists() and path.exists() and output.samefile(path):
            raise ConfigurationError(
                f"--output {output}: is {path}, which is read; must be another"
            )
    grid = read_reference(options.reference)
    counts = [open_tractogram(path, options.vtk_space).count for path in options.tractograms]
    known = [count for count in counts if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    with tqdm(total=total, unit=" streamlines", unit_scale=True, disable=None) as bar:
        before = 0

        def progress(done: int, of: int | None) -> None:
            nonlocal before
            bar.update(done - before if done > before else done)  # the next tractogram
            before = done

        counter = count_density(
            options.tractograms, grid, options.weights, options.ends, progress, options.vtk_space
        )
    write_density(output, counter.density, grid)
    parts = [
        f"{counter.streamlines} streamlines",
        f"{int((counter.density > 0).sum())} voxels visited",
    ]
    if options.weights:
        parts.append(f"weights sum to {counter.weight:.6g}")
    if counter.outside:
        what = "ends" if options.ends else "points"
        parts.append(
            f"{counter.outside} {what} of {counter.left} streamlines are outside the grid and are "
            f"left out ({counter.missed} streamlines touch no voxel)"
        )
    return f"{output}: {', '.join(parts)}"
