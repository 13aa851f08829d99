"""Attacks on what lies on disk: folders of others, damage, changes meanwhile; see `attacks`.

Each attack runs the command line in a separate process. The right outcome is the status of
docs/commands.md, one line that names the file, no traceback, and nothing lost.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.bundle  # noqa: F401 (imported once, for all processes)
import nibabel as nib
import numpy as np

from bundle.bench.attacked_jobs import Job
from bundle.bench.attacks import Outcome, attack
from bundle.bench.faults import COHORT_ONLY, TINY, content, write_cohort
from bundle.bench.forked_jobs import Ended
from scripts.runtime.lock import SharedLock

__all__: list[str] = []

_SHAPE = (12, 12, 12)
_CPU = "--learned_atlas#device=cpu"


class _Bench(Job):
    """A cohort, and jobs over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_cohort(folder / "d", 5, _SHAPE)

    def over(
        self, verb: str, *words: str, watch: Callable[[int], None] | None = None, out: str = "o",
        models: str = "m", data: str = "d",
    ) -> Ended:  # fmt: skip
        """A verb over the cohort."""
        folders = [f"--dataset_dir={self.folder / data}", f"--output_dir={self.folder / out}"]
        if verb in ("train", "export", "register"):
            folders.append(f"--ckpt_dir={self.folder / models}")
        settings = {"train": TINY, "average": COHORT_ONLY}.get(verb, (_CPU,))
        return self.run(verb, *folders, *settings, *words, watch=watch)


# ---------------------------------------------------------------------------------------------
# What is replaced
# ---------------------------------------------------------------------------------------------


@attack("what is replaced")
def what_is_replaced(folder: Path) -> Iterator[Outcome]:
    """Folders and files of others where results would go."""
    bench = _Bench(folder)
    inside = ("--learned_atlas#output_subdir=d",)
    ended = bench.over("train", *inside, out=".")
    yield bench.refused("`train`: the atlas would take the dataset's place", ended, 7, "/d: ")

    def holding(path: str, text: str = "mine") -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)

    cases = (
        ("average", "o/atlas/JHU-labels.nii.gz", ()),
        ("barycentre", "o/barycentre/notes.txt", COHORT_ONLY),
        ("train", "m/run_state/notes.txt", ()),
        ("train", "m/model.pt", ()),
        ("train", "o/learned_atlas/mine.nii.gz", ()),
    )
    for verb, path, more in cases:
        holding(path)
        ended = bench.over(verb, *more)
        kept = (folder / path).read_text() == "mine"
        one = bench.refused(f"`{verb}`: `{path}` is somebody else's", ended, 7, Path(path).name)
        yield Outcome(one.tried, one.held and kept, one.message)
        (folder / path).unlink()
    done = bench.over("train")
    if done.status != 0:
        raise RuntimeError(done.output)
    holding("o/registered/sub-0001/anat/T1w.nii.gz")
    ended = bench.over("register")
    yield bench.refused("`register`: raw data in `registered/<subject>`", ended, 7, "anat/T1w")
    holding("o/learned_atlas/fields/notes.txt")
    ended = bench.over("export")
    yield bench.refused("`export`: a file was added to the atlas", ended, 7, "fields/notes.txt")
    for words in (("--output_dir=",), ("--output_dir= ",), ("--ckpt_dir=",)):
        ended = bench.over("train", *words)
        yield bench.refused(f"`train {words[0]}`: an empty path", ended, 2, "is empty")


# ---------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------


@attack("damaged checkpoints")
def damaged_checkpoints(folder: Path) -> Iterator[Outcome]:
    """A bit flipped in a model, and in what an unfinished run goes on from."""
    bench, rng = _Bench(folder), random.Random(1)

    def flip(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)

    done = bench.over("train", out="whole", models="whole_m")
    if done.status != 0:
        raise RuntimeError(done.output)
    expected = content(folder / "whole" / "learned_atlas")
    believed, refused = 0, done
    for _ in range(10):
        (folder / "m").mkdir(exist_ok=True)
        shutil.copy(folder / "whole_m" / "model.pt", folder / "m")
        flip(folder / "m" / "model.pt")
        ended = bench.over("register")
        believed += ended.status != 6 or "Traceback" in ended.output
        refused = ended
    yield bench.outcome("`register`: a bit of `model.pt`, 10 times", refused, believed == 0)
    shutil.rmtree(folder / "m")

    for name in ("training.pt", "refinement/state.pt", "fine_tuning.pt"):
        file = folder / "m" / "run_state" / name
        before = file.with_name(file.name.replace(".pt", ".previous.pt"))

        def kill(process: int, files: tuple[Path, Path] = (before, file)) -> None:
            written = lambda: all(one.exists() for one in files)  # noqa: E731
            bench.until(written, lambda: os.kill(process, 9))(process)

        bench.over("train", watch=kill)
        flip(file)
        ended = bench.over("train")
        same = ended.status == 0 and content(folder / "o" / "learned_atlas") == expected
        yield bench.outcome(f"`train` killed, a bit of `{name}` flipped", ended,
                         same or (ended.status == 6 and name in ended.output))  # fmt: skip
        for left in ("m", "o"):
            shutil.rmtree(folder / left)
    yield _damaged_velocity(bench, flip, expected)


def _damaged_velocity(
    bench: _Bench, flip: Callable[[Path], None], expected: dict[str, str]
) -> Outcome:
    """A velocity of the finished round, whose subject the round under way has not reached."""
    rounds = bench.folder / "m" / "run_state" / "refinement"

    def kill(process: int) -> None:
        begun = (rounds / "round-001" / "000000.pt").exists
        bench.until(begun, lambda: os.kill(process, 9))(process)

    bench.over("train", watch=kill)
    flip(rounds / "round-000" / "000004.pt")
    ended = bench.over("train")
    same = ended.status == 0 and content(bench.folder / "o" / "learned_atlas") == expected
    return bench.outcome(
        "`train` killed, a bit of a finished round's velocity flipped", ended, same
    )


# ---------------------------------------------------------------------------------------------
# Changes meanwhile
# ---------------------------------------------------------------------------------------------


@attack("changes meanwhile")
def changes_meanwhile(folder: Path) -> Iterator[Outcome]:
    """A map that changes while training reads it; a run state that changes while it is exported."""
    bench = _Bench(folder)
    first = bench.data / "sub-0001.nii.gz"
    image: Any = nib.load(first)
    values = np.roll(image.get_fdata(), 2, 0).astype(np.float32)
    nib.save(nib.Nifti1Image(values, image.affine), folder / "other.nii.gz")
    (folder / "garbage.nii.gz").write_bytes(b"xx" * 999)
    original = first.read_bytes()
    for what, cache in (("other", "ram"), ("other", "none"), ("garbage", "disk"), ("gone", "ram")):

        def change(what: str = what) -> None:
            if what == "gone":
                first.unlink()
            else:
                shutil.copy(folder / f"{what}.nii.gz", folder / "new.nii.gz")
                (folder / "new.nii.gz").replace(first)

        begun = bench.until((folder / "m/run_state/run.json").exists, change)
        ended = bench.over("train", f"--learned_atlas#cohort#cache={cache}", watch=begun)
        nothing = not (folder / "o" / "learned_atlas").exists()
        one = bench.refused(f"`train`, cache {cache}: a map is {what}", ended, 3, first.name)
        yield Outcome(one.tried, one.held and nothing, one.message)
        first.write_bytes(original)
        shutil.rmtree(folder / "m")
    for name, seed in (("a", 0), ("b", 5)):
        done = bench.over("train", f"--learned_atlas#optimizer#seed={seed}", out=name,
                         models=f"m{name}")  # fmt: skip
        if done.status != 0:
            raise RuntimeError(done.output)
    state = folder / "m" / "run_state"
    for what in ("cleared", "another run's"):
        shutil.copytree(folder / "ma", folder / "m")

        def change_state(what: str = what) -> None:
            shutil.rmtree(state)
            if what != "cleared":
                shutil.copytree(folder / "mb" / "run_state", state)

        begun = bench.until(lambda: any(folder.glob("x/.*staging*/fields/sub-0002*")), change_state)
        ended = bench.over("export", out="x", watch=begun)
        yield bench.refused(f"`export`: the run state is {what}", ended, 6, "refinement")
        shutil.rmtree(folder / "m")
    shutil.copytree(folder / "ma", folder / "m")
    reader = SharedLock(folder / "m")
    ended = bench.over("train", out="y")
    yield bench.refused("`train` while another process exports", ended, 7, f"process {os.getpid()}")
    reader.release()


# ---------------------------------------------------------------------------------------------
# What can be known at the start
# ---------------------------------------------------------------------------------------------


@attack("known at the start")
def known_at_the_start(folder: Path) -> Iterator[Outcome]:
    """What keeps a job from publishing: nothing may be computed before it is reported."""
    bench = _Bench(folder)
    target = folder / "o" / "learned_atlas"
    target.parent.mkdir()
    target.write_text("in the way")
    yield bench.refused("a file in the atlas's place", bench.over("train"), 7, "learned_atlas")
    target.unlink()
    target.mkdir()
    if os.geteuid() == 0 and _told(["mount", "-t", "tmpfs", "none", str(target)]):
        try:
            ended = bench.over("train")
        finally:
            subprocess.run(["umount", target], check=True)
        yield bench.refused("the atlas's folder is a mount point", ended, 7, "mount point")
    if os.geteuid() == 0 and _told(["chattr", "+i", str(target)]):
        try:
            ended = bench.over("train")
        finally:
            subprocess.run(["chattr", "-i", target], check=True)
        yield bench.refused("the atlas's folder is immutable", ended, 7, "immutable")


def _told(command: list[str]) -> bool:
    """Whether the system does something that it may not allow here."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
