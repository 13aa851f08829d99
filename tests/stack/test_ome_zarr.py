"""Our files are OME-Zarr by another library's models, with levels at their stated places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from scripts.stack.ome_metadata import read_multiscale
from scripts.stack.ome_zarr import OmeZarr

SPACING, SHIFT = (50.0, 3.0, 2.0), (0.0, 30.0, 14.0)


def written(path: Path, channels: int = 0, labels: bool = False) -> tuple[OmeZarr, np.ndarray]:
    """A stack of ramps: the value of a pixel is its position, rows and columns separately."""
    rows, columns = np.mgrid[:300, :517].astype(np.float32)
    ramp = rows * 1000 + columns
    section = np.stack([ramp, -ramp, ramp], axis=-1)[..., :channels] if channels else ramp
    stack = OmeZarr(path, (3, 300, 517), channels, np.dtype(np.float32), labels)
    stack.create("ramps", "micrometer", SPACING, SHIFT, {"spacing": list(SPACING)})
    for z in range(3):
        stack.write(z, section + z)
    return stack, section


@pytest.mark.parametrize("channels", [0, 3])
def test_the_models_accept_it_and_it_reads_back(channels: int, tmp_path: Path) -> None:
    stack, section = written(tmp_path / "s.zarr", channels)
    group = zarr.open_group(str(stack.path), mode="r")
    image = Image.from_zarr(group)
    (scales,) = image.attributes.ome.multiscales
    assert [axis.name for axis in scales.axes] == (["c"] if channels else []) + ["z", "y", "x"]
    assert [axis.unit for axis in scales.axes][-3:] == ["micrometer"] * 3
    assert len(scales.datasets) == stack.levels == 3
    assert np.array_equal(stack.read(1), section + 1)
    assert group["0"].metadata.zarr_format == 3
    assert group["0"].chunks[-3] == 1  # a section a chunk: one writer
    assert group["1"].shape[-2:] == (150, 259)
    assert group["0"].attrs["spacing"] == list(SPACING)


@pytest.mark.parametrize("labels", [False, True])
def test_levels_lie_where_their_half_pixels_say(labels: bool, tmp_path: Path) -> None:
    stack, _ = written(tmp_path / "s.zarr", labels=labels)
    group = zarr.open_group(str(stack.path), mode="r")
    (scales,) = Image.from_zarr(group).attributes.ome.multiscales
    for dataset in scales.datasets:
        scale, shift = (one for one in dataset.coordinateTransformations)
        # The centre of a pixel by the metadata, in pixels of level 0: there the ramp has its value.
        row, column = (
            (shift.translation[axis] + place * scale.scale[axis] - SHIFT[axis]) / SPACING[axis]
            for axis, place in ((1, 20), (2, 30))
        )
        value = float(np.asarray(group[dataset.path])[0, 20, 30])
        assert value == pytest.approx(1000 * row + column)
        if not labels:
            assert column == 30 * 2 ** int(dataset.path) + (2 ** int(dataset.path) - 1) / 2


def attributes(version: str, **changes: object) -> dict[str, object]:
    image: dict[str, object] = {
        "axes": [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"],
        "datasets": [
            {
                "path": "images/50-10-10",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [5.0, 1.0, 1.0]},
                    {"type": "translation", "translation": [0.0, 2.0, 3.0]},
                ],
            }
        ],
        "coordinateTransformations": [{"type": "scale", "scale": [10.0, 10.0, 10.0]}],
        **changes,
    }
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **image}]}
    return {"ome": {"version": "0.5", "multiscales": [image]}}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_both_versions_are_read(version: str) -> None:
    result = read_multiscale(attributes(version))
    assert result is not None
    one = result.of("/images/50-10-10/")
    assert one is not None
    assert one.spacing() == (50.0, 10.0, 10.0)
    assert one.translation == (0.0, 20.0, 30.0)
    assert one.unit() == "nanometer"
    assert read_multiscale({}) is None


@pytest.mark.parametrize(
    "changes",
    [{"axes": None}, {"datasets": []}, {"datasets": [{}]}, {"axes": ["z", "y"]}],
)
def test_metadata_that_says_nothing_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="multiscales metadata"):
        read_multiscale(attributes("0.5", **changes))


def test_axes_of_different_units_are_refused() -> None:
    axes = [{"name": n, "type": "space", "unit": u} for n, u in
            zip("zyx", ("meter", "nanometer", "nanometer"), strict=True)]  # fmt: skip
    result = read_multiscale(attributes("0.5", axes=axes))
    assert result is not None
    with pytest.raises(ValueError, match="different units: meter, nanometer"):
        result.arrays[0].unit()
