"""The jobs as a whole: what is published, whole or not at all, and the same bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from ome_zarr_models.v05.image import Image

from scripts.errors import CheckpointError, CohortError, StorageError
from scripts.phantom.serial_sections import SerialSections
from scripts.settings.stack import ApplyStackConfig, RegisterStackConfig
from scripts.stack import measuring
from scripts.stack.applying import StackApplication
from scripts.stack.planar import Plane, corner_distance
from scripts.stack.registering import StackRegistration

FAST = {"pyramid_levels": 2, "n_workers": 2}


def register(stack: Path, output: Path, **settings: Any) -> Path:
    loaded = RegisterStackConfig.load({"stack": str(stack), **FAST, **settings})
    return StackRegistration(loaded, output).run()


def described(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "transforms.json").read_text())
    return content


def composed(folder: Path) -> np.ndarray:
    return np.array([one["composed"] for one in described(folder)["sections"]])


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder; of the JSON and the page without what tells one run from another."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("transforms.json", "quality.html"):
            result[str(path.relative_to(folder))] = path.read_bytes()
    result["composed"] = composed(folder).tobytes()
    return result


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, small_values: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.zarr"
    array = zarr.create_array(str(path), data=small_values, chunks=(1, 40, 96))
    array.attrs.update({"spacing": [50.0, 10.0, 10.0], "unit": "micrometer"})
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, stack: Path) -> Path:
    return register(stack, tmp_path_factory.mktemp("out"), formats=["zarr", "nifti", "tiff"])


def test_sections_are_registered_to_the_frame_of_the_first(
    published: Path, small: SerialSections
) -> None:
    plane = Plane(small.shape, (1.0, 1.0))
    content = described(published)
    sections = content["sections"]
    assert [one["status"] for one in sections] == [
        "reference", "registered", "registered", "registered", "damaged", "registered",
        "registered",
    ]  # fmt: skip
    assert sections[0]["composed"] == np.eye(3).tolist()
    for z, matrix in enumerate(composed(published)):
        if z != 4:
            apart = corner_distance(
                plane.physical_matrix(matrix), plane.physical_matrix(small.composed[z]), plane
            )
            assert apart < 1.5
    assert set(content) >= {
        "format", "convention", "spacing", "unit", "shape", "crop_box", "reference", "family",
        "wander",
    }  # fmt: skip
    assert content["shape"] == [7, 72, 96]
    assert sections[2]["correlation"] > sections[2]["correlation_before"]
    assert len(sections[2]["steps"]) == 2


def test_the_image_is_cropped_described_and_valid(published: Path) -> None:
    top, bottom, left, right = described(published)["crop_box"]
    group = zarr.open_group(str(published / "registered.zarr"), mode="r")
    level = group["0"]
    assert level.shape == (7, bottom - top, right - left)
    assert level.dtype == np.uint8
    assert set(level.attrs) == {
        "spacing", "unit", "pairwise_transforms", "composed_transforms", "registration_log",
        "crop_box", "processing",
    }  # fmt: skip
    log = level.attrs["registration_log"]
    assert [one["slice_indices"] for one in log[:3]] == [[0, 1], [0, 2], [1, 2]]
    assert set(log[0]) == {"pair_index", "slice_indices", "final_loss", "num_steps_taken"}
    (scales,) = Image.from_zarr(group).attributes.ome.multiscales
    scale, shift = scales.datasets[0].coordinateTransformations
    assert scale.scale == [50.0, 10.0, 10.0]
    assert shift.translation == [0.0, 10.0 * top, 10.0 * left]


def test_other_formats_hold_the_same_pixels(published: Path) -> None:
    import tifffile

    level = np.asarray(zarr.open_array(str(published / "registered.zarr" / "0"), mode="r"))
    volume = nib.load(published / "registered.nii.gz")
    assert np.array_equal(np.asarray(volume.dataobj).transpose(2, 1, 0), level)
    top, _, left, _ = described(published)["crop_box"]
    np.testing.assert_allclose(volume.affine[:3, 3], [0.01 * left, 0.01 * top, 0])
    for z in range(7):
        page = tifffile.imread(published / "sections" / f"section-{z:04d}.tif")
        assert np.array_equal(page, level[z])
    page = (published / "quality.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "<tr class='damaged'>" in page
    assert "http" not in page.replace("https://", "")


def test_simpleitk_gives_the_registered_section(published: Path, small_values: np.ndarray) -> None:
    top, bottom, left, right = described(published)["crop_box"]
    level = zarr.open_array(str(published / "registered.zarr" / "0"), mode="r")
    for z in (1, 3, 6):
        image = sitk.GetImageFromArray(small_values[z].astype(np.float64))
        image.SetSpacing((0.01, 0.01))
        name = f"section-{z:04d}_from-section_to-registered_mode-image_xfm.txt"
        transform = sitk.ReadTransform(str(published / "xfm" / name))
        grid = sitk.Image(right - left, bottom - top, sitk.sitkFloat64)
        grid.SetSpacing((0.01, 0.01))
        grid.SetOrigin((0.01 * left, 0.01 * top))
        resampled = sitk.GetArrayFromImage(
            sitk.Resample(image, grid, transform, sitk.sitkBSpline, 0.0, sitk.sitkFloat64)
        )
        assert np.abs(np.rint(resampled).clip(0, 255) - np.asarray(level[z]))[2:-2, 2:-2].max() <= 1
        back = published / "xfm" / name.replace("section_to-registered", "registered_to-section")
        point = (0.3, 0.2)
        returned = sitk.ReadTransform(str(back)).TransformPoint(transform.TransformPoint(point))
        np.testing.assert_allclose(returned, point, atol=1e-9)


def test_copies_come_back_bit_by_bit(
    write_zarr: Callable[..., Path], small_values: np.ndarray, tmp_path: Path
) -> None:
    copies = np.stack([small_values[0]] * 4)
    out = register(write_zarr(copies), tmp_path / "out", crop_safety_margin=0)
    assert np.abs(composed(out) - np.eye(3)).max() < 1e-9
    level = zarr.open_array(str(out / "registered.zarr" / "0"), mode="r")
    assert np.array_equal(np.asarray(level), copies)


def test_no_pairs_give_a_copy(stack: Path, small_values: np.ndarray, tmp_path: Path) -> None:
    out = register(stack, tmp_path, max_pairs=0)
    level = zarr.open_array(str(out / "registered.zarr" / "0"), mode="r")
    assert np.array_equal(np.asarray(level), small_values)
    assert [one["status"] for one in described(out)["sections"]] == ["reference"] + ["held"] * 6


def test_the_first_pairs_alone_are_measured_and_the_rest_follows(
    stack: Path, tmp_path: Path
) -> None:
    out = register(stack, tmp_path, max_pairs=2)
    sections = described(out)["sections"]
    assert [one["status"] for one in sections[:4]] == [
        "reference", "registered", "registered", "held",
    ]  # fmt: skip
    assert all(one["composed"] == sections[2]["composed"] for one in sections[3:])
    assert sections[5]["pairwise"] == np.eye(3).tolist()


def test_rigid_stays_rigid_in_millimetres(stack: Path, tmp_path: Path) -> None:
    out = register(stack, tmp_path, spacing=[50, 30, 10], unit="um", max_pairs=3)
    plane = Plane((72, 96), (30.0, 10.0))
    for matrix in composed(out):
        physical = plane.physical_matrix(matrix)
        assert np.abs(np.linalg.svd(physical[:2, :2])[1] - 1).max() < 1e-6


def test_blank_and_skipped_sections_are_placed(
    write_zarr: Callable[..., Path], small_values: np.ndarray, tmp_path: Path
) -> None:
    values = small_values.copy()
    values[5] = 200
    out = register(write_zarr(values), tmp_path / "out", skip=[2], reference=1)
    sections = described(out)["sections"]
    assert [one["status"] for one in sections[:3]] == ["registered", "reference", "skipped"]
    assert sections[5]["status"] == "held"
    assert sections[5]["composed"] == sections[4]["composed"]
    assert sections[1]["composed"] == np.eye(3).tolist()
    moves = composed(out)[1:4, 0, 2]
    assert min(moves[0], moves[2]) <= moves[1] <= max(moves[0], moves[2])
    assert sections[2]["loss"] is None


def test_a_placement_leads_and_the_transforms_of_a_run_are_one(
    published: Path, stack: Path, small: SerialSections, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.json"
    sections = [{"index": z, "composed": m.tolist()} for z, m in enumerate(small.composed)]
    truth.write_text(json.dumps({"sections": sections[::2]}))
    out = register(stack, tmp_path, placement=str(truth))
    assert described(out)["placement"] == str(truth)
    again = register(
        stack, tmp_path / "again", placement=str(published / "transforms.json"),
        placement_sigma=2.0,
    )  # fmt: skip
    plane = Plane(small.shape, (1.0, 1.0))
    for before, after in zip(composed(published), composed(again), strict=True):
        apart = corner_distance(plane.physical_matrix(before), plane.physical_matrix(after), plane)
        assert apart < 1e-3
    lying = register(stack, tmp_path / "lying", placement="scanner", placement_sigma=2.0)
    assert described(lying)["sections"][0]["composed"] != np.eye(3).tolist()


# -- the same bit for bit -----------------------------------------------------------------------


def test_two_processes_and_one_thread_write_the_same_bytes(stack: Path, tmp_path: Path) -> None:
    one = register(stack, tmp_path / "one", n_workers=1, max_pairs=3)
    two = register(stack, tmp_path / "two", n_workers=2, scheduler="processes", max_pairs=3)
    assert contents(one) == contents(two)


class Killed(BaseException):
    """What no handler catches, as a kill."""


def test_a_killed_run_resumes_at_its_last_pair(
    published: Path, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = measuring.PairStore.write, []

    def dying(self: Any, pair: Any, result: Any) -> None:
        if len(written) == 4:
            raise Killed
        written.append(pair)
        write(self, pair, result)

    monkeypatch.setattr(measuring.PairStore, "write", dying)
    formats = {"formats": ["zarr", "nifti", "tiff"]}
    with pytest.raises(Killed):
        register(stack, tmp_path, **formats)
    assert not (tmp_path / "registered_stack").exists()
    assert len(list((tmp_path / ".registered_stack.unfinished" / "pairs").glob("*.json"))) == 4

    def counting(self: Any, pair: Any, result: Any) -> None:
        assert pair not in written
        written.append(pair)
        write(self, pair, result)

    monkeypatch.setattr(measuring.PairStore, "write", counting)
    with pytest.raises(CheckpointError, match="--register_stack#resume false"):
        register(stack, tmp_path, transformation="affine", **formats)
    out = register(stack, tmp_path, n_workers=1, **formats)
    assert len(written) == 11
    assert contents(out) == contents(published)
    assert not (tmp_path / ".registered_stack.unfinished").exists()


def test_an_unfinished_run_of_other_sections_is_refused_or_thrown_away(
    stack: Path, small_values: np.ndarray, write_zarr: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write = measuring.PairStore.write

    def dying(self: Any, pair: Any, result: Any) -> None:
        write(self, pair, result)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(measuring.PairStore, "write", dying)
        with pytest.raises(Killed):
            register(stack, tmp_path / "out")
    other = small_values.copy()
    other[3, 0, 0] ^= 1
    path = write_zarr(other)
    with pytest.raises(CheckpointError, match="belongs to another stack"):
        register(path, tmp_path / "out")
    assert register(path, tmp_path / "out", resume=False, max_pairs=1).is_dir()


def test_an_earlier_output_stays_when_a_run_fails(
    published: Path, stack: Path, tmp_path: Path
) -> None:
    out = register(stack, tmp_path, max_pairs=1)
    before = contents(out)
    with pytest.raises(CohortError, match="cropping leaves nothing"):
        register(stack, tmp_path, max_pairs=1, crop_safety_margin=60)
    assert contents(out) == before
    # What is done after the pairs may be asked for anew: they are not measured again.
    pairs = tmp_path / ".registered_stack.unfinished" / "pairs"
    (kept,) = pairs.glob("*.json")
    when = kept.stat().st_mtime_ns
    settings = RegisterStackConfig.load(
        {"stack": str(stack), **FAST, "max_pairs": 1, "crop_safety_margin": 70}
    )
    with pytest.raises(CohortError, match="cropping leaves nothing"):
        StackRegistration(settings, tmp_path).run()
    assert kept.stat().st_mtime_ns == when
    assert [one.name for one in tmp_path.iterdir() if one.name[0] != "."] == ["registered_stack"]


def test_the_output_may_not_be_the_input(stack: Path, tmp_path: Path) -> None:
    out = register(stack, tmp_path, max_pairs=1)
    before = contents(out)
    with pytest.raises(StorageError, match="would be written over its input"):
        register(out / "registered.zarr", tmp_path)
    with pytest.raises(StorageError, match="would be written over its input"):
        register(stack, tmp_path, placement=str(out / "transforms.json"))
    with pytest.raises(StorageError, match="would be written over its input"):
        register(stack, stack)
    assert contents(out) == before


# -- apply-stack -------------------------------------------------------------------------------


def apply(stack: Path, transforms: Path, output: Path, **settings: Any) -> Path:
    loaded = ApplyStackConfig.load(
        {"stack": str(stack), "transforms": str(transforms), "n_workers": 2, **settings}
    )
    return StackApplication(loaded, output).run()


def test_the_same_sections_give_the_same_image(
    published: Path, stack: Path, tmp_path: Path
) -> None:
    out = apply(stack, published / "transforms.json", tmp_path)
    first, second = (
        np.asarray(zarr.open_array(str(one / "registered.zarr" / "0"), mode="r"))
        for one in (out, published)
    )
    assert np.array_equal(first, second)
    assert described(out)["crop_box"] == described(published)["crop_box"]


def test_labels_keep_their_numbers(
    published: Path, write_zarr: Callable[..., Path], small_values: np.ndarray, tmp_path: Path
) -> None:
    labels = np.where(small_values < 190, 614454277, 0).astype(np.uint32)
    out = apply(
        write_zarr(labels), published / "transforms.json", tmp_path / "out", interpolation="nearest"
    )
    level = np.asarray(zarr.open_array(str(out / "registered.zarr" / "0"), mode="r"))
    assert set(np.unique(level)) == {0, 614454277}


def test_a_finer_image_lies_where_the_coarser_one_does(published: Path, tmp_path: Path) -> None:
    # Each value is the position of its pixel, in pixels of the registered stack.
    rows = ((np.arange(144) + 0.5) / 2 - 0.5)[:, None] + np.zeros(192)
    array = zarr.create_array(
        str(tmp_path / "fine.zarr"), data=np.stack([rows.astype(np.float32)] * 7)
    )
    array.attrs.update({"spacing": [0.05, 0.005, 0.005], "unit": "millimeter"})
    out = apply(
        tmp_path / "fine.zarr", published / "transforms.json", tmp_path / "out",
        interpolation="linear",
    )  # fmt: skip
    top, bottom, left, right = described(published)["crop_box"]
    assert described(out)["crop_box"] == [2 * top, 2 * bottom, 2 * left, 2 * right]
    level = zarr.open_array(str(out / "registered.zarr" / "0"), mode="r")
    matrix = composed(published)[3]
    y, x = ((np.array([60, 70]) + [2 * top, 2 * left]) + 0.5) / 2 - 0.5
    assert level[3, 60, 70] == pytest.approx(float((matrix @ [y, x, 1])[0]), abs=1e-3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 72, 96), "has 6 sections, but .* places 7"),
        ((7, 50, 96), "has sections of 50x96 pixels .* they must cover the same area"),
    ],
)
def test_a_stack_that_does_not_fit_is_refused(
    shape: tuple[int, ...], message: str, published: Path, write_zarr: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    values = np.random.default_rng(0).integers(0, 9, shape, dtype=np.uint8)
    with pytest.raises(CohortError, match=message):
        apply(write_zarr(values), published / "transforms.json", tmp_path / "out")
    assert not (tmp_path / "out" / "registered_stack").exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "other"}'])
def test_transforms_that_are_none_are_refused(damage: str, stack: Path, tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    path.write_text(damage)
    with pytest.raises(CohortError, match=r"transforms\.json: is not a transforms"):
        apply(stack, path, tmp_path / "out")
    with pytest.raises(CohortError, match="No such file"):
        apply(stack, tmp_path / "none.json", tmp_path / "out")


def test_a_nifti_volume_gives_nifti_through_its_affine(
    small_values: np.ndarray, tmp_path: Path
) -> None:
    affine = np.array(
        [[0, 0.02, 0, 5], [-0.02, 0, 0, 1], [0, 0, 0.05, -3], [0, 0, 0, 1]], dtype=float
    )
    volume = nib.Nifti1Image(small_values.transpose(2, 1, 0), affine)
    volume.header.set_xyzt_units("mm")
    nib.save(volume, tmp_path / "v.nii.gz")
    out = register(tmp_path / "v.nii.gz", tmp_path / "out", max_pairs=2)
    registered = nib.load(out / "registered.nii.gz")
    top, _, left, _ = described(out)["crop_box"]
    np.testing.assert_allclose(registered.affine @ [0, 0, 0, 1], affine @ [left, top, 0, 1])
    name = "section-0002_from-section_to-registered_mode-image_xfm_ras.txt"
    world = np.loadtxt(out / "xfm" / name)
    row, column = 11.0, 17.0
    y, x, _ = composed(out)[2] @ [row, column, 1]
    np.testing.assert_allclose(
        world @ affine @ [column, row, 2, 1], affine @ [x, y, 2, 1], atol=1e-9
    )
