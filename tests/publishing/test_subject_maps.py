"""Each subject's maps in template space, and the 4-D files of all: closed forms, names, order."""

from __future__ import annotations

import csv
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.cohort.subject_images import find_subject_images
from scripts.errors import StorageError
from scripts.publishing import publisher as publishing
from scripts.publishing.subject_maps import labels_in_template, log_jacobian, map_name
from scripts.spatial.volume_series import label_type, write_series


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_log_jacobian_of_a_field_that_scales_each_axis():
    factors = (1.5, 0.8, 1.1)
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (6, 7, 5)), indexing="ij"))
    field = torch.stack([(f - 1) * x for f, x in zip(factors, places.double(), strict=True)])
    assert np.allclose(log_jacobian(field), np.log(np.prod(factors)), atol=1e-6)


def test_log_jacobian_of_a_rotation_is_zero_and_of_a_fold_nan():
    places = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij"))
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    field = torch.einsum("ij,j...->i...", turn - torch.eye(2), places)
    assert np.allclose(log_jacobian(field), 0, atol=1e-6)
    assert np.isnan(log_jacobian(-2.0 * places * torch.tensor([1.0, 0.0]).view(2, 1, 1))).all()


def test_labels_follow_the_field_and_stay_whole_numbers_of_any_size():
    labels = np.zeros((6, 5, 4), dtype=np.int64)
    labels[3, 2, 1] = 2**40 + 1
    field = torch.zeros(3, 6, 5, 4)
    field[0] = 1.4  # the template's voxel x shows the subject's x + 1
    result = labels_in_template(labels, field)
    assert result.dtype == np.int64
    assert result[2, 2, 1] == 2**40 + 1
    assert np.count_nonzero(result) == 1


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_series_is_what_nibabel_would_write(make_grid, tmp_path, ending):
    grid = make_grid((4, 5, 6), np.diag([-2.0, 2.0, 3.0, 1.0]))
    volumes = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    path = tmp_path / f"series{ending}"
    write_series(path, iter(volumes), 3, grid)
    image = nib.load(path)
    assert image.shape == (4, 5, 6, 3)
    assert np.array_equal(np.moveaxis(np.asarray(image.dataobj), -1, 0), volumes)
    assert np.array_equal(image.affine, grid.affine)
    assert image.header["sform_code"] == 4
    first = path.read_bytes()
    write_series(path, iter(volumes), 3, grid)
    assert path.read_bytes() == first


def test_memory_does_not_grow_with_the_number_of_volumes(make_grid, tmp_path):
    shape = (40, 40, 40)

    def peak(count: int) -> int:
        made = np.random.default_rng(0)
        volumes = (made.normal(size=shape) for _ in range(count))
        tracemalloc.start()
        write_series(tmp_path / "series.nii.gz", volumes, count, make_grid(shape))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(20) < 1.1 * peak(4)


@pytest.mark.parametrize("given", [2, 4])
def test_a_series_of_another_length_is_refused(make_grid, tmp_path, given):
    volumes = np.zeros((given, 4, 5, 6))
    with pytest.raises(ValueError, match=f"{given} volumes were given, 3 announced"):
        write_series(tmp_path / "series.nii", volumes, 3, make_grid((4, 5, 6)))


@pytest.mark.parametrize(("largest", "kind"), [(3, "i2"), (40_000, "i4"), (2**33, "i8")])
def test_label_types_that_every_tool_reads(largest, kind):
    assert label_type(largest) == np.dtype(kind)


def labelled(made, tmp_path: Path):
    """Label maps of all subjects but the last: 7 where the density is high."""
    names = [subject.name for subject in made.cohort.subjects]
    for index, name in enumerate(names[:-1]):
        labels = np.where(made.density(index)[0] > 0.01, 7, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, made.cohort.grid.affine), tmp_path / f"{name}_seg.nii.gz")
    images = find_subject_images(
        "{subject}_seg.nii.gz",
        tmp_path,
        names,
        made.cohort.grid,
        "learned_atlas.cohort.labels",
        0.01,
    )
    made.cohort = replace(made.cohort, labels=images)
    made.publisher.cohort = made.cohort
    return made


def test_maps_of_a_known_field_are_published_one_by_one_and_in_one_file(bench, tmp_path, caplog):
    made = bench(moves=[2.0, -1.0, 0.0, 1.0], save_warped=True, save_jacobians=True)
    made = labelled(made, tmp_path)
    assert "no file for sub-4" in caplog.text
    made.publisher.publish()
    names = [subject.name for subject in made.cohort.subjects]
    rows = rows_of(made.atlas / "group/subjects.tsv")
    assert [row["participant_id"] for row in rows] == names
    assert [row["dseg"] for row in rows] == ["0", "1", "2", "n/a"]
    series = {
        kind: values(made.atlas / f"group/space-template_{kind}.nii.gz")
        for kind in ("density", "logjacobian", "dseg")
    }
    assert series["density"].shape == (*made.cohort.grid.shape, 4)
    assert series["dseg"].dtype == np.int16
    for index, (name, move) in enumerate(zip(names, (2, -1, 0, 1), strict=True)):
        density = values(made.atlas / "warped" / map_name(name, "density"))
        assert np.array_equal(series["density"][..., index], density)
        # The forward field is +move, so the subject is read at x - move.
        wanted = np.roll(made.density(index)[0], move, axis=0)
        inner = np.s_[4:-4]
        assert np.allclose(density[inner], wanted[inner], atol=1e-5)
        growth = values(made.atlas / "warped" / map_name(name, "logjacobian"))
        assert np.abs(growth).max() < 1e-5  # a constant field moves and keeps volumes
        assert np.array_equal(series["logjacobian"][..., index], growth)
        if index < 3:
            labels = values(made.atlas / "warped" / map_name(name, "dseg"))
            assert set(np.unique(labels)) == {0, 7}
            assert np.array_equal(labels[inner] == 7, wanted[inner] > 0.01)
            assert np.array_equal(series["dseg"][..., index], labels)
    content = json.loads((made.atlas / "group/space-template_dseg.json").read_text())
    assert content["Subjects"] == names[:-1]
    about = json.loads((made.atlas / "atlas.json").read_text())
    assert f"warped/{map_name('sub-1', 'density')}" in about["files"]
    assert sorted(about["cohort"]["labels"]) == names[:-1]


def test_a_mixture_has_one_file_per_template(bench):
    made = bench(
        assignment=[[1, 0], [0, 1], [0, 1], [1, 0]], moves=[0.0] * 4,
        model={"n_templates": 2}, save_jacobians=True,
    )  # fmt: skip
    made.publisher.publish()
    rows = rows_of(made.atlas / "group/subjects.tsv")
    assert [(row["template"], row["logjacobian"]) for row in rows] == [
        ("1", "0"), ("2", "0"), ("2", "1"), ("1", "1"),
    ]  # fmt: skip
    for template in (1, 2):
        name = f"group/space-template-{template}_logjacobian.nii.gz"
        assert values(made.atlas / name).shape[-1] == 2


def test_tracts_have_a_file_each(bench):
    made = bench(made_of={"channels": 2}, model={"channels": 2}, save_warped=True)
    made.publisher.publish()
    both = values(made.atlas / "warped" / map_name("sub-2", "density"))
    for channel in range(2):
        name = f"group/space-template_tract-tract-{channel}_density.nii.gz"
        assert np.array_equal(values(made.atlas / name)[..., 1], both[..., channel])


def test_a_run_that_fails_at_the_4d_file_leaves_the_earlier_atlas(bench, monkeypatch):
    made = bench(save_warped=True)
    made.publisher.publish()
    before = {path.name: path.stat().st_mtime_ns for path in made.atlas.rglob("*")}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "write_group", full)
    with pytest.raises(StorageError, match="No space left"):
        made.publisher.publish()
    assert {path.name: path.stat().st_mtime_ns for path in made.atlas.rglob("*")} == before
    assert [path.name for path in made.atlas.parent.iterdir()] == [made.atlas.name]


def test_nothing_more_is_written_unless_asked(bench):
    made = bench()
    made.publisher.publish()
    assert not (made.atlas / "warped").exists()
    assert not (made.atlas / "group").exists()
