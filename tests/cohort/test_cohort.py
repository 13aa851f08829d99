"""A cohort: one grid, normalised means, and every subject that is left out with its reason."""

import gzip
import json
import logging
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort import Candidate, FoundMap, inspect_subject, read_cohort, read_new_subjects
from scripts.cohort.density import subject_density
from scripts.errors import CohortError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.cohort import CohortRequest


def config(**values) -> CohortRequest:
    return LearnedAtlasConfig.load(values).cohort_request()


def read(dataset, **values):
    return read_cohort(dataset.folder, config(**values))


def names(cohort) -> list[str]:
    return [subject.name for subject in cohort.subjects]


def reasons(cohort) -> dict[str, str]:
    return {one.subject: one.reason for one in cohort.rejected}


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


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


def test_progress_is_told_in_order(five):
    told = []
    read_cohort(five.folder, config(), progress=lambda *step: told.append(step))
    assert told == [(n, 5, f"sub-{n}") for n in range(1, 6)]


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
def test_a_folder_of_another_layout_is_told_by_its_name(tmp_path, name, settings, advice):
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


# ------------------------------------------------------------------------------------- one grid


def affine(flip: int = 1, shift: float = 0.0) -> np.ndarray:
    return np.array(
        [[-2.0 * flip, 0, 0, 90 + shift], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
    )


# Row k of the new first axis is the old second one; the old first axis runs backwards.
REORDERED = affine() @ np.array([[0, -1, 0, 11], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("position", [1, 3, 5])
@pytest.mark.parametrize(
    "shape, other, words",
    [
        ((12, 10, 9), affine(), "shape 12 x 10 x 9 against 12 x 10 x 8"),
        ((10, 12, 8), affine(), "shape 10 x 12 x 8"),
        ((12, 10, 8), affine(shift=2), "affine shifted by (2, 0, 0) mm"),
        ((12, 10, 8), affine(shift=0.05), "affine shifted by"),
        ((12, 10, 8), affine(flip=-1), "affine flipped along axis 0"),
        ((12, 10, 8), np.diag([2.0, 2, 2, 1]), "affine flipped along axis 0"),
        ((12, 10, 8), np.diag([1.0, 1, 1, 1]), "against"),
        ((12, 10), affine(), "shape 12 x 10 against"),
    ],
)
def test_another_grid_is_an_error_that_names_both_subjects(
    five, make_blob, position, shape, other, words
):
    who = f"sub-{position}"
    five.add(who, make_blob(3, shape), affine=other)
    with pytest.raises(CohortError) as caught:
        read(five, min_subjects=1)
    message = str(caught.value)
    assert who in message
    assert ("sub-2" if position == 1 else "sub-1") in message
    if position != 1:
        assert words in message


@pytest.mark.parametrize("shift", [1e-4, 1e-3, 0.01])
def test_rounding_of_an_affine_is_no_other_grid(five, make_blob, shift):
    five.add("sub-3", make_blob(3), affine=affine(shift=shift))
    assert len(read(five).subjects) == 5


def test_the_tolerance_of_grids_is_a_setting(five, make_blob):
    five.add("sub-3", make_blob(3), affine=affine(shift=0.2))
    with pytest.raises(CohortError, match="raise --learned_atlas#cohort#grid_tolerance"):
        read(five)
    assert len(read(five, cohort={"grid_tolerance": 0.11}).subjects) == 5


@pytest.mark.parametrize("position", [1, 3])
def test_another_order_of_the_axes_is_no_other_grid(five, position, caplog):
    """The voxels of one subject are stored from the other side: nothing else changes."""
    caplog.set_level(logging.INFO)
    plain = read(five)
    densities = [[subject_density(one, 1, plain.grid.shape) for one in plain.subjects]]
    stored = voxels(plain.subjects[position - 1].maps[0].path)[::-1].transpose(1, 0, 2)
    five.add(f"sub-{position}", stored.astype(np.float32), affine=REORDERED)
    turned = read(five)
    assert "stored in another axis order" in caplog.text
    densities.append([subject_density(one, 1, turned.grid.shape) for one in turned.subjects])
    if position == 1:  # the first subject's order is the cohort's
        densities[1] = [one.transpose(0, 2, 1, 3)[:, ::-1] for one in densities[1]]
    np.testing.assert_array_equal(densities[0], densities[1])
    whole = [one.crop.paste(one.mean_density, one.grid.shape) for one in (plain, turned)]
    if position == 1:
        whole[1] = whole[1].transpose(0, 2, 1, 3)[:, ::-1]
    np.testing.assert_allclose(*whole, rtol=1e-6)


def test_an_unusable_subject_on_another_grid_is_only_left_out(five, make_blob):
    five.add("sub-6", make_blob(1, (4, 5, 6)) * np.nan)
    assert set(reasons(read(five))) == {"sub-6"}


def test_runs_of_one_subject_on_two_grids(five, make_blob):
    five.add("sub-6", make_blob(1), run="left")
    five.add("sub-6", make_blob(1, (12, 10, 9)), run="right")
    cohort = read(five)
    assert "is not on the grid of" in reasons(cohort)["sub-6"]
    assert cohort.rejected[0].path == str(five.path("sub-6", "right"))


# --------------------------------------------------------------------------------------- warnings


def test_counts_among_densities_are_warned_of(five, caplog, make_blob):
    five.add("sub-4", make_blob(4) * 60)
    read(five)
    assert "the density of subject sub-4 sums to" in caplog.text
    assert "were counts mixed with densities?" in caplog.text


def test_a_scale_within_reason_is_not(five, caplog, make_blob):
    five.add("sub-4", make_blob(4) * 20)
    read(five)
    assert "counts mixed" not in caplog.text


def test_normalised_sums_are_what_is_compared(five, caplog, make_blob):
    five.add("sub-4", make_blob(4) * 6000)
    read(five, cohort={"normalisation": "streamline_density"})
    assert "counts mixed" not in caplog.text


def test_one_map_under_two_names_is_warned_of(five, caplog):
    data = voxels(five.path("sub-2")).astype(np.int16)  # another file, the same voxels
    five.add("sub-9", data)
    cohort = read(five)
    assert len(cohort.subjects) == 6
    assert "subjects sub-2, sub-9 have the same density, voxel by voxel" in caplog.text


def test_disagreeing_forms_are_warned_of(five, caplog):
    image = nib.load(five.path("sub-2"))
    image.set_sform(image.affine, 4)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, five.path("sub-2"))
    assert len(read(five).subjects) == 5
    assert "subject sub-2: " in caplog.text
    assert "sform and qform disagree" in caplog.text


def test_disagreeing_forms_of_a_new_subject_are_warned_of(five, caplog):
    atlas = read(five)
    image = nib.load(five.path("sub-2"))
    image.set_sform(image.affine, 4)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, five.path("sub-2"))
    read_new_subjects(five.path("sub-2"), config(), atlas.grid, atlas.crop)
    assert "sform and qform disagree" in caplog.text


def test_a_good_cohort_is_read_without_a_warning(five, caplog):
    with caplog.at_level(logging.WARNING):
        read(five)
    assert caplog.records == []


# ------------------------------------------------------------------------------------ one subject


def test_inspection_of_a_subject(five):
    path = five.path("sub-1")
    candidate = Candidate("sub-1", (FoundMap(path, 0, None),))
    seen = inspect_subject(candidate, config())
    assert seen.box.start == (2, 2, 2)
    np.testing.assert_allclose(
        seen.box.paste(seen.density, seen.grid.shape)[0], voxels(path) / 1000, rtol=1e-12
    )
    assert seen.subject.maps[0].divisor == 1000


def test_a_subject_without_a_map_is_refused():
    with pytest.raises(CohortError, match="subject x has no map"):
        inspect_subject(Candidate("x", ()), config())


# ----------------------------------------------------------------------------------- new subjects


@pytest.fixture
def atlas(five):
    return read(five, cohort={"margin": 0})


def test_new_subjects_of_a_file_of_files_and_of_a_folder(five, atlas):
    path = five.path("sub-3")
    for source in (path, str(path), [path], [str(path)]):
        new = read_new_subjects(source, config(), atlas.grid, atlas.crop)
        assert new.datalist() == [atlas.datalist()[2]]
    new = read_new_subjects(five.folder, config(), atlas.grid, atlas.crop)
    assert new.datalist() == atlas.datalist()


def test_one_new_subject_is_enough(dataset, five, atlas):
    values = {"subjects": ["sub-2"]}
    new = read_new_subjects(five.folder, config(cohort=values), atlas.grid, atlas.crop)
    assert [subject.name for subject in new.subjects] == ["sub-2"]


def test_a_new_subject_on_another_grid_is_refused_or_let_through(five, atlas, make_blob):
    path = five.add("new", make_blob(1, (6, 7, 8)), affine=affine(shift=1))
    with pytest.raises(CohortError) as caught:
        read_new_subjects(path, config(), atlas.grid, atlas.crop)
    message = str(caught.value)
    assert str(path) in message
    assert "shape 6 x 7 x 8 against 12 x 10 x 8" in message
    assert "--learned_atlas#cohort#resample true" in message
    values = {"resample": True}
    new = read_new_subjects(path, config(cohort=values), atlas.grid, atlas.crop)
    assert [subject.name for subject in new.subjects] == ["new"]


@pytest.mark.parametrize("inside, share", [(1.0, "50"), (0.0, "1e+02")])
def test_density_outside_the_box_is_told(five, atlas, caplog, inside, share):
    data = np.zeros((12, 10, 8), dtype=np.float32)
    data[0, 0, 0] = 1
    data[5, 5, 5] = inside
    path = five.add("new", data)
    read_new_subjects(path, config(), atlas.grid, atlas.crop)
    assert f"subject new has {share} % of its density outside the atlas's box" in caplog.text


def test_unusable_new_subjects_are_left_out(five, atlas, caplog):
    (five.path("sub-3").parent / "waytotal").write_text("0")
    new = read_new_subjects(five.folder, config(), atlas.grid, atlas.crop)
    assert len(new.subjects) == 4
    assert [one.subject for one in new.rejected] == ["sub-3"]
    assert "subject sub-3 is left out" in caplog.text
    with pytest.raises(CohortError, match=r"no usable subject\n.*\n.*sub-3 .*is zero"):
        read_new_subjects(five.path("sub-3"), config(), atlas.grid, atlas.crop)


@pytest.mark.parametrize(
    "source, words",
    [("none.nii.gz", "No such file"), ("nowhere", "does not exist")],
)
def test_a_new_subject_that_is_not_there(tmp_path, atlas, source, words):
    with pytest.raises(CohortError, match=words):
        read_new_subjects(tmp_path / source, config(), atlas.grid, atlas.crop)
