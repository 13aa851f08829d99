"""Attacks on the jobs over known pairs; see `bundle.bench.attacks`.

The same kinds as on the atlas: text and names from outside, files of others where results go,
damage, claims of size, and inputs that change while a job reads them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import monai.bundle  # noqa: F401 (imported once, for all processes)
import numpy as np

from bundle.bench.attacked_inputs import SIDES, small_sections
from bundle.bench.attacked_jobs import Job
from bundle.bench.attacks import Outcome, attack

__all__: list[str] = []

_NETWORK = (
    "--train_fields#device=cpu", "--train_fields#dtype=float32",
    "--train_fields#network=global", "--train_fields#model#global_filters=[4,4]",
    "--train_fields#model#dense=8", "--train_fields#optimizer#epochs=2",
)  # fmt: skip


class _Pairs(Job):
    """A store of pairs, and jobs over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        np.save(folder / "sections.npy", small_sections())
        self.require(self.make())

    def make(self, output: str = "pairs", reference: str = "sections.npy", **more: Any) -> Any:
        return self.run(
            "make-pairs", f"--reference={self.folder / reference}",
            f"--output={self.folder / output}", "--make_pairs#count=6",
            "--make_pairs#elastic#rms=1.0", "--make_pairs#elastic#width=8",
            "--make_pairs#affine#translation=2", **more,
        )  # fmt: skip

    def train(self, *words: str, pairs: str = "pairs.h5", **more: Any) -> Any:
        return self.run(
            "train-fields", f"--pairs={self.folder / pairs}", f"--output_dir={self.folder / 'o'}",
            f"--ckpt_dir={self.folder / 'm'}", *_NETWORK, *words, **more,
        )  # fmt: skip

    def predict(self, *words: str, **more: Any) -> Any:
        return self.run(
            "predict-fields", f"--output_dir={self.folder / 'o'}",
            f"--ckpt_dir={self.folder / 'm'}", "--device_name=cpu",
            "--predict_fields#network=global", *words, **more,
        )  # fmt: skip


@attack("pairs: files of others")
def pairs_of_others(folder: Path) -> Iterator[Outcome]:
    """Foreign files in the place of a store, a network, its report, its predictions."""
    jobs = _Pairs(folder)
    (folder / "text.h5").write_text("mine")
    yield jobs.keeps("`make-pairs`: `text.h5` is somebody else's", lambda: jobs.make("text"),
                     folder / "text.h5")  # fmt: skip
    again = lambda: jobs.make("pairs", "*.h5")  # noqa: E731
    yield jobs.keeps("`make-pairs`: the output is an input, by a pattern", again,
                     folder / "pairs.h5")  # fmt: skip
    for place in ("m/fields_global.pt", "m/fields_global/weights.pt",
                  "m/fields_global_run_state/notes.txt", "o/fields/result.json",
                  "o/fields/training_global.png"):  # fmt: skip
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        yield jobs.keeps(f"`train-fields`: `{place}` is somebody else's", jobs.train, path)
        shutil.rmtree(folder / place.split("/")[0], ignore_errors=True)
    jobs.require(jobs.train())
    pairs = f"--pairs={folder / 'pairs.h5'}"
    for place in ("predictions.h5", "metrics.csv"):
        path = folder / "o" / "fields" / place
        path.write_text("mine")
        yield jobs.keeps(f"`predict-fields`: `fields/{place}` is somebody else's",
                         lambda: jobs.predict(pairs), path)  # fmt: skip
        path.unlink()


@attack("pairs: damage and claims")
def pairs_damaged(folder: Path) -> Iterator[Outcome]:
    """Flipped bits of networks, and stores that claim what they don't hold."""
    jobs, rng = _Pairs(folder), random.Random(1)
    jobs.require(jobs.train())
    pairs = f"--pairs={folder / 'pairs.h5'}"
    model = folder / "m" / "fields_global.pt"
    sound, believed, result = model.read_bytes(), 0, jobs.predict(pairs)
    jobs.require(result)
    for _ in range(8):
        raw = bytearray(sound)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        model.write_bytes(raw)
        result = jobs.predict(pairs)
        believed += result.status != 6 or "Traceback" in result.output
    yield jobs.outcome(
        "`predict-fields`: a bit of `fields_global.pt`, 8 times", result, believed == 0
    )
    model.write_bytes(sound)

    def claims(edit: Callable[[Any], Any]) -> Path:
        path = folder / "bad.h5"
        shutil.copy(folder / "pairs.h5", path)
        with h5py.File(path, "a") as file:
            edit(file)
        return path

    def replaced(file: Any, name: str, shape: tuple[int, ...], **more: Any) -> None:
        kind = file[name].dtype
        del file[name]
        file.create_dataset(name, shape, kind, **more)

    def linked(file: Any) -> None:
        del file["img"]
        file["there"] = h5py.ExternalLink(str(folder / "pairs.h5"), "/")
        file["img"] = h5py.SoftLink("/there/img")

    cases: dict[str, Callable[[Any], Any]] = {
        "10^12 pairs": lambda f: replaced(f, "img", (10**12, *SIDES), chunks=(1, *SIDES)),
        "images of 10^10 pixels": lambda f: replaced(
            f, "img", (6, 10**5, 10**5), chunks=(1, 1000, 1000)
        ),
        "a soft link through a link to another file": linked,
    }
    for what, edit in cases.items():
        bad = claims(edit)
        yield jobs.refused(f"`train-fields`: a store of {what}", jobs.train(pairs=bad.name), 3,
                           "bad.h5")  # fmt: skip
    tree = folder / "tree.json"
    for text in ('{"1": Infinity}', '{"1": 1e400}', "[" * 100_000, '{"1": 1}', '{"$x": 1}'):
        tree.write_text(text)
        ended = jobs.predict(pairs, f"--predict_fields#label_tree={tree}")
        yield jobs.refused(f"`predict-fields`: a label tree `{text[:16]}`", ended, 3, "tree.json")


@attack("pairs: changes meanwhile")
def pairs_change(folder: Path) -> Iterator[Outcome]:
    """A store that is replaced while a training or a prediction reads it."""
    jobs = _Pairs(folder)
    store, sound = folder / "pairs.h5", (folder / "pairs.h5").read_bytes()

    def change() -> None:
        with h5py.File(folder / "new.h5", "w") as file, h5py.File(folder / "kept.h5") as old:
            for name in old:
                file[name] = old[name][...] if name != "img" else old[name][...] // 2
        (folder / "new.h5").replace(store)

    (folder / "kept.h5").write_bytes(sound)
    begun = jobs.until((folder / "m/fields_global_run_state/run.json").exists, change)
    ended = jobs.train(watch=begun)
    one = jobs.refused("`train-fields`: its store is replaced", ended, 3, "pairs.h5", "changed")
    yield Outcome(one.tried, one.held and not (folder / "m/fields_global.pt").exists(), one.message)
    store.write_bytes(sound)
    shutil.rmtree(folder / "m")
    jobs.require(jobs.train())
    halves = lambda: any((folder / "o/fields").glob(".*.predictions.h5"))  # noqa: E731
    ended = jobs.predict(f"--pairs={store}", watch=jobs.until(halves, change))
    one = jobs.refused("`predict-fields`: its store is replaced", ended, 3, "pairs.h5", "changed")
    kept = not (folder / "o/fields/predictions.h5").exists()
    yield Outcome(one.tried, one.held and kept, one.message)
