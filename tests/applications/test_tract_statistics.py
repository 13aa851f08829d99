"""Numbers per tract on made-up subjects, each against plain NumPy or a closed form."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.applications.tract_statistics import TractStatistics
from scripts.errors import CohortError, ConfigurationError
from scripts.settings.tract_stats import load_tract_stats
from scripts.spatial.fields import write_field
from scripts.spatial.grid import Grid

SHAPE = (12, 10, 8)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    return path


@pytest.fixture
def people(tmp_path):
    """Two subjects with an atlas of two tracts in their space, an FA image and a field."""
    rng = np.random.default_rng(0)
    for name in ("s1", "s2"):
        atlas = np.zeros((*SHAPE, 2), np.float32)
        atlas[2:6, 2:8, 1:5, 0] = rng.random((4, 6, 4)) + 0.5
        atlas[7:10, 2:8, 1:5, 1] = 4 * rng.random((3, 6, 4)) + 1
        atlas[0, 0, 0] = 1e-3  # below the threshold
        folder = tmp_path / "out" / name / "atlas_in_patient_space"
        save(folder / "atlas_mean.nii.gz", atlas)
        save(folder / "atlas_prob_threshold.nii.gz", (atlas > 0.1) * 80)
        save(tmp_path / "fa" / f"{name}.nii.gz", rng.random(SHAPE))
        header = nib.Nifti1Header()
        header.set_data_shape(SHAPE)
        header.set_sform(AFFINE, code=1)
        # x -> 1.25 x along the first axis: the template's volume is 1.25 times the subject's.
        stretch = np.zeros((3, *SHAPE), np.float32)
        stretch[0] = 0.25 * np.arange(SHAPE[0])[:, None, None]
        (tmp_path / "fields").mkdir(exist_ok=True)
        write_field(tmp_path / "fields" / f"{name}.nii.gz", stretch, Grid(SHAPE, AFFINE, header))
    return tmp_path


def measured(people: Path, **changes):
    settings = load_tract_stats({"images": {"FA": str(people / "fa/{subject}.nii.gz")}, **changes})
    folder = TractStatistics(settings, people / "out", people / "out").run()
    with (folder / "tract_statistics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return folder, {
        (r["subject"], r["tract"], r["image"], r["statistic"]): r["value"] for r in rows
    }


def test_images_stored_in_another_axis_order_give_the_same_numbers(people):
    _, before = measured(people, log_jacobian=str(people / "fields/{subject}.nii.gz"))
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    for name in ("s1", "s2"):
        path = people / "fa" / f"{name}.nii.gz"
        turned = values(path)[::-1].transpose(0, 2, 1)
        save(path, np.ascontiguousarray(turned), AFFINE @ flip @ np.eye(4)[:, [0, 2, 1, 3]])
    _, after = measured(people, log_jacobian=str(people / "fields/{subject}.nii.gz"))
    assert before == after


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def test_numbers_are_those_of_plain_numpy(people):
    folder, table = measured(people, tracts=["left", "right"])
    for name in ("s1", "s2"):
        atlas = values(people / "out" / name / "atlas_in_patient_space" / "atlas_mean.nii.gz")
        fa = values(people / "fa" / f"{name}.nii.gz")
        for channel, tract in enumerate(("left", "right")):
            weights = atlas[..., channel]
            mask = weights > 0.05 * weights.max()
            mean = np.average(fa[mask], weights=weights[mask])
            assert float(table[name, tract, "FA", "mean"]) == pytest.approx(mean)
            sd = np.sqrt(np.average((fa[mask] - mean) ** 2, weights=weights[mask]))
            assert float(table[name, tract, "FA", "sd"]) == pytest.approx(sd)
            assert float(table[name, tract, "atlas", "volume"]) == 12 * mask.sum()
    assert (folder / "tract_statistics.png").stat().st_size > 5000
    about = json.loads((folder / "tract_statistics.json").read_text("utf-8"))
    assert set(about["files"]) == {"s1", "s2"}


def test_without_weights_a_mean_is_that_of_the_mask(people):
    _, table = measured(people, weights="none")
    atlas = values(people / "out/s1/atlas_in_patient_space/atlas_mean.nii.gz")[..., 0]
    fa = values(people / "fa/s1.nii.gz")
    assert float(table["s1", "1", "FA", "mean"]) == pytest.approx(
        fa[atlas > 0.05 * atlas.max()].mean()
    )


def test_growth_lesion_load_and_presence(people):
    lesion = np.zeros(SHAPE)
    lesion[2:4, 2:8, 1:5] = 1  # half of the first tract, nothing of the second
    save(people / "lesions" / "s1.nii.gz", lesion)
    own = np.zeros(SHAPE)
    own[2:6, 2:5, 1:5] = 7
    for name in ("s1", "s2"):
        save(people / "own" / f"{name}.nii.gz", own)
    _, table = measured(
        people,
        lesions=str(people / "lesions/{subject}.nii.gz"),
        density=str(people / "own/{subject}.nii.gz"),
        log_jacobian=str(people / "fields/{subject}.nii.gz"),
    )
    assert float(table["s1", "1", "lesion", "load"]) == pytest.approx(0.5)
    assert float(table["s1", "2", "lesion", "load"]) == 0
    assert ("s2", "1", "lesion", "load") not in table
    assert float(table["s2", "1", "density", "presence"]) == pytest.approx(0.5)
    growth = float(table["s1", "1", "log_jacobian", "mean"])
    assert growth == pytest.approx(-np.log(1.25), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"subjects": ["nobody"]}, CohortError, "subject nobody: no such atlas"),
        ({"images": {"FA": "absent/{subject}.nii.gz"}}, CohortError, "no such image FA: absent/s1"),
        ({"images": {"lesion": "x"}}, ConfigurationError, "a name that the table reserves"),
        ({"images": ["x"]}, ConfigurationError, "mapping of names"),
        ({"tracts": ["one"]}, ConfigurationError, "a name for each of the 2 channels"),
        ({"percentiles": [101]}, ConfigurationError, "outside 0 to 100"),
        ({"threshold": 1}, ConfigurationError, "threshold"),
    ],
)
def test_bad_input_names_the_setting_or_the_file(people, changes, error, message):
    with pytest.raises(error, match=message):
        measured(people, **changes)
    assert not (people / "out" / "tract_statistics").exists()


def test_an_image_on_another_grid_is_refused(people):
    save(people / "fa" / "s2.nii.gz", np.ones(SHAPE), np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(CohortError, match=r"s2.nii.gz: is not on the grid of .*atlas_mean"):
        measured(people)


def test_a_name_that_begins_like_a_formula_stays_text(people):
    _, table = measured(people, tracts=["=1+1", "right"])
    assert ("s1", "'=1+1", "FA", "mean") in table


def test_values_that_are_not_finite_are_ignored(people):
    fa = values(people / "fa" / "s1.nii.gz")
    fa[2:4], fa[4, 3, 2] = np.nan, np.inf
    save(people / "fa" / "s1.nii.gz", fa)
    save(people / "fa" / "s2.nii.gz", np.full(SHAPE, np.nan))
    _, table = measured(people)
    weights = values(people / "out/s1/atlas_in_patient_space/atlas_mean.nii.gz")[..., 0]
    counted = (weights > 0.05 * weights.max()) & np.isfinite(fa)
    mean = np.average(fa[counted], weights=weights[counted])
    assert float(table["s1", "1", "FA", "mean"]) == pytest.approx(mean)
    assert table["s2", "1", "FA", "mean"] == ""


@pytest.mark.parametrize(
    ("key", "mask", "message"),
    [
        ("lesions", np.full(SHAPE, 0.3), r"mask.nii.gz: contains the value 0.3; .* whole numbers"),
        ("lesions", np.ones((*SHAPE, 2)), "a lesion mask must have one volume, got 2"),
        ("density", np.ones((*SHAPE, 3)), r"has 3 volumes; must have one, .* each of the 2 tracts"),
        ("lesions", None, "lesions = .*: no subject has such a file"),
    ],
)
def test_a_mask_that_means_something_else_is_refused(people, key, mask, message):
    if mask is not None:
        save(people / "mask.nii.gz", mask)
    with pytest.raises(CohortError, match=message):
        measured(people, **{key: str(people / "mask.nii.gz")})


def test_a_lesion_is_what_is_not_0_and_missing_masks_are_named(people, caplog):
    save(people / "lesions" / "s1.nii.gz", np.full(SHAPE, -1))
    _, table = measured(people, lesions=str(people / "lesions/{subject}.nii.gz"))
    assert float(table["s1", "1", "lesion", "load"]) == 1
    assert "no file for s2" in caplog.text


def test_names_and_paths_that_say_nothing_are_refused(people):
    for changes in (
        {"images": {"weights": str(people / "fa/{subject}.nii.gz")}},
        {"images": {"FA": " "}},
        {"tracts": ["left", " "]},
    ):
        with pytest.raises(ConfigurationError, match=r"reserves|no path|empty name"):
            measured(people, **changes)
