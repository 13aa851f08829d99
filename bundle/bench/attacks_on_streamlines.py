"""Attacks on streamlines, tracts and an atlas without a training; see `bundle.bench.attacks`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle  # noqa: F401 (imported once, for all processes)
import nibabel as nib
import numpy as np

from bundle.bench.attacked_inputs import ODD_NAMES
from bundle.bench.attacked_jobs import Job
from bundle.bench.attacks import Outcome, attack
from bundle.bench.attacks_on_trust import CODE
from bundle.bench.faults import COHORT_ONLY, TINY, content, write_cohort

__all__: list[str] = []


class _Atlas(Job):
    """An atlas of five subjects with odd names, and jobs over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        data = write_cohort(folder / "d", 5, (16, 16, 16))
        for number, name in enumerate(ODD_NAMES[:3], start=1):
            (data / f"sub-{number:04d}.nii.gz").rename(data / f"{name}.nii.gz")
        self.folders = (f"--dataset_dir={data}", f"--output_dir={folder}")

    def warp(self, *words: str, **more: Any) -> Any:
        return self.run("warp-streamlines", f"--output_dir={self.folder}", *words, **more)


@attack("atlas: without a training, streamlines, tracts")
def without_training(folder: Path) -> Iterator[Outcome]:
    """Odd names through `build`, `register --template`, `warp-streamlines` and `tract-stats`."""
    jobs = _Atlas(folder)
    ended = jobs.run("build", *jobs.folders, f"--ckpt_dir={folder / 'm'}", *COHORT_ONLY, TINY[0],
                     "--learned_atlas#refine#network_rounds=1", "--learned_atlas#refine#rounds=0",
                     "--learned_atlas#min_subjects=2")  # fmt: skip
    atlas = folder / "learned_atlas"
    if ended.status != 0:  # maps too small for the network: the rest needs an atlas all the same
        yield jobs.outcome("`build`: odd names", ended, jobs.one_line(ended, 2, 3))
        jobs.require(jobs.run("train", *jobs.folders, f"--ckpt_dir={folder / 'm'}", *TINY))
    else:
        yield jobs.outcome("`build`: odd names", ended, not list(folder.rglob("PWNED")))
    template = folder / "@t.nii.gz"
    shutil.copy(folder / "d" / "@x.nii.gz", template)
    words = ("register", *jobs.folders, f"--template={template}", *COHORT_ONLY, TINY[0])
    foreign = folder / "registered" / "@x" / "T1w.nii.gz"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    yield jobs.keeps("`register --template`: `registered/@x` holds raw data",
                     lambda: jobs.run(*words), foreign)  # fmt: skip
    shutil.rmtree(folder / "registered")
    sound = template.read_bytes()
    reports = lambda: any(folder.glob("registered/*/registration.json"))  # noqa: E731

    def change() -> None:
        image: Any = nib.load(folder / "d" / "sub-0005.nii.gz")
        nib.save(image, folder / "new.nii.gz")
        (folder / "new.nii.gz").replace(template)

    jobs.require(jobs.run(*words))
    expected = content(folder / "registered" / "sub-0004")
    shutil.rmtree(folder / "registered")
    ended = jobs.run(*words, watch=jobs.until(reports, change))
    whole = expected == content(folder / "registered" / "sub-0004")  # it is read once
    yield jobs.outcome("`register --template`: the template is replaced meanwhile", ended, whole)
    template.write_bytes(sound)
    yield from _streamlines(jobs, atlas)
    yield from _tracts(jobs)


def _streamlines(jobs: _Atlas, atlas: Path) -> Iterator[Outcome]:
    folder, subject = jobs.folder, "sub-0005"
    line = np.stack([np.full(20, 15.0), np.linspace(8, 22, 20), np.full(20, 15.0)], 1)
    reference: Any = nib.load(folder / "d" / "sub-0004.nii.gz")
    lines = nib.streamlines.Tractogram(
        [line.astype(np.float32)] * 3000, affine_to_rasmm=np.eye(4),
        data_per_streamline={"$x": np.ones((3000, 1), np.float32)},
    )  # fmt: skip
    header = {"voxel_to_rasmm": reference.affine, "dimensions": reference.shape,
              "voxel_sizes": (2, 2, 2), "voxel_order": "RAS"}  # fmt: skip
    source = folder / "l" / f"{CODE}.trk"
    source.parent.mkdir()
    nib.streamlines.save(lines, str(source), header=header)
    words = (f"--warp_streamlines#subjects=[{subject!r}]",
             f"--warp_streamlines#tractogram={source}")  # fmt: skip
    ended = jobs.warp(*words, f"--atlas_dir={atlas}")
    made = folder / "warped_streamlines" / subject / f"{CODE}.trk"
    held = jobs.done(ended) and made.is_file() and not list(folder.rglob("PWNED"))
    yield jobs.outcome(f"`warp-streamlines`: a tractogram named `{CODE}.trk`", ended, held)
    jobs.require(ended)
    foreign = made.with_name("notes.txt")
    foreign.write_text("mine")
    yield jobs.keeps("`warp-streamlines`: a file was added to its result",
                     lambda: jobs.warp(*words, f"--atlas_dir={atlas}"), foreign)  # fmt: skip
    foreign.unlink()
    sound = source.read_bytes()
    halves = lambda: any((folder / "warped_streamlines").glob(".*staging*/*"))  # noqa: E731

    def change() -> None:
        (folder / "new.trk").write_bytes(sound[:-400] + bytes(400))
        (folder / "new.trk").replace(source)

    ended = jobs.warp(*words, f"--atlas_dir={atlas}", watch=jobs.until(halves, change))
    yield jobs.refused("`warp-streamlines`: the tractogram is replaced meanwhile", ended, 3,
                       ".trk", "changed")  # fmt: skip
    field = next(atlas.glob(f"fields/{subject}_from-template*.nii.gz"))
    elsewhere = folder / "elsewhere.nii.gz"
    shutil.move(field, elsewhere)
    field.symlink_to(elsewhere)
    source.write_bytes(sound)
    ended = jobs.warp(*words, f"--atlas_dir={atlas}")
    yield jobs.refused(
        "`warp-streamlines`: a field is a link that leads out", ended, 3, "leads out"
    )
    field.unlink()
    shutil.move(elsewhere, field)


def _tracts(jobs: _Atlas) -> Iterator[Outcome]:
    folder = jobs.folder
    carried = folder / "carried"
    jobs.require(jobs.run("carry", f"--atlas_dir={folder / 'learned_atlas'}",
                          f"--output_dir={carried}"))  # fmt: skip
    ended = jobs.run("tract-stats", f"--output_dir={folder}", f"--carried_dir={carried}",
                     "--tract_stats#tracts=['a $frac{$ =1+1']")  # fmt: skip
    table = folder / "tract_statistics" / "tract_statistics.csv"
    rows = table.read_text("utf-8").splitlines() if table.exists() else []
    unsafe = [row for row in rows if row.startswith(("=", "+", "-", "@"))]
    yield jobs.outcome("`tract-stats`: odd names of subjects and tracts", ended,
                    jobs.done(ended) and bool(rows) and not unsafe)  # fmt: skip
    jobs.require(ended)
    foreign = folder / "tract_statistics" / "notes.txt"
    foreign.write_text("mine")
    yield jobs.keeps("`tract-stats`: a file was added to its result",
                     lambda: jobs.run("tract-stats", f"--output_dir={folder}",
                                      f"--carried_dir={carried}"), foreign)  # fmt: skip
    place = next(carried.glob(f"*/{'atlas_in_patient_space'}")).parent
    out = folder / "home"
    shutil.move(place, out)
    place.symlink_to(out)
    ended = jobs.run("tract-stats", f"--output_dir={folder / 'z'}", f"--carried_dir={carried}")
    yield jobs.refused("`tract-stats`: a subject's folder is a link that leads out", ended, 3,
                       "leads out")  # fmt: skip
