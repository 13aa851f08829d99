"""Kills train, export, average and register at random moments, and checks what is left.

    python -m bundle.bench.faults --tries 30

Every try is a separate process: it runs the job like the command line, on a cohort of five subjects
of 16x16x16 voxels, and gets SIGTERM, SIGINT or SIGKILL at random, either at a random moment of the
job's measured duration or just before a random one of its file operations (open, rename, remove,
...), which also reaches very short intervals. Half of the tries start with an earlier atlas, made
with other settings, in the output folder. After the kill

- the published folder is the earlier one or the complete new one, or is missing if there was none;
- every file with its final name can be opened;
- the same command, started again, succeeds; its maps, fields and reports are bit-equal to those of
  an uninterrupted run, ``model.pt`` is that of the atlas, and nothing of the killed run is left.

Processes are forked from one that has loaded torch and MONAI, so that the moments are in the job
and not in imports. The first violation ends the campaign with status 1, and its folder is kept.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bundle import cli
from bundle.bench.forked_jobs import Ended, Moment, in_process
from scripts.atlas.published_model import published_network
from scripts.networks.described import weights_identity
from scripts.runtime.ownership import MARK

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
SHAPE = (16, 16, 16)
SUBJECTS = 5
TINY = (
    "--learned_atlas#device=cpu",
    "--learned_atlas#dtype=float32",
    "--learned_atlas#cohort#layout=flat",
    "--learned_atlas#cohort#normalisation=none",
    "--learned_atlas#model#enc_features=[4,8]",
    "--learned_atlas#model#dec_features=[8,8,4]",
    "--learned_atlas#optimizer#epochs=2",
    "--learned_atlas#optimizer#batch_size=2",
    "--learned_atlas#refine#rounds=2",
    "--learned_atlas#refine#iterations=1",
    "--learned_atlas#refine#network_epochs=2",
)
COHORT_ONLY = TINY[2:4]


def write_cohort(folder: Path, subjects: int = SUBJECTS, shape: Sequence[int] = SHAPE) -> Path:
    """Shifted bumps, one file a subject (layout ``flat``)."""
    folder.mkdir(parents=True)
    axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
    for index in range(subjects):
        angle = 2 * np.pi * index / subjects
        centre = [(n - 1) / 2 for n in shape]
        centre[0] += 1.5 * np.cos(angle)
        centre[1] += 1.5 * np.sin(angle)
        far = sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) / 4
        density = np.where(far < 6, 0.05 * np.exp(-far / 2), 0).astype(np.float32)
        path = folder / f"sub-{index + 1:04d}.nii.gz"
        nib.save(nib.Nifti1Image(density, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return folder


# ---------------------------------------------------------------------------------------------
# Remains of a run
# ---------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of the content of a published folder's files, without times and paths."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == "quality.html":
            continue
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.name == "atlas.json":
            described = json.loads(data)
            for name in ("created", "files", "maps", "description_sha256"):
                described.pop(name, None)
            data = json.dumps(described, sort_keys=True).encode()
        elif path.name == "registration.json":
            described = json.loads(data)
            del described["seconds"]
            data = json.dumps(described, sort_keys=True).encode()
        result[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return result


def opens(folder: Path) -> int:
    """Open every file with a final name below a folder; return their number.

    Raises:
        Exception: anything that the reader of a damaged file raises.
    """
    count = 0
    for path in folder.rglob("*"):
        if not path.is_file() or any(
            part.startswith(".") for part in path.relative_to(folder).parts
        ):
            continue
        if path.name.endswith(".nii.gz"):
            np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
        elif path.suffix == ".pt" and "cache" not in path.parts:
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        else:
            continue
        count += 1
    return count


def hidden(folder: Path) -> list[str]:
    """Files below a folder with a temporary name."""
    return sorted(str(path) for path in folder.rglob(".*") if path.name != MARK)


@dataclass(frozen=True)
class Work:
    """A job, and the location of its results.

    Args:
        verb: of the command line.
        words: arguments without the folders.
        results: published folders, relative to the work folder.
        needs_model: whether the job reads the model of an earlier training.
    """

    verb: str
    words: tuple[str, ...]
    results: tuple[str, ...]
    needs_model: bool = False

    def command(self, base: Path, data: Path) -> list[str]:
        """The arguments of the command."""
        folders = [f"--dataset_dir={data}", f"--output_dir={base / 'output'}"]
        if self.verb != "average":
            folders.append(f"--ckpt_dir={base / 'models'}")
        return [self.verb, *folders, *self.words]


WORKS = {
    "train": Work("train", TINY, ("output/learned_atlas",)),
    "export": Work(
        "export", ("--learned_atlas#device=cpu",), ("output/learned_atlas",), needs_model=True
    ),
    "average": Work("average", COHORT_ONLY, ("output/atlas",)),
    "register": Work(
        "register",
        ("--learned_atlas#device=cpu",),
        tuple(f"output/registered/sub-{n + 1:04d}" for n in range(SUBJECTS)),
        needs_model=True,
    ),
}
# Differences between the earlier result and the new one.
EARLIER = {
    "train": ("--learned_atlas#optimizer#seed=1",),
    "export": ("--learned_atlas#presence_value=0.02",),
    "average": ("--learned_atlas#presence_value=0.02",),
    "register": ("--learned_atlas#refine#new_subject_iterations=1",),
}


class BrokenPromise(Exception):
    """The remains of a killed run don't match the promise of the docs."""


@dataclass
class Tally:
    """Outcomes of the tries of a job."""

    tries: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)


class Campaign:
    """Kills one job repeatedly.

    Args:
        name: of the job, a key of `WORKS`.
        folder: for everything that is written.
        rng: chooses moments.
    """

    def __init__(self, name: str, folder: Path, rng: np.random.Generator) -> None:
        self.work = WORKS[name]
        self.folder = folder
        self.rng = rng
        self.data = folder / "data"
        self.base = folder / "run"
        self.tally = Tally()
        if not self.data.exists():
            write_cohort(self.data)
        self._prepare(EARLIER[name])

    def _run(self, words: Sequence[str] = ()) -> Ended:
        ended = in_process([*self.work.command(self.base, self.data), *words], self.base)
        if ended.status != 0:
            raise BrokenPromise(f"{self.work.verb} ended with {ended.status}:\n{ended.output}")
        return ended

    def _prepare(self, other: Sequence[str]) -> None:
        """Empty, earlier and new state, which tries start from and are compared with."""
        self._clear(self.base)
        self.base.mkdir()
        if self.work.needs_model:
            command = WORKS["train"].command(self.base, self.data)
            trained = in_process(command, self.base)
            if trained.status != 0:
                raise BrokenPromise(f"train ended with {trained.status}:\n{trained.output}")
            shutil.rmtree(self.base / "output")
        self.empty = self._keep("empty")
        self._run(other)
        self.earlier = self._keep("earlier")
        self.old = self._results()
        self._restore(self.empty)
        ended = self._run()
        self.seconds, self.operations = ended.seconds, ended.operations or 1
        self.new = self._results()
        if self.old == self.new:
            raise BrokenPromise("the earlier result can't be distinguished from the new one")

    def _keep(self, name: str) -> Path:
        kept = self.folder / name
        self._clear(kept)
        shutil.copytree(self.base, kept)
        return kept

    def _restore(self, kept: Path) -> None:
        self._clear(self.base)
        shutil.copytree(kept, self.base)

    @staticmethod
    def _clear(folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)

    def _results(self) -> dict[str, dict[str, str] | None]:
        return {
            name: content(self.base / name) if (self.base / name).exists() else None
            for name in self.work.results
        }

    def moment(self) -> Moment:
        """A random signal at a random moment."""
        signum = SIGNALS[int(self.rng.integers(len(SIGNALS)))]
        if self.rng.random() < 0.5:
            return Moment(signum, seconds=float(self.rng.uniform(0, self.seconds)))
        return Moment(signum, operation=int(self.rng.integers(1, self.operations + 1)))

    def attempt(self, moment: Moment, over_earlier: bool) -> str:
        """Kill once, check, and run to the end.

        Returns:
            The state after the kill.

        Raises:
            BrokenPromise: a check fails; with the log.
        """
        self._restore(self.earlier if over_earlier else self.empty)
        start = self._results()
        killed = in_process(self.work.command(self.base, self.data), self.base, moment)
        if killed.status not in (0, -moment.signum, cli.EXIT_TERMINATED, cli.EXIT_INTERRUPTED):
            raise BrokenPromise(f"{moment}: status {killed.status}\n{killed.output}")
        # Python itself reports, and drops, what is raised inside a finalizer: the work was done.
        if "Traceback" in killed.output.partition("Exception ignored in")[0]:
            raise BrokenPromise(f"{moment}: a traceback\n{killed.output}")
        results = self._results()
        for name, content in results.items():
            if content not in (start[name], self.new[name]):
                raise BrokenPromise(f"{moment}: {name} is neither the earlier nor the new one")
        self._check_opens(moment)
        left = "whole new result" if results == self.new else "some new results"
        if results == start:
            left = "earlier result" if over_earlier else "no result"
        self._run()
        if self._results() != self.new:
            raise BrokenPromise(f"{moment}: the run after it isn't bit-equal to an unbroken one")
        self._check_opens(moment)
        if hidden(self.base):
            raise BrokenPromise(f"{moment}: left after the next run: {hidden(self.base)}")
        if self.work.verb == "train":
            self._check_model(moment)
        self.tally.tries[moment.signum.name] += 1
        self.tally.left["ended before the signal" if killed.status == 0 else left] += 1
        return left

    def _check_opens(self, moment: Moment) -> None:
        try:
            opens(self.base)
        except Exception as error:
            raise BrokenPromise(f"{moment}: a damaged file: {error}") from error

    def _check_model(self, moment: Moment) -> None:
        described = json.loads((self.base / self.work.results[0] / "atlas.json").read_text())
        network = published_network(self.base / "models" / "model.pt")
        if described["weights"] != weights_identity(network):
            raise BrokenPromise(f"{moment}: model.pt isn't the atlas's")


def campaign(
    name: str, tries: int, folder: Path, seed: int, tell: Callable[[str], None] = print
) -> Tally:
    """Kill a job repeatedly.

    Raises:
        BrokenPromise: at the first try with a failed check.
    """
    made = Campaign(name, folder, np.random.default_rng([seed, *name.encode()]))
    tell(f"{name}: {made.seconds:.1f} s and {made.operations} file operations unbroken")
    for number in range(tries):
        moment = made.moment()
        left = made.attempt(moment, over_earlier=bool(number % 2))
        tell(f"{name} {number + 1}/{tries}: {moment}: {left}")
    return made.tally


def table(tallies: dict[str, Tally]) -> str:
    """Fault, tries, outcome, as Markdown."""
    lines = ["| fault | tries | found after the kill |", "|---|---|---|"]
    for name, tally in tallies.items():
        signals = ", ".join(f"{count} {signum}" for signum, count in sorted(tally.tries.items()))
        left = ", ".join(f"{count} {what}" for what, count in sorted(tally.left.items()))
        lines.append(f"| `{name}` killed ({signals}) | {tally.tries.total()} | {left} |")
    return "\n".join(lines)


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=30, help="of each job (%(default)s)")
    parser.add_argument("--jobs", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # before any thread exists: processes are forked
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    tallies = {}
    for name in options.jobs:
        try:
            tallies[name] = campaign(name, options.tries, folder / name, options.seed)
        except BrokenPromise as broken:
            print(f"{name}: {broken}\nsee {folder / name}", file=sys.stderr)
            return 1
    print(table(tallies))
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    import monai.bundle  # noqa: F401  # once, for all processes

    sys.exit(main())
