"""Every place where text from outside comes in, with texts that look like code, paths, formats.

The right outcome: the text is unchanged, or one line refuses it. The list of places is that of
docs/faults.md.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from bundle.sweep import table_of
from scripts.applications.tract_statistics import _plot
from scripts.cohort.covariates import parse_values, read_participants
from scripts.cohort.listings import read_csv
from scripts.engines.run_state import RunState
from scripts.errors import TractAtlasError
from scripts.networks.checkpoint import load_checkpoint, save_checkpoint
from scripts.networks.described import description_in
from scripts.publishing.published_atlas import open_atlas
from scripts.runtime.checked_json import read_checked, write_checked
from scripts.runtime.tables import write_table
from scripts.settings.make_pairs import MakePairsConfig
from scripts.settings.stack import RegisterStackConfig
from scripts.spatial.transform_files import TransformFile, read_transform
from scripts.spatial.volumes import read_volume
from scripts.stack.output import Cuts
from scripts.stack.placement import read_placement
from scripts.stack.planar import PlanarModel, Plane
from scripts.stack.quality_page import quality_page
from scripts.stack.source import open_stack
from scripts.stack.transforms import read_transforms
from scripts.supervised.pair_store import PairStore
from scripts.supervised.predicting import read_label_tree
from scripts.supervised.report_folder import about_of
from scripts.supervised.sources import open_source
from scripts.tractograms import Streamlines, open_tractogram, write_tractogram
from scripts.transport.segmented_atlas import read_atlas

CODE = "$__import__('os').mkdir('PWNED')"
TEXTS = [CODE, "@x", "%x", "{}", "{subject}", "a\nb", "\x1b[2J", "../../x", "=1+1", "\u202egnp"]
AFFINE = np.eye(4)
Place = Callable[[str, Path], None]
PLACES: dict[str, Place] = {}
"""A function a place: it puts a text there, lets it be read, and checks what came out."""


def place(name: str) -> Callable[[Place], Place]:
    """Register a place: a function puts a text there, lets it be read, and gives what came out."""

    def register(one: Place) -> Place:
        PLACES[name] = one
        return one

    return register


# -- a cohort ----------------------------------------------------------------------------------


@place("participants.tsv: a covariate's name and value")
def _(text: str, here: Path) -> None:
    (here / "participants.tsv").write_text(f"participant_id\t{text}\nsub-1\t{text}\n")
    read_participants(here / "participants.tsv", [text])


@place("values at which a template is wanted")
def _(text: str, here: Path) -> None:
    parse_values(text, None)  # type: ignore[arg-type]


@place("a table of subjects")
def _(text: str, here: Path) -> None:
    with (here / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerow([text, f"{text}.nii.gz"])
    read_csv(here / "list.csv", here)


# -- descriptions ------------------------------------------------------------------------------


@place("atlas.json: a subject's name")
def _(text: str, here: Path) -> None:
    about = {"name": "tract_density_atlas", "kind": "averaged", "training_space": text,
             "cohort": {"subjects": [{"subject": text, "maps": []}]}}  # fmt: skip
    (here / "atlas.json").write_text(json.dumps(about))
    open_atlas(here)


@place("atlas.json: its values")
def _(text: str, here: Path) -> None:
    (here / "atlas.json").write_text(json.dumps({"name": text, "kind": text, "cohort": text}))
    open_atlas(here)


@place("result.json: names of metrics")
def _(text: str, here: Path) -> None:
    table_of([{"run": text, "status": text, text: text}])


@place("run.json: another run's settings")
def _(text: str, here: Path) -> None:
    settings = RegisterStackConfig.load({"stack": "s"})
    signature = {"format": 1, "cohort": "x", "settings": {text: text}}
    write_checked(here / "run.json", {"signature": signature, "finished": False})

    class Same:
        def identity(self) -> str:
            return "x"

    RunState(here, settings, Same())


@place("a report with a checksum")
def _(text: str, here: Path) -> None:
    write_checked(here / "a.json", {text: text})
    read_checked(here / "a.json")


@place("a label tree")
def _(text: str, here: Path) -> None:
    (here / "tree.json").write_text(json.dumps({text: text}))
    read_label_tree(here / "tree.json")


# -- checkpoints -------------------------------------------------------------------------------


@place("a checkpoint: names and settings")
def _(text: str, here: Path) -> None:
    described = json.dumps({"settings": {text: text}}).encode()
    values = {"described": torch.tensor(list(described), dtype=torch.uint8), text: torch.ones(1)}
    save_checkpoint(values, here / "a.pt")
    result = load_checkpoint(here / "a.pt")
    description_in(result), list(result)


@place("a checkpoint of another format")
def _(text: str, here: Path) -> None:
    (here / "a.pt").write_text(text)
    load_checkpoint(here / "a.pt")


# -- tractograms, transforms, labels -----------------------------------------------------------


def _lines(**data: np.ndarray) -> Streamlines:
    points = np.array([[1, 1, 1], [2, 2, 2]], np.float32)
    return Streamlines(points, np.array([0, 2]), data)


@place("a TRX file: header, groups, values")
def _(text: str, here: Path) -> None:
    write_tractogram(here / "a.trx", [_lines(w=np.ones((1, 1), np.float32))], (4, 4, 4), AFFINE)
    with zipfile.ZipFile(here / "a.trx") as old, zipfile.ZipFile(here / "b.trx", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "header.json":
                data = json.dumps({**json.loads(data), "NOTE": text, text: text}).encode()
            new.writestr(name, data)
        new.writestr(f"dps/{text}.float32", np.ones(1, np.float32).tobytes())
        new.writestr(f"groups/{text}.uint32", np.zeros(1, np.uint32).tobytes())
    result = open_tractogram(here / "b.trx")
    chunks = list(result.chunks())
    write_tractogram(here / "c.trx", chunks, (4, 4, 4), AFFINE)
    with zipfile.ZipFile(here / "c.trx") as made:
        names = made.namelist()
    assert not any(".." in name or name.startswith("/") for name in names)
    read_atlas(here / "b.trx", "none", None)


@place("a VTK file: title and names of values")
def _(text: str, here: Path) -> None:
    word = text.replace("\n", " ")
    (here / "a.vtk").write_text(
        f"# vtk DataFile Version 3.0\n{word}\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n"
        "1 1 1 2 2 2\nLINES 1 3\n2 0 1\nCELL_DATA 1\nFIELD FieldData 1\n"
        f"{word.split()[0] if word.split() else 'x'} 1 1 float\n1\n"
    )
    [chunk.data for chunk in open_tractogram(here / "a.vtk").chunks()]


@place("a TRK file: names of values")
def _(text: str, here: Path) -> None:
    word = text[:18].encode("latin-1", "replace").decode("latin-1")
    value = {word: np.ones((1, 1), np.float32)}
    lines = nib.streamlines.Tractogram(
        [np.ones((2, 3), np.float32)], data_per_streamline=value, affine_to_rasmm=np.eye(4)
    )
    nib.streamlines.save(lines, str(here / "a.trk"))
    [chunk.data for chunk in open_tractogram(here / "a.trk").chunks()]


@place("a TCK file: a line of its header")
def _(text: str, here: Path) -> None:
    write_tractogram(here / "a.tck", [_lines()], None, None)
    raw = (here / "a.tck").read_bytes()
    (here / "b.tck").write_bytes(raw.replace(b"datatype:", text.encode() + b": x\ndatatype:", 1))
    sum(len(chunk) for chunk in open_tractogram(here / "b.tck").chunks())


@place("names of classes")
def _(text: str, here: Path) -> None:
    (here / "names.json").write_text(json.dumps({"0": text, text: "b"}))
    write_tractogram(
        here / "a.trx", [_lines(label=np.zeros((1, 1), np.float32))], (4, 4, 4), AFFINE
    )
    read_atlas(here / "a.trx", "label", str(here / "names.json"))


@place("a text of an affine")
def _(text: str, here: Path) -> None:
    (here / "a.txt").write_text(f"#Insight Transform File V1.0\n#{text}\nTransform: {text}\n")
    read_transform(TransformFile(here / "a.txt"))


@place("an HDF5 transform: its kind")
def _(text: str, here: Path) -> None:
    with h5py.File(here / "a.h5", "w") as file:
        group = file.create_group("TransformGroup/0")
        group["TransformType"] = text
    read_transform(TransformFile(here / "a.h5"))


@place("an image's header")
def _(text: str, here: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), AFFINE)
    for field in ("descrip", "intent_name", "aux_file", "db_name"):
        image.header[field] = text.encode()[:15]
    nib.save(image, here / "a.nii.gz")
    read_volume(here / "a.nii.gz")


# -- pairs and stacks --------------------------------------------------------------------------


@place("a store of pairs: datasets and what made it")
def _(text: str, here: Path) -> None:
    with h5py.File(here / "a.h5", "w") as file:
        file.attrs["about"] = json.dumps({"name": "tract_density_atlas", "kind": text})
        file[f"x{text.replace('/', '_')}"] = np.zeros(3)
    result = about_of(here / "a.h5")
    assert result["kind"] == text
    PairStore(here / "a.h5")


@place("images of pairs: names of files and arrays")
def _(text: str, here: Path) -> None:
    np.savez(here / "a.npz", **{text: np.zeros((3, 4, 4)), f"{text}2": np.zeros((3, 4, 4))})
    open_source(MakePairsConfig.load({"reference": [str(here / "a.npz")]}))


@place("sections: names of files")
def _(text: str, here: Path) -> None:
    for number in range(2):
        name = text.replace("/", "_")
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(here / f"{name}{number}.png")
    block = {"stack": str(here), "spacing": [1, 1, 1], "unit": "millimeter"}
    open_stack(RegisterStackConfig.load(block)).describe(0)


@place("sections: OME metadata")
def _(text: str, here: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(str(here / "a.zarr"), zarr_format=3)
    group.create_array("0", data=np.zeros((3, 4, 4), np.uint8))
    axes = [{"name": name, "type": text, "unit": text} for name in "zyx"]
    scale = [{"type": text, text: [1, 1, 1]}]
    datasets = [{"path": text, "coordinateTransformations": scale}]
    image = {"name": text, "axes": axes, "datasets": datasets}
    group.attrs["ome"] = {"version": text, "multiscales": [image]}
    block = {"stack": str(here / "a.zarr"), "spacing": [1, 1, 1], "unit": "millimeter"}
    open_stack(RegisterStackConfig.load(block)).describe(0)


def _transforms(text: str) -> dict[str, Any]:
    section = {"status": "registered", "pairwise": np.eye(3).tolist(),
               "composed": np.eye(3).tolist(), "name": text}  # fmt: skip
    return {
        "format": "tract_atlas_registered_stack/1", "spacing": [1, 1, 1], "unit": "millimeter",
        "shape": [2, 9, 9], "crop_box": [0, 9, 0, 9], "reference": 0, "family": text, "axis": 2,
        "order": [0, 1], "wander": {"rms": 0, "largest": 0, "section": 0},
        "sections": [{"index": 0, **section}, {"index": 1, **section}],
    }  # fmt: skip


@place("transforms.json: names of sections, on the page")
def _(text: str, here: Path) -> None:
    (here / "t.json").write_text(json.dumps(_transforms(text)))
    result = read_transforms(here / "t.json")
    assert result.sections[0].name == text
    line = np.arange(9, dtype=np.float32)
    page = quality_page(result, [Cuts((line, line), (line, line))] * 2, {text: text})
    assert page.replace("\n", "").isprintable()


@place("transforms.json: its values")
def _(text: str, here: Path) -> None:
    for key in ("spacing", "unit", "shape", "crop_box", "order", "wander", "reference"):
        about = {**_transforms("a"), key: text}
        (here / "t.json").write_text(json.dumps(about))
        with pytest.raises(TractAtlasError):
            read_transforms(here / "t.json")


@place("placements: names of files")
def _(text: str, here: Path) -> None:
    one = {"filename": text, "anchoring": [0, 0, 0, 1, 0, 0, 0, 1, 0]}
    (here / "p.json").write_text(json.dumps({"slices": [one, {**one, "filename": "b"}]}))
    plane, model = Plane((9, 9), (1.0, 1.0)), PlanarModel("rigid", False, False)
    read_placement(here / "p.json", [text, "b"], plane, "millimeter", model)


# -- what is shown -----------------------------------------------------------------------------


@place("a table's cells")
def _(text: str, here: Path) -> None:
    file = io.StringIO()
    write_table(file, [text], [{text: text}])
    cells = next(iter(csv.reader(io.StringIO(file.getvalue()))))
    assert not cells[0].startswith(("=", "+", "-", "@"))
    assert len(file.getvalue().splitlines()) == 2
    file.getvalue().replace("\r\n", "")


@place("a picture's names of tracts")
def _(text: str, here: Path) -> None:
    row = {"subject": text, "tract": text, "image": text, "statistic": "mean", "value": 1.0}
    _plot(here / "a.png", [row, {**row, "tract": r"$\frac{$"}])
    assert (here / "a.png").stat().st_size > 0


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder in which no text may have made anything, inside of another one."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    yield folder
    assert not list(tmp_path.rglob("PWNED"))
    assert [path.name for path in tmp_path.rglob("x")] == []


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", PLACES)
def test_text_is_never_code_nor_a_path(name: str, text: str, here: Path) -> None:
    try:
        PLACES[name](text, here)
    except TractAtlasError as refused:
        assert str(refused).isprintable()  # one line, without codes for a terminal
