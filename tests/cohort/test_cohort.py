"""A cohort: normalised means, and every subject that is left out with its reason."""

import gzip
import json
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_cohorts import config, names, read, reasons, voxels

from scripts.cohort import read_cohort
from scripts.errors import CohortError, ConfigurationError

# ------------------------------------------------------------------------------ a usable cohort


@pytest.mark.parametrize(
    "method, divisor",
    [
        ("waytotal", lambda data: 1000.0),
        ("streamline_density", np.sum),
        ("max", np.max),
        ("none", lambda data: 1.0),
    ],
)
def test_mean_of_the_normalised_maps(five, method, divisor):
    cohort = read(five, cohort={"normalisation": method})
    data = [voxels(subject.maps[0].path) for subject in cohort.subjects]
    expected = np.mean([one / divisor(one) for one in data], axis=0)
    assert cohort.mean_density.dtype == np.float32
    assert cohort.mean_density.shape == (1, *cohort.crop.shape)
    whole = cohort.crop.paste(cohort.mean_density, cohort.grid.shape)
    np.testing.assert_allclose(whole[0], expected, rtol=1e-6)
    assert [subject.maps[0].divisor for subject in cohort.subjects] == [divisor(d) for d in data]
    assert cohort.normalisation == method


def test_datalist_names_files_divisors_and_channels(five):
    cohort = read(five)
    assert cohort.datalist()[0] == {
        "subject": "sub-1",
        "image": [str(five.path("sub-1"))],
        "divisor": [1000.0],
        "channel": [0],
        "sha256": [cohort.subjects[0].maps[0].sha256],
    }
    assert names(cohort) == [f"sub-{number}" for number in range(1, 6)]


@pytest.mark.parametrize("margin, start, stop", [(0, 2, 2), (1, 1, 1), (2, 0, 0), (8, 0, 0)])
def test_crop_holds_every_support_and_the_margin(five, margin, start, stop):
    cohort = read(five, cohort={"margin": margin})
    assert cohort.crop.start == (start,) * 3
    assert cohort.crop.stop == tuple(n - stop for n in (12, 10, 8))


def test_crop_is_the_union_of_supports_that_lie_apart(dataset):
    corners = [(0, 0, 0), (11, 9, 7), (5, 5, 5), (2, 9, 0), (3, 3, 3)]
    for number, corner in enumerate(corners):
        data = np.zeros((12, 10, 8), dtype=np.float32)
        data[corner] = 1000 * (number + 1)
        dataset.add(f"s{number}", data)
    cohort = read(dataset, cohort={"margin": 0})
    assert cohort.crop.shape == (12, 10, 8)
    for number, corner in enumerate(corners):
        assert cohort.mean_density[(0, *corner)] == pytest.approx((number + 1) / 5)
    assert cohort.mean_density.sum() == pytest.approx(15 / 5)


def test_left_and_right_sum_their_normalised_maps(five, make_blob):
    shutil.rmtree(five.folder / "sub-1")
    left, right = make_blob(1), make_blob(2)
    five.add("sub-1", left, run="cst_left", waytotal="100")
    five.add("sub-1", right, run="cst_right", waytotal="400\n100\n")
    cohort = read(five, min_subjects=1, cohort={"exclude": [f"sub-{n}" for n in range(2, 6)]})
    whole = cohort.crop.paste(cohort.mean_density, cohort.grid.shape)[0]
    np.testing.assert_allclose(whole, left / 100 + right / 500, rtol=1e-6)
    assert cohort.datalist()[0]["divisor"] == [100.0, 500.0]


def test_names_with_spaces_and_letters_of_any_script(dataset, make_blob):
    people = ["Ольга 1", "a b", "sub#1", "sub,2", "Zoë"]
    for number, who in enumerate(people):
        dataset.add(who, make_blob(number))
    assert names(read(dataset)) == sorted(people)


def test_grid_and_header_are_the_first_subjects(five):
    image = nib.load(five.path("sub-1"))
    image.header["descrip"] = b"first"
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, five.path("sub-1"))
    cohort = read(five)
    assert cohort.grid.header["descrip"] == b"first"
    assert cohort.grid.spacing == (2, 2, 2)
    assert np.array_equal(cohort.grid.affine, image.affine)


def test_a_cohort_of_planes(dataset, make_blob):
    for number in range(5):
        data = make_blob(number, (9, 11))
        dataset.add(f"s{number}", data if number % 2 else data[..., None])
    cohort = read(dataset, cohort={"margin": 1})
    assert cohort.grid.shape == (9, 11)
    assert cohort.mean_density.shape == (1, 7, 9)


def test_a_trailing_axis_is_no_other_shape(five):
    data = voxels(five.path("sub-3")).astype(np.float32)
    five.add("sub-3", data[..., None])
    assert len(read(five).subjects) == 5


def test_several_tracts_are_channels(dataset, make_blob):
    maps = {
        (who, tract): make_blob(17 * i + j)
        for i, who in enumerate("abcde")
        for j, tract in enumerate(["af", "cst"])
    }
    for (who, tract), data in maps.items():
        dataset.write(f"{who}/tracts/{tract}/density.nii.gz", data, waytotal="10")
    cohort = read(
        dataset, model={"channels": 2}, cohort={"layout": "xtract", "tracts": ["cst", "af"]}
    )
    whole = cohort.crop.paste(cohort.mean_density, cohort.grid.shape)
    for channel, tract in enumerate(["cst", "af"]):
        expected = np.mean([maps[who, tract] / 10 for who in "abcde"], axis=0)
        np.testing.assert_allclose(whole[channel], expected, rtol=1e-6)
    assert cohort.tracts == ("cst", "af")
    assert cohort.datalist()[0]["channel"] == [0, 1]


def test_an_empty_tract_counts_as_absent(dataset, make_blob, caplog):
    for number, who in enumerate("abcde"):
        dataset.write(f"{who}/tracts/af/density.nii.gz", make_blob(number), waytotal="10")
        empty = np.zeros((12, 10, 8), np.float32)
        dataset.write(f"{who}/tracts/cst/density.nii.gz", empty, waytotal="0")
    values = {"model": {"channels": 2}, "cohort": {"layout": "xtract"}}
    cohort = read(dataset, **values)
    assert not cohort.mean_density[1].any()
    assert "subjects a, b, c, d, e: tract cst is empty and counts as absent" in caplog.text


def test_a_subject_whose_tracts_are_all_empty_is_left_out(five):
    for path in five.folder.rglob("fdt_paths.nii.gz"):
        shutil.move(path, path.parents[4] / "af.nii.gz")
    empty = np.zeros((12, 10, 8), np.float32)
    five.write("zero/af.nii.gz", empty)
    values = {"pattern": "{subject}/{tract}.nii.gz", "normalisation": "max"}
    cohort = read(five, cohort=values)
    assert reasons(cohort) == {"zero": "is empty: every tract is empty"}


def test_progress_is_reported_in_order(five):
    steps = []
    read_cohort(five.folder, config(), progress=lambda *step: steps.append(step))
    assert steps == [(n, 5, f"sub-{n}") for n in range(1, 6)]


def test_reading_is_the_same_every_time(five):
    one, other = read(five), read(five)
    assert np.array_equal(one.mean_density, other.mean_density)
    assert one.as_dict() == other.as_dict()


def test_memory_does_not_grow_with_the_number_of_subjects(dataset, make_blob):
    peaks = {}
    for number in range(48):
        dataset.add(f"s{number:02}", make_blob(number, (40, 40, 40)))
    for count in (12, 48):
        subjects = [f"s{number:02}" for number in range(count)]
        tracemalloc.start()
        read(dataset, cohort={"subjects": subjects})
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    one_map = 40**3 * 8
    assert peaks[48] - peaks[12] < 3 * one_map


# ------------------------------------------------------------------------ what identifies it


def test_identity_stays_with_the_content_wherever_it_lies(five, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(five.folder, moved)
    assert read_cohort(moved, config()).identity() == read(five).identity()


@pytest.mark.parametrize("change", ["voxel", "waytotal", "subject", "name", "normalisation"])
def test_identity_changes_with_what_is_learned(five, change, make_blob):
    before = read(five).identity()
    values = {}
    if change == "voxel":
        five.add("sub-2", make_blob(99))
    elif change == "waytotal":
        (five.path("sub-2").parent / "waytotal").write_text("1001")
    elif change == "subject":
        five.add("sub-6")
    elif change == "name":
        (five.folder / "sub-2").rename(five.folder / "sub-two")
    else:
        values = {"cohort": {"normalisation": "max"}}
    assert read(five, **values).identity() != before


def test_as_dict_is_json_and_complete(five):
    (five.path("sub-5").parent / "waytotal").unlink()
    cohort = read(five, min_subjects=4)
    record = json.loads(json.dumps(cohort.as_dict()))
    assert record["identity"] == cohort.identity()
    assert len(record["subjects"]) == 4
    assert set(record["subjects"][0]["maps"][0]) == {"path", "channel", "divisor", "sha256"}
    assert record["rejected"][0]["subject"] == "sub-5"
    assert record["grid"]["shape"] == [12, 10, 8]


# ----------------------------------------------------------------------------------- rejection


def with_value(value: float):
    def spoil(path: Path) -> None:
        data = voxels(path).astype(np.float32)
        data[5, 5, 5] = value
        nib.save(nib.Nifti1Image(data, nib.load(path).affine), path)

    return spoil


def filled(value: float):
    def spoil(path: Path) -> None:
        data = np.full((12, 10, 8), value, dtype=np.float64)
        nib.save(nib.Nifti1Image(data, nib.load(path).affine), path)

    return spoil


def waytotal(content: str | None):
    def spoil(path: Path) -> None:
        file = path.parent / "waytotal"
        file.unlink() if content is None else file.write_text(content)

    return spoil


def four_dimensional(path: Path) -> None:
    data = np.repeat(voxels(path)[..., None], 2, axis=3).astype(np.float32)
    nib.save(nib.Nifti1Image(data, nib.load(path).affine), path)


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/annex.nii.gz")


SPOILED = {
    "not a number": (with_value(np.nan), "is not finite in 1 voxels"),
    "infinite": (with_value(np.inf), "is not finite in 1 voxels"),
    "negative": (with_value(-0.5), "has negative density in 1 voxels (down to -0.5)"),
    "empty": (filled(0), "is empty: no voxel has density > 0"),
    "too small": (filled(1e-300), "is empty: at most 1e-303 after normalisation"),
    "too large": (filled(1e300), "is too large after normalisation"),
    "no waytotal": (waytotal(None), "is missing"),
    "zero waytotal": (waytotal("0\n"), "is zero"),
    "garbage waytotal": (waytotal("n/a"), "contains 'n/a', not a number of streamlines"),
    "empty waytotal": (waytotal(""), "contains no number"),
    "truncated gzip": (
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        "can't be read: damaged gzip",
    ),
    "text": (lambda path: path.write_bytes(b"hello"), "can't be read: not a NIfTI file"),
    "nothing": (lambda path: path.write_bytes(b""), "can't be read: not a NIfTI file"),
    "gzip of nothing": (
        lambda path: path.write_bytes(gzip.compress(b"")),
        "can't be read: not a NIfTI file",
    ),
    "four dimensions": (four_dimensional, "has shape (12, 10, 8, 2); must be"),
    "broken link": (broken_link, "can't be read: is a broken link"),
}


@pytest.mark.parametrize("fault", SPOILED)
@pytest.mark.parametrize("who", ["sub-0", "sub-9"])  # the first, and the last to be read
def test_an_unusable_subject_is_left_out_with_its_reason(five, fault, who, caplog):
    without = read(five)
    spoil, reason = SPOILED[fault]
    spoil(five.add(who))
    caplog.clear()
    cohort = read(five)
    assert names(cohort) == names(without)
    assert np.array_equal(cohort.mean_density, without.mean_density)
    assert cohort.crop == without.crop
    assert reasons(cohort).keys() == {who}
    assert reasons(cohort)[who].startswith(reason)
    assert who in cohort.rejected[0].path
    assert f"subject {who} is left out" in caplog.text
    assert reason in cohort.table()


@pytest.mark.parametrize("method", ["streamline_density", "max", "none"])
def test_other_normalisations_need_no_waytotal(five, method):
    for path in five.folder.rglob("waytotal"):
        path.unlink()
    assert len(read(five, cohort={"normalisation": method}).subjects) == 5


def test_too_few_usable_subjects_end_with_the_table(five):
    (five.path("sub-2").parent / "waytotal").write_text("0")
    (five.folder / "group").mkdir()
    with pytest.raises(CohortError) as caught:
        read(five)
    message = str(caught.value)
    assert "4 usable subjects" in message
    assert "fewer than learned_atlas.min_subjects = 5" in message
    for number in (1, 3, 4, 5):
        assert f"sub-{number}  found     {five.path(f'sub-{number}')}" in message
    assert f"sub-2  rejected  {five.path('sub-2').parent / 'waytotal'}: is zero" in message
    assert "folders without a map: group" in message
    assert len(read(five, min_subjects=4).subjects) == 4


def test_no_usable_subject_at_all(five):
    for path in five.folder.rglob("waytotal"):
        path.write_text("0")
    with pytest.raises(CohortError, match="0 usable subjects"):
        read(five, min_subjects=1)


def test_a_folder_without_any_map(dataset):
    (dataset.folder / "sub-1").mkdir()
    with pytest.raises(CohortError) as caught:
        read(dataset)
    assert "no subject found in dataset folder" in str(caught.value)
    assert "folders without a map: sub-1" in str(caught.value)
    assert "learned_atlas#cohort#layout" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "advice"),
    [
        (
            "{}.nii.gz",
            {},
            "; 3 subjects have a file at {subject}.nii.gz or {subject}.nii: give "
            "--learned_atlas#cohort#layout flat (see",
        ),
        (
            "{}/tracts/cst/density.nii.gz",
            {"cohort": {"pattern": "{subject}/x.nii.gz"}},
            "give --learned_atlas#cohort#layout xtract without --learned_atlas#cohort#pattern",
        ),
        ("{}.trk", {}, "give --learned_atlas#cohort#layout streamlines"),
        ("{}/t1/image.nii.gz", {}, "folders without a map: a, b, c"),
    ],
)
def test_a_folder_of_another_layout_is_reported_by_its_name(tmp_path, name, settings, advice):
    for subject in "abc":
        path = tmp_path / name.format(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(CohortError, match="no subject found") as caught:
        read_cohort(tmp_path, config(**settings))
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(dataset):
    with pytest.raises(CohortError, match="no subject found"):
        read(dataset)


def test_subjects_on_one_waytotal_file_are_an_error(dataset, make_blob):
    for number in range(5):
        dataset.write(f"s{number}.nii.gz", make_blob(number), waytotal="100")
    with pytest.raises(CohortError, match="waytotal of both subject s0 and subject s1"):
        read(dataset, cohort={"layout": "flat"})
    for number in range(5):
        (dataset.folder / f"s{number}_waytotal").write_text(f"{number + 1}")
    cohort = read(dataset, cohort={"layout": "flat"})
    assert [subject.maps[0].divisor for subject in cohort.subjects] == [1, 2, 3, 4, 5]


def test_the_number_of_channels_is_checked_against_the_dataset(dataset, make_blob):
    dataset.write("a/tracts/af/density.nii.gz", make_blob(), waytotal="1")
    with pytest.raises(ConfigurationError, match=r"learned_atlas.model.channels = 2"):
        read(dataset, model={"channels": 2}, cohort={"layout": "xtract"})
