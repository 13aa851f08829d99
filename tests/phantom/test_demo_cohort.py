"""The demo cohort as it lies on disk."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import scripts.phantom.demo as demo
from scripts.errors import CohortError, StorageError
from scripts.phantom import ensure_demo_cohort, load_truth, write_demo_cohort
from scripts.phantom.ageing import Ageing, composed
from scripts.phantom.deformation import ControlGrid
from scripts.phantom.demo import RUN, DemoCohort

SMALL = {"shape": (32, 36, 32), "subjects": 4, "held_out": 1, "streamlines": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Path(write_demo_cohort(tmp_path_factory.mktemp("data") / "demo", **SMALL))


@pytest.fixture(scope="module")
def truth(folder):
    return load_truth(folder)


def fingerprint(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def determinants(displacement):
    jacobian = np.stack([np.stack(np.gradient(part)) for part in displacement])
    jacobian += np.eye(3).reshape(3, 3, 1, 1, 1)
    return np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))


def test_the_layout_is_that_of_probtrackx2_and_shows_training_subjects_alone(folder):
    visible = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    assert visible == ["sub-01", "sub-02", "sub-03", "sub-04"]
    for name in visible:
        assert sorted(p.name for p in (folder / name / RUN).iterdir()) == [
            "fdt_paths.nii.gz",
            "waytotal",
        ]


def test_counts_are_whole_sparse_and_add_up(folder, truth):
    for subject in (*truth.training, *truth.held_out):
        image = nib.Nifti1Image.from_filename(subject.path / RUN / "fdt_paths.nii.gz")
        counts = np.asarray(image.dataobj)
        assert image.get_data_dtype() == np.float32
        assert counts.shape == (32, 36, 32)
        np.testing.assert_array_equal(counts, np.round(counts))
        np.testing.assert_array_equal(counts, subject.bundles.sum(0))
        assert counts.min() == 0
        assert 0.01 < (counts > 0).mean() < 0.3
        waytotal = int((subject.path / RUN / "waytotal").read_text())
        assert waytotal == subject.waytotal
        assert counts.max() < waytotal
        assert all(part.any() for part in subject.bundles)


def test_the_affine_is_ras_centred_and_the_same_everywhere(folder, truth):
    paths = sorted(folder.rglob("fdt_paths.nii.gz"))
    assert len(paths) == 5
    for path in paths:
        image = nib.Nifti1Image.from_filename(path)
        np.testing.assert_array_equal(image.affine, truth.affine)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_zooms() == (5.0, 5.0, 5.0)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 4


def test_tracts_lie_on_the_side_that_their_name_says(truth):
    x = np.arange(32) * truth.affine[0, 0] + truth.affine[0, 3]
    for name, counts in zip(truth.bundle_names, truth.central_bundles[0], strict=True):
        middle = (counts.sum((1, 2)) * x).sum() / counts.sum()
        side = {"_l": -1, "_r": 1}.get(name[-2:], 0)
        assert np.sign(np.round(middle / 3)) == side, name


def test_subjects_are_deformed_as_the_truth_says(truth):
    """Counts carried back with the true displacement lie on the central anatomy, as drawn not."""
    from scripts.phantom.scores import score_atlas

    none = [np.zeros((3, 32, 36, 32), np.float32)] * 4
    before = score_atlas(truth, none, none)
    true = score_atlas(
        truth, [s.to_template for s in truth.training], [s.to_subject for s in truth.training]
    )
    assert before["pair_dice"] < 0.35
    assert true["pair_dice"] > before["pair_dice"] + 0.3
    assert true["tre"] < 0.05 < 1 < before["tre"]
    assert true["shift"] < 0.05


def test_true_displacements_neither_fold_nor_drift(truth):
    support = truth.central[0] > 0
    for subject in (*truth.training, *truth.held_out):
        assert determinants(subject.to_template).min() > 0.15
        assert determinants(subject.to_subject).min() > 0.15
    fields = np.stack([subject.to_template for subject in truth.training])
    length = np.sqrt((fields**2).sum(1)[:, support].mean())
    assert 1.4 < length < 2.2  # 9 mm are 1.8 voxels here
    assert np.sqrt((fields.mean(0) ** 2).sum(0)[support].mean()) < 0.15 * length


def test_training_velocities_sum_to_zero():
    cohort = DemoCohort(subjects=5, held_out=2, shape=(32, 36, 32))
    support = np.zeros(cohort.shape, bool)
    support[10:20, 10:20, 10:20] = True
    velocities = cohort.velocities(support)
    assert velocities.shape == (7, 3, *ControlGrid(cohort.shape, cohort.voxel).shape)
    assert np.abs(velocities[:5].sum(0)).max() < 1e-12
    assert np.abs(velocities).max() > 1


def test_a_single_subject_can_be_made(tmp_path):
    made = write_demo_cohort(tmp_path / "one", **{**SMALL, "subjects": 1, "held_out": 0})
    assert len(load_truth(made).training) == 1


def test_a_rerun_is_equal_bit_by_bit_and_another_seed_is_not(folder, tmp_path):
    again = Path(write_demo_cohort(tmp_path / "again", **SMALL))
    assert fingerprint(again) == fingerprint(folder)
    other = fingerprint(Path(write_demo_cohort(tmp_path / "other", **SMALL, seed=1)))
    assert all(other[path] != seal for path, seal in fingerprint(folder).items()
               if not path.endswith("waytotal"))  # fmt: skip


def test_the_second_anatomy_alternates_and_has_other_bundles(tmp_path):
    truth = load_truth(write_demo_cohort(tmp_path / "mixture", **SMALL, anatomies=2))
    assert [subject.anatomy for subject in truth.training] == [0, 1, 0, 1]
    assert truth.central.shape == (2, 32, 36, 32)
    has = [{n for n, part in zip(truth.bundle_names, subject.bundles, strict=True) if part.any()}
           for subject in truth.training]  # fmt: skip
    assert has[0] == has[2] != has[1] == has[3]
    assert "arcuate_l" in has[0] - has[1]
    assert "inferior_longitudinal_r" in has[1] - has[0]


def test_the_record_names_what_was_made(truth):
    assert truth.record["seed"] == 0
    assert truth.record["training"] == [subject.name for subject in truth.training]
    assert truth.record["held_out"] == ["sub-05"]
    assert truth.held_out[0].held_out
    assert truth.record["versions"]["numpy"] == np.__version__
    assert truth.central.sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subjects": 0}, "subjects >= 1"),
        ({"held_out": -1}, "held_out >= 0"),
        ({"age_effect": 9.0}, "age_effect must be 0 to 8"),
        ({"age_effect": 3.0, "subjects": 2}, "at least 3 subjects"),
        ({"shape": (8, 36, 32)}, "at least 16 voxels"),
        ({"spacing": 0.0}, "spacing must be > 0"),
        ({"spacing": float("nan")}, "spacing must be > 0"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"streamlines": 0}, "streamlines must be at least 1"),
        ({"anatomies": 3}, "anatomies must be 1 to 2"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_demo_cohort(tmp_path / "demo", **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_never_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="not empty"):
        write_demo_cohort(tmp_path, **SMALL)
    assert ensure_demo_cohort(tmp_path) == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("existing", [False, True])
def test_ensure_makes_the_cohort_once_with_one_line(tmp_path, caplog, existing):
    folder = tmp_path / "deep" / "demo"
    if existing:
        folder.mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        assert ensure_demo_cohort(folder, **SMALL) == str(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"making the demo cohort in {folder}"
    ]
    before = fingerprint(folder)
    caplog.clear()
    assert ensure_demo_cohort(str(folder), **SMALL, seed=9) == str(folder)
    assert not caplog.records
    assert fingerprint(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, failure):
    def fail(self, folder):
        (folder / "sub-01").mkdir()
        raise failure

    monkeypatch.setattr(demo.DemoCohort, "write", fail)
    expected = StorageError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_demo_cohort(tmp_path / "demo", **SMALL)
    assert not list(tmp_path.iterdir())


def test_two_at_once_leave_one_whole_cohort(folder, tmp_path, monkeypatch):
    both_have_looked = threading.Barrier(2)
    write = demo.DemoCohort.write

    def write_when_both_are_at_it(self, path):
        both_have_looked.wait(timeout=30)
        write(self, path)

    monkeypatch.setattr(demo.DemoCohort, "write", write_when_both_are_at_it)
    made: list[str] = []
    workers = [
        threading.Thread(target=lambda: made.append(ensure_demo_cohort(tmp_path / "demo", **SMALL)))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made == [str(tmp_path / "demo")] * 2
    assert fingerprint(tmp_path / "demo") == fingerprint(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="can't be written"):
        write_demo_cohort(tmp_path / "file" / "demo", **SMALL)


def test_loading_the_truth_of_something_else_names_the_folder(tmp_path):
    with pytest.raises(CohortError, match=f"{tmp_path.name}.*not a demo cohort"):
        load_truth(tmp_path)


def test_a_list_serves_as_shape_and_the_record_is_plain_json(tmp_path):
    made = Path(ensure_demo_cohort(tmp_path / "demo", **{**SMALL, "shape": [16, 18, 16]}))
    record = json.loads((made / ".truth" / "truth.json").read_text())
    assert record["shape"] == [16, 18, 16]
    assert record["spacing_mm"] == 10.0


def test_the_generator_needs_no_torch():
    code = "import sys, scripts.phantom, scripts.phantom.scores; sys.exit('torch' in sys.modules)"
    root = Path(demo.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ, check=False)
    assert done.returncode == 0


@pytest.fixture(scope="module")
def ageing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ageing") / "demo"
    options = {**SMALL, "subjects": 6, "held_out": 2, "shape": (24, 27, 24)}
    write_demo_cohort(folder, age_effect=5.0, **options)
    return folder


def test_people_have_ages_in_a_table_beside_them(ageing):
    lines = (ageing / "participants.tsv").read_text().splitlines()
    assert lines[0] == "participant_id\tage\tsex"
    assert [line.split("\t")[0] for line in lines[1:]] == [f"sub-0{i}" for i in range(1, 7)]
    others = (ageing / ".truth" / "held_out" / "participants.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in others[1:]] == ["sub-07", "sub-08"]
    record = load_truth(ageing).record["age"]
    years = [float(line.split("\t")[1]) for line in [*lines[1:], *others[1:]]]
    assert years == record["years"]
    assert record["mean"] == pytest.approx(np.mean(years[:6]))


def test_true_anatomy_at_an_age_lies_where_age_moved_it(ageing):
    """Away from the centre with age, by the effect where it is largest; one bundle thins."""
    cohort = DemoCohort(subjects=6, held_out=2, shape=(24, 27, 24), streamlines=30, age_effect=5.0)
    ageing_of = Ageing(ControlGrid(cohort.shape, cohort.voxel), cohort.affine, 5.0)
    forward, backward = ageing_of.displacements(1.0)
    length = np.sqrt((forward**2).sum(0)) * cohort.voxel
    assert 4 < length.max() < 6
    assert np.abs(composed(forward, backward))[:, 4:-4, 4:-4, 4:-4].max() * cohort.voxel < 0.8
    truth = load_truth(ageing)
    assert sorted(truth.aged) == [-1.5, -0.75, 0.75, 1.5]
    voxels = np.argwhere(truth.central[0] >= 0)
    world = voxels @ cohort.affine[:3, :3].T + cohort.affine[:3, 3]
    away = np.linalg.norm(world - Ageing.CENTRE, axis=1)
    near = away < 45
    mean = [(m.ravel() * away)[near].sum() / m.ravel()[near].sum() for m in truth.aged.values()]
    assert mean == sorted(mean)
    assert Ageing.share(Ageing.THINNED, 1.0) == pytest.approx(0.7)
    assert Ageing.share("arcuate_l", 1.0) == 1


def test_without_an_age_effect_no_subject_has_an_age(folder):
    assert not list(folder.rglob("participants.tsv"))
    assert not load_truth(folder).aged


def test_what_a_killed_process_left_of_a_cohort_is_removed(tmp_path):
    program = (
        "import os, sys\nfrom scripts.phantom import demo\n"
        "demo.DemoCohort.write = lambda self, folder: os.kill(os.getpid(), 9)\n"
        "demo.write_demo_cohort(sys.argv[1])"
    )
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "demo")], cwd=root)
    assert killed.returncode == -9
    assert [path.name.startswith(".demo.staging-") for path in tmp_path.iterdir()] == [True]
    write_demo_cohort(tmp_path / "demo", subjects=1, held_out=0, shape=(16, 16, 16), streamlines=5)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
