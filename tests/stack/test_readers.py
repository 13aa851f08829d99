"""The same sections from every format, and each bad input with its message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr

from scripts.errors import CohortError, ConfigurationError, TractAtlasError
from scripts.settings.stack import RegisterStackConfig
from scripts.stack.source import Inspection, Stack, check_sections, inspect, open_stack
from scripts.stack.workers import Workers

VALUES = np.random.default_rng(0).integers(0, 256, (12, 20, 30), dtype=np.uint8)
SPACING = [50.0, 10.0, 10.0]
Settings = dict[str, Any]


def write_folder(path: Path, ending: str, values: np.ndarray = VALUES) -> Path:
    path.mkdir()
    for z, section in enumerate(values):
        iio.imwrite(path / f"s{z}{ending}", section)
    (path / "notes.csv").write_text("passed over")
    return path


def write_ome(path: Path, version: str, values: np.ndarray = VALUES, axes: str = "zyx") -> Path:
    group = zarr.create_group(str(path), zarr_format=2 if version == "0.4" else 3)
    group.create_array("images/50-10-10", data=values)
    scale = [{"z": 50.0, "y": 10.0, "x": 10.0}.get(axis, 1.0) for axis in axes]
    image = {
        "axes": [
            {"name": a, "type": {"c": "channel", "t": "time"}.get(a, "space")}
            | ({"unit": "nanometer"} if a in "zyx" else {})
            for a in axes
        ],
        "datasets": [
            {
                "path": "images/50-10-10",
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        ],
    }
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": "0.4", **image}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def write_nifti(path: Path, axis: int = 2) -> Path:
    volume = np.moveaxis(VALUES.transpose(2, 1, 0), 2, axis)  # columns, rows, sections
    sizes = [0.01, 0.01]
    sizes.insert(axis, 0.05)
    image = nib.Nifti1Image(np.ascontiguousarray(volume), np.diag([*sizes, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def without_offset(path: Path) -> Path:
    """The header says that the voxels start at byte 0, as some writers leave it."""
    raw = bytearray(path.read_bytes())
    raw[108:112] = bytes(4)
    path.write_bytes(bytes(raw))
    return path


def write_mgh(path: Path) -> Path:
    volume = np.ascontiguousarray(VALUES.transpose(2, 1, 0))
    nib.save(nib.MGHImage(volume, np.diag([0.01, 0.01, 0.05, 1.0])), path)
    return path


def opened(path: Path, **settings: Any) -> Stack:
    loaded = RegisterStackConfig.load({"stack": str(path), **settings})
    stack = open_stack(loaded, loaded.order)
    check_sections(loaded, stack)
    return stack


def inspected(path: Path, **settings: Any) -> Inspection:
    with Workers(1) as workers:
        return inspect(opened(path, **settings), workers, "register_stack")


GIVEN: Settings = {"spacing": SPACING, "unit": "um"}
FORMATS: dict[str, tuple[Callable[[Path], Path], Settings, str]] = {
    "OME-Zarr 0.4": (lambda p: write_ome(p / "a", "0.4"), {}, "nanometer"),
    "OME-Zarr 0.5": (lambda p: write_ome(p / "a", "0.5"), {}, "nanometer"),
    "array in a group": (
        lambda p: write_ome(p / "a", "0.5"), {"array": "images/50-10-10"}, "nanometer",
    ),
    "one time": (lambda p: write_ome(p / "a", "0.5", VALUES[None], "tzyx"), {}, "nanometer"),
    "PNG": (lambda p: write_folder(p / "a", ".png"), GIVEN, "micrometer"),
    "TIFF": (lambda p: write_folder(p / "a", ".tif"), GIVEN, "micrometer"),
    "pages": (
        lambda p: tifffile.imwrite(p / "a.tif", VALUES, photometric="minisblack") or p / "a.tif",
        GIVEN, "micrometer",
    ),
    "NIfTI": (lambda p: write_nifti(p / "a.nii.gz"), {}, "millimeter"),
    "NIfTI, unpacked": (lambda p: write_nifti(p / "a.nii"), {}, "millimeter"),
    "NIfTI without offset": (
        lambda p: without_offset(write_nifti(p / "a.nii")), {}, "millimeter",
    ),
    "MGH": (lambda p: write_mgh(p / "a.mgh"), {}, "millimeter"),
    "MGH, packed": (lambda p: write_mgh(p / "a.mgz"), {}, "millimeter"),
    "NIfTI along x": (lambda p: write_nifti(p / "a.nii", 0), {"axis": 0}, "millimeter"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_sections(kind: str, tmp_path: Path) -> None:
    write, settings, unit = FORMATS[kind]
    stack = opened(write(tmp_path), **settings)
    assert (len(stack), stack.shape, stack.channels, stack.unit) == (12, (20, 30), 0, unit)
    scale = {"nanometer": 1.0, "micrometer": 1.0, "millimeter": 1e-3}[unit]
    np.testing.assert_allclose(stack.spacing, np.array(SPACING) * scale, rtol=1e-6)
    for z in range(12):  # s10 comes after s9
        assert np.array_equal(stack.raw(z), VALUES[z])


def test_what_is_given_wins_over_the_file(write_zarr: Callable[..., Path]) -> None:
    path = write_zarr(VALUES, zarr_format=2)
    assert opened(path).spacing == (50.0, 10.0, 10.0)
    assert opened(path).unit == "micrometer"
    given = opened(path, spacing=[1, 2, 3], unit="nm")
    assert (given.spacing, given.unit) == ((1.0, 2.0, 3.0), "nanometer")


def test_colours_are_measured_by_luminance_and_kept(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (3, 16, 18, 3), dtype=np.uint8)
    stack = opened(write_folder(tmp_path / "a", ".png", colours), **GIVEN)
    assert stack.channels == 3
    assert np.array_equal(stack.raw(2), colours[2])
    ome = write_ome(tmp_path / "b", "0.5", np.moveaxis(colours, -1, 0), "czyx")
    assert np.array_equal(opened(ome).raw(1), colours[1])


def test_an_order_and_unequal_sizes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", ".png")
    assert np.array_equal(opened(folder, order=[*range(11, -1, -1)], **GIVEN).raw(0), VALUES[11])
    iio.imwrite(folder / "s3.png", VALUES[3, 1:-1, :26])
    inspection = inspected(folder, pad=True, **GIVEN)
    stack = inspection.stack
    values, known = stack.section(3)
    assert stack.shape == values.shape == (20, 30)
    assert known is not None
    assert stack.known_box(inspection.facts[3]) == (1, 19, 2, 28)
    assert known[1:19, 2:28].all()
    assert known.sum() == 18 * 26
    assert np.array_equal(values[1:19, 2:28], VALUES[3, 1:-1, :26])


# -- bad input -------------------------------------------------------------------------------


def break_chunk(path: Path) -> Path:
    write_ome(path, "0.5")
    (path / "images/50-10-10/c").glob("*")
    chunk = next(p for p in (path / "images/50-10-10/c").rglob("*") if p.is_file())
    chunk.write_bytes(b"not a chunk")
    return path


def break_file(path: Path) -> Path:
    write_folder(path, ".png")
    (path / "s7.png").write_bytes(b"\x89PNG nothing")
    return path


def replace_one(path: Path, section: np.ndarray, ending: str = ".tif") -> Path:
    write_folder(path, ending, VALUES.astype(np.float32) if section.dtype.kind == "f" else VALUES)
    iio.imwrite(path / f"s5{ending}", section)
    return path


def array(path: Path, values: np.ndarray) -> Path:
    zarr.create_array(str(path), data=values).attrs["spacing"] = SPACING
    return path


def plain_group(path: Path) -> Path:
    group = zarr.create_group(str(path))
    group.create_array("one", data=VALUES)
    group.create_array("two", data=VALUES)
    return path


def nonsense(path: Path) -> Path:
    path.write_bytes(b"II*\0 nothing of a TIFF")
    return path


def holey(dtype: str) -> np.ndarray:
    values = np.zeros((20, 30), dtype)
    values[3, 4] = np.nan
    return values


BAD: dict[str, tuple[Callable[[Path], Path], Settings, type[TractAtlasError], str]] = {
    "nothing there": (
        lambda p: p / "no.zarr", {}, CohortError,
        r"no\.zarr: no such file or folder \(register_stack\.stack\)",
    ),
    "one section": (
        lambda p: write_folder(p / "a", ".png", VALUES[:1]), GIVEN, CohortError,
        "has 1 section; a stack needs at least 2",
    ),
    "unequal sizes": (
        lambda p: replace_one(p / "a", VALUES[5, :18], ".png"), GIVEN, CohortError,
        r"section 5 \(s5\): has 18x30 pixels, section 0 \(s0\) 20x30; "
        "--register_stack#pad true centres",
    ),
    "not finite": (
        lambda p: replace_one(p / "a", holey("float32")), GIVEN, CohortError,
        r"section 5 \(s5\): has 1 values that are not finite",
    ),
    "a colour among greys": (
        lambda p: replace_one(p / "a", np.zeros((20, 30, 3), np.uint8), ".png"), GIVEN,
        CohortError, r"section 5 \(s5\): has 3 colours, section 0 \(s0\) has none",
    ),
    "a broken chunk": (
        lambda p: break_chunk(p / "a"), {}, CohortError, r"section 0 \(0000\): can't be read",
    ),
    "a broken file": (
        lambda p: break_file(p / "a"), GIVEN, CohortError, r"section 7 \(s7\): can't be read",
    ),
    "no spacing": (
        lambda p: write_folder(p / "a", ".png"), {}, ConfigurationError,
        r"register_stack\.spacing = null: must be given, because .* has no spacing",
    ),
    "two dimensions": (
        lambda p: array(p / "a.zarr", VALUES[0]), {}, CohortError,
        "is not a 3-D array: its shape is 20x30",
    ),
    "four dimensions": (
        lambda p: array(p / "a.zarr", np.zeros((2, 2, 9, 9))), {}, CohortError,
        "is not a 3-D array: its shape is 2x2x9x9",
    ),
    "two times": (
        lambda p: write_ome(p / "a", "0.5", np.stack([VALUES, VALUES]), "tzyx"), {}, CohortError,
        "has 2 times; must have one",
    ),
    "complex": (
        lambda p: array(p / "a.zarr", VALUES.astype(np.complex64)), {}, CohortError,
        "has complex64 values",
    ),
    "several arrays": (
        lambda p: plain_group(p / "a"), {}, CohortError,
        "group without multiscales and with one, two; name the array with register_stack#array",
    ),
    "an unknown array": (
        lambda p: write_ome(p / "a", "0.5"), {"array": "images/1-1-1"}, CohortError,
        r"has no array 'images/1-1-1' \(register_stack\.array\)",
    ),
    "an array of a folder of images": (
        lambda p: write_folder(p / "a", ".png"), {"array": "0", **GIVEN}, ConfigurationError,
        r"register_stack\.array = '0': .* is not a zarr group",
    ),
    "no image": (
        lambda p: (p / "a").mkdir() or p / "a", GIVEN, CohortError, "contains no zarr array and no",
    ),
    "an unknown file": (
        lambda p: nonsense(p / "a.xyz"), GIVEN, CohortError, "is not a known kind of stack",
    ),
    "a broken TIFF": (
        lambda p: nonsense(p / "a.tif"), GIVEN, CohortError, r"a\.tif: (can't be read|has 0)",
    ),
    "an order too short": (
        lambda p: write_folder(p / "a", ".png"), {"order": [1, 0], **GIVEN}, ConfigurationError,
        r"register_stack\.order has 2 entries, but the stack 12 sections",
    ),
    "a reference beyond the stack": (
        lambda p: write_folder(p / "a", ".png"), {"reference": 12, **GIVEN}, ConfigurationError,
        r"register_stack\.reference = 12: must be below 12",
    ),
    "a skipped section beyond the stack": (
        lambda p: write_folder(p / "a", ".png"), {"skip": [3, 40], **GIVEN}, ConfigurationError,
        r"register_stack\.skip names section 40: must be below 12",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_reported_with_the_section_and_the_rule(case: str, tmp_path: Path) -> None:
    write, settings, kind, message = BAD[case]
    path = write(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        inspected(path, **settings)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a", "0.5")
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(
        ConfigurationError, match=r"package zarr, .*pip install 'tract-density-atlas\[stack\]'"
    ):
        opened(path)
