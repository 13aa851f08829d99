"""How busy the cores are while a cohort is read, registered, averaged and published.

    python -m bundle.bench.cohort_throughput --subjects 60 --shape 91 109 91 --threads 2

Maps of a few subjects of the phantom, each many times with other counts, go through the stages of
`build`: reading and checks, rounds of the network that ships, a round of instance optimisation, and
emission of the maps without and with fields. For each stage: seconds and CPU-seconds a subject,
and the share of the threads' cores that are busy.

"Busy" counts cores for which this process has work, sampled fifty times a second: a thread that
runs, or that waits for a core which another program uses. CPU-seconds by seconds and cores is given
too; on a machine with other work it is lower.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from scripts.atlas.building import build_network
from scripts.atlas.components import (
    atlas_loss,
    cohort_refinement,
    cohort_transforms,
    train_dataset,
)
from scripts.cohort import Cohort, read_cohort
from scripts.phantom import write_demo_cohort
from scripts.publishing.components import cohort_publisher
from scripts.settings.atlas import LearnedAtlasConfig

_SAMPLED_EVERY = 0.02  # seconds
_ORIGINALS = 4


class BusyCores:
    """Samples how many of this process's threads have work, up to a number of cores.

    Args:
        cores: number of cores.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> BusyCores:
        self._thread.start()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def share(self) -> float:
        """Mean share of the cores that have work."""
        return sum(self.samples) / max(1, len(self.samples)) / self.cores

    def _sample(self) -> None:
        me = str(threading.get_native_id())
        while not self._stop.wait(_SAMPLED_EVERY):
            running = 0
            for task in Path("/proc/self/task").iterdir():
                try:
                    state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:  # it has just ended
                    continue
                running += task.name != me and state in "RD"
            self.samples.append(min(self.cores, running))


def write_maps(folder: Path, subjects: int, shape: tuple[int, int, int]) -> Path:
    """Maps of a few subjects of the phantom, each many times with other counts."""
    write_demo_cohort(folder / "demo", subjects=_ORIGINALS, held_out=0, shape=shape)
    originals = [
        nib.Nifti1Image.from_filename(path)
        for path in sorted((folder / "demo").rglob("fdt_paths.nii.gz"))[:_ORIGINALS]
    ]
    data = folder / "data"
    data.mkdir()
    for number in range(subjects):
        image = originals[number % len(originals)]
        counts = np.asarray(image.dataobj) * (1 + number // len(originals) / 100)
        nib.save(
            nib.Nifti1Image(counts.astype(np.float32), image.affine),
            data / f"sub-{number:04d}.nii.gz",
        )
    return data


def stages(folder: Path, data: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The stages of a run, in order, each by its name."""
    settings = LearnedAtlasConfig.load(
        {
            "device": "cpu", "min_subjects": 1, "presence_value": 1e-3,
            "cohort": {"layout": "flat", "normalisation": "none", "cache": "none"},
            "model": {"initial": "shipped"},
            "refine": {"network_rounds": 3, "rounds": 1, "iterations": 8, "final_lr": 0.02},
        }
    )  # fmt: skip
    read: list[Cohort] = []
    yield (
        "reading and checks",
        lambda: read.append(read_cohort(data, settings.cohort_request())),
    )
    cohort = read[0]
    dataset = train_dataset(
        None, cohort_transforms(cohort, settings), settings, folder / "cache", cohort
    )
    network = build_network(cohort, settings, dataset)
    loss = atlas_loss(cohort.grid.spacing, settings, network)
    refinement = cohort_refinement(network, dataset, loss, folder / "state", settings)
    rounds = refinement.rounds
    refinement.rounds = refinement.network_rounds
    yield "three rounds of the network", refinement.run
    refinement.rounds = rounds
    yield "a round of instance optimisation", refinement.run
    for fields in (False, True):
        changed = settings.model_copy(update={"save_fields": fields})
        publisher = cohort_publisher(network, cohort, changed, refinement, folder / f"{fields}")
        yield f"emission {'with' if fields else 'without'} fields", publisher.publish


def digest(folder: Path) -> str:
    """Of the published maps and fields."""
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*.nii.gz")):
        content.update(path.name.encode())
        content.update(np.ascontiguousarray(nib.Nifti1Image.from_filename(path).dataobj).tobytes())
    return content.hexdigest()[:16]


def main() -> None:
    """Print a line per stage, and everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--shape", type=int, nargs=3, default=(91, 109, 91))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_maps(folder, arguments.subjects, tuple(arguments.shape))
        for stage, work in stages(folder, data):
            start, used = time.perf_counter(), time.process_time()
            with BusyCores(arguments.threads) as busy:
                work()
            wall, cpu = time.perf_counter() - start, time.process_time() - used
            rows[stage] = {
                "seconds": wall / arguments.subjects,
                "cpu_seconds": cpu / arguments.subjects,
                "busy": busy.share,
                "cpu_by_wall_and_cores": cpu / wall / arguments.threads,
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
            print(stage, json.dumps({k: round(v, 3) for k, v in rows[stage].items()}), flush=True)
        digests = {name: digest(folder / name) for name in ("False", "True")}
    print(json.dumps({**vars(arguments), "digests": digests, "stages": rows}, indent=1))


if __name__ == "__main__":
    main()
