"""Attacks on the jobs over pairs, stacks, streamlines and tracts; see `bundle.bench.attacks`.

The same kinds as on the atlas: text and names from outside, files of others where results go,
damage, claims of size, and inputs that change while a job reads them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import monai.bundle  # noqa: F401 (imported once, for all processes)
import nibabel as nib
import numpy as np
import zarr
from PIL import Image

from bundle.bench.attacked_jobs import Job
from bundle.bench.attacks import Outcome, attack
from bundle.bench.attacks_on_trust import CODE
from bundle.bench.faults import COHORT_ONLY, TINY, content, write_cohort

__all__: list[str] = []

_SIDES = (40, 48)
_ODD = (CODE, "@x", "%x", "{}", "=1+1", "\u202egnp", "\x1b[2J")
_NETWORK = (
    "--train_fields#device=cpu", "--train_fields#dtype=float32",
    "--train_fields#network=global", "--train_fields#model#global_filters=[4,4]",
    "--train_fields#model#dense=8", "--train_fields#optimizer#epochs=2",
)  # fmt: skip


def _sections(count: int = 4) -> np.ndarray:
    """Blobs on a dark background, each section moved a little ``(count, *sides)`` uint8."""
    rng = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*map(np.arange, _SIDES), indexing="ij"))
    result = np.zeros((count, *_SIDES))
    for _ in range(12):
        centre, width = rng.uniform((8, 8), (32, 40)), rng.uniform(2, 4)
        for number, image in enumerate(result):
            far = ((axes - (centre + 0.4 * number)[:, None, None]) ** 2).sum(0)
            image += np.exp(-far / (2 * width**2))
    return np.rint(255 * result / result.max()).astype(np.uint8)


class _Pairs(Job):
    """A store of pairs, and jobs over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        np.save(folder / "sections.npy", _sections())
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
        believed += result.status != 6 or "Traceback" in result.said
    yield jobs.told("`predict-fields`: a bit of `fields_global.pt`, 8 times", result, believed == 0)
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
        "10^12 pairs": lambda f: replaced(f, "img", (10**12, *_SIDES), chunks=(1, *_SIDES)),
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


# ---------------------------------------------------------------------------------------------
# Stacks
# ---------------------------------------------------------------------------------------------


class _Stacks(Job):
    """Folders of sections, and jobs over them."""

    def register(self, stack: Path | str, *words: str, out: str = "o", **more: Any) -> Any:
        return self.run(
            "register-stack", f"--stack={self.folder / stack}",
            f"--output_dir={self.folder / out}", "--register_stack#spacing=[1,1,1]",
            "--register_stack#unit=millimeter", "--register_stack#n_workers=1", *words, **more,
        )  # fmt: skip

    def apply(self, stack: str, transforms: Path, *words: str, **more: Any) -> Any:
        return self.run(
            "apply-stack", f"--stack={self.folder / stack}", f"--transforms={transforms}",
            f"--output_dir={self.folder / 'a'}", "--apply_stack#n_workers=1", *words, **more,
        )  # fmt: skip


def _pictures(folder: Path, names: tuple[str, ...] = ("1", "2", "3", "4")) -> Path:
    folder.mkdir()
    for name, section in zip(names, _sections(len(names)), strict=True):
        Image.fromarray(section).save(folder / f"{name}.png")
    return folder


def _ome(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """An OME-Zarr group whose description is edited."""
    group = zarr.create_group(str(folder), zarr_format=3)
    group.create_array("0", data=_sections(), chunks=(1, *_SIDES))
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    image: dict[str, Any] = {
        "axes": [{"name": a, "type": "space", "unit": "millimeter"} for a in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    edit(image)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return folder


@attack("stacks: text, names, descriptions")
def stack_descriptions(folder: Path) -> Iterator[Outcome]:
    """Sections with odd names; metadata, codecs and entries of zarr folders that lie."""
    jobs = _Stacks(folder)
    _pictures(folder / "odd", _ODD)
    ended = jobs.register("odd")
    page = folder / "o" / "registered_stack" / "quality.html"
    held = jobs.done(ended) and not list(folder.rglob("PWNED")) and "\x1b" not in ended.said
    held = held and page.exists() and "\x1b" not in page.read_text("utf-8")
    yield jobs.told(f"`register-stack`: sections named `{CODE}`, `@x`, `=1+1`, ...", ended, held)
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a path `../../x`": lambda i: i["datasets"][0].update(path="../../x"),
        "an absolute path": lambda i: i["datasets"][0].update(path="/etc"),
        "an axis named `$x`": lambda i: i["axes"][0].update(name="$__import__('os')"),
        "a unit that is a list": lambda i: [one.update(unit=["$x"]) for one in i["axes"]],
        "a scale of 10^400": lambda i: i["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [10**39, "x", 1]}]
        ),
        "no datasets": lambda i: i.update(datasets=[]),
    }
    for number, (what, edit) in enumerate(edits.items()):
        path = _ome(folder / f"ome{number}.zarr", edit)
        ended = jobs.register(path, out="x")
        held = "Traceback" not in ended.said and (ended.status == 3 or "unit" in what)
        yield jobs.told(f"`register-stack`: OME metadata with {what}", ended, held)
        shutil.rmtree(folder / "x", ignore_errors=True)
    plain = folder / "plain.zarr"
    for what in ("a pipe as chunk", "/dev/zero as chunk", "a chunk longer than its values",
                 "100,000 brackets", "10^16 pixels", "the codec `pickle`"):  # fmt: skip
        shutil.rmtree(plain, ignore_errors=True)
        zarr.create_array(str(plain), data=_sections(), chunks=(1, *_SIDES), zarr_format=2)
        _spoil(plain, what)
        yield jobs.refused(f"`register-stack`: zarr with {what}",
                           jobs.register(plain, out="x", longest=60), 3, "plain.zarr")  # fmt: skip


def _spoil(plain: Path, what: str) -> None:
    chunk, about = plain / "1.0.0", json.loads((plain / ".zarray").read_text())
    if what.endswith("as chunk"):
        chunk.unlink()
        os.mkfifo(chunk) if "pipe" in what else chunk.symlink_to("/dev/zero")
    elif "longer" in what:
        chunk.write_bytes(bytes(1_000_000))
    elif "pixels" in what:
        about.update(shape=[4, 10**8, 10**8], chunks=[1, 10**8, 10**8])
    elif "codec" in what:
        about["filters"] = [{"id": "pickle"}]
    text = "[" * 100_000 if "brackets" in what else json.dumps(about)
    (plain / ".zarray").write_text(text)


@attack("stacks: others, changes, transforms")
def stacks_change(folder: Path) -> Iterator[Outcome]:
    """Foreign results, sections that change meanwhile, and nonsense in transforms.json."""
    jobs = _Stacks(folder)
    data = _pictures(folder / "s")
    foreign = folder / "o" / "registered_stack" / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    yield jobs.keeps("`register-stack`: `registered_stack` is somebody else's",
                     lambda: jobs.register("s"), foreign)  # fmt: skip
    shutil.rmtree(folder / "o")
    state = folder / "o" / ".registered_stack.unfinished" / "notes.txt"
    state.parent.mkdir(parents=True)
    state.write_text("mine")
    yield jobs.keeps("`register-stack`: the unfinished run's folder is somebody else's",
                     lambda: jobs.register("s"), state)  # fmt: skip
    shutil.rmtree(folder / "o")
    first = data / "2.png"
    sound = first.read_bytes()

    def change() -> None:
        Image.fromarray(_sections()[0] // 2).save(folder / "new.png")
        (folder / "new.png").replace(first)

    pairs = folder / "o" / ".registered_stack.unfinished" / "pairs"
    ended = jobs.register("s", watch=jobs.until(lambda: any(pairs.glob("*")), change))
    one = jobs.refused("`register-stack`: a section is replaced meanwhile", ended, 3, "changed")
    nothing = not (folder / "o" / "registered_stack").exists()
    yield Outcome(one.tried, one.held and nothing, one.message)
    first.write_bytes(sound)
    shutil.rmtree(folder / "o")
    jobs.require(jobs.register("s"))
    kept = folder / "o" / "registered_stack" / "transforms.json"
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "spacing Infinity": lambda a: a.update(spacing=[float("inf"), 1, 1]),
        "spacing NaN": lambda a: a.update(spacing=[1, float("nan"), 1]),
        "shape Infinity": lambda a: a.update(shape=[4, float("inf"), 48]),
        "shape 10^39": lambda a: a.update(shape=[4, 10**38, 10**38]),
        "an order `$x`": lambda a: a.update(order=["$__import__('os')", 1, 2, 3]),
        "a matrix of texts": lambda a: a["sections"][0].update(composed=[["$x"] * 3] * 3),
        "a matrix of 10^39": lambda a: a["sections"][1].update(
            composed=[[10**38, 0, 0], [0, 1, 0], [0, 0, 1]]
        ),
        "no sections": lambda a: a.update(sections=[]),
    }
    for what, edit in edits.items():
        about = json.loads(kept.read_text())
        edit(about)
        (folder / "t.json").write_text(json.dumps(about))
        ended = jobs.apply("s", folder / "t.json")
        yield jobs.told(f"`apply-stack`: {what}", ended, jobs.one_line(ended, 3))
    for text in ('{"sections": [3]}', '{"slices": {"a": 1}}', '{"slices": [{"anchoring": [1]}]}'):
        (folder / "p.json").write_text(text)
        ended = jobs.register("s", f"--register_stack#placement={folder / 'p.json'}", out="y")
        yield jobs.told(f"`register-stack`: placements `{text}`", ended, jobs.one_line(ended, 3))


# ---------------------------------------------------------------------------------------------
# Streamlines and tracts; the atlas without a training
# ---------------------------------------------------------------------------------------------


class _Atlas(Job):
    """An atlas of five subjects with odd names, and jobs over it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        data = write_cohort(folder / "d", 5, (16, 16, 16))
        for number, name in enumerate(_ODD[:3], start=1):
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
        yield jobs.told("`build`: odd names", ended, jobs.one_line(ended, 2, 3))
        jobs.require(jobs.run("train", *jobs.folders, f"--ckpt_dir={folder / 'm'}", *TINY))
    else:
        yield jobs.told("`build`: odd names", ended, not list(folder.rglob("PWNED")))
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
    yield jobs.told("`register --template`: the template is replaced meanwhile", ended, whole)
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
    yield jobs.told(f"`warp-streamlines`: a tractogram named `{CODE}.trk`", ended, held)
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
    yield jobs.told("`tract-stats`: odd names of subjects and tracts", ended,
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
