"""Attacks on the jobs over stacks of sections; see `bundle.bench.attacks`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.bundle  # noqa: F401 (imported once, for all processes)
import zarr
from PIL import Image

from bundle.bench.attacked_inputs import ODD_NAMES, SIDES, small_sections
from bundle.bench.attacked_jobs import Job
from bundle.bench.attacks import Outcome, attack
from bundle.bench.attacks_on_trust import CODE

__all__: list[str] = []


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
    for name, section in zip(names, small_sections(len(names)), strict=True):
        Image.fromarray(section).save(folder / f"{name}.png")
    return folder


def _ome(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """An OME-Zarr group whose description is edited."""
    group = zarr.create_group(str(folder), zarr_format=3)
    group.create_array("0", data=small_sections(), chunks=(1, *SIDES))
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
    _pictures(folder / "odd", ODD_NAMES)
    ended = jobs.register("odd")
    page = folder / "o" / "registered_stack" / "quality.html"
    held = jobs.done(ended) and not list(folder.rglob("PWNED")) and "\x1b" not in ended.output
    held = held and page.exists() and "\x1b" not in page.read_text("utf-8")
    yield jobs.outcome(f"`register-stack`: sections named `{CODE}`, `@x`, `=1+1`, ...", ended, held)
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
        held = "Traceback" not in ended.output and (ended.status == 3 or "unit" in what)
        yield jobs.outcome(f"`register-stack`: OME metadata with {what}", ended, held)
        shutil.rmtree(folder / "x", ignore_errors=True)
    plain = folder / "plain.zarr"
    for what in ("a pipe as chunk", "/dev/zero as chunk", "a chunk longer than its values",
                 "100,000 brackets", "10^16 pixels", "the codec `pickle`"):  # fmt: skip
        shutil.rmtree(plain, ignore_errors=True)
        zarr.create_array(str(plain), data=small_sections(), chunks=(1, *SIDES), zarr_format=2)
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
    for where, what in (
        ("registered_stack", "`registered_stack`"),
        (".registered_stack.unfinished", "the unfinished run's folder"),
    ):
        foreign = folder / "o" / where / "notes.txt"
        foreign.parent.mkdir(parents=True)
        foreign.write_text("mine")
        yield jobs.keeps(f"`register-stack`: {what} is somebody else's",
                         lambda: jobs.register("s"), foreign)  # fmt: skip
        shutil.rmtree(folder / "o")
    first = data / "2.png"
    sound = first.read_bytes()

    def change() -> None:
        Image.fromarray(small_sections()[0] // 2).save(folder / "new.png")
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
        yield jobs.outcome(f"`apply-stack`: {what}", ended, jobs.one_line(ended, 3))
    for text in ('{"sections": [3]}', '{"slices": {"a": 1}}', '{"slices": [{"anchoring": [1]}]}'):
        (folder / "p.json").write_text(text)
        ended = jobs.register("s", f"--register_stack#placement={folder / 'p.json'}", out="y")
        yield jobs.outcome(f"`register-stack`: placements `{text}`", ended, jobs.one_line(ended, 3))
