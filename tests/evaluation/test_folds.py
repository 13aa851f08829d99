"""Cross-validation: every subject held out once, never on both sides, and folds that resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scripts.cohort import read_cohort
from scripts.errors import CheckpointError, CohortError, ConfigurationError
from scripts.evaluation.folds import CrossValidation, _without, cut
from scripts.phantom import write_demo_cohort
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.evaluate import EvaluateConfig

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "device": "cpu", "dtype": "float32", "min_subjects": 2, "save_fields": False,
    "cohort": {"margin": 1}, "model": {"enc_features": [4], "dec_features": [4, 4]},
    "optimizer": {"epochs": 1}, "refine": {"rounds": 0, "network_epochs": 1},
    "loss": {"window": 3, "scales": [1]},
}  # fmt: skip


@pytest.mark.parametrize(("n", "folds"), [(10, 5), (11, 3), (4, 4)])
def test_the_cut_is_a_partition_in_nearly_equal_parts(n, folds):
    names = [f"sub-{i:02d}" for i in range(n)]
    parts = cut(names, folds, seed=1)
    assert sorted(name for part in parts for name in part) == names
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes[0] == max(sizes)
    assert parts == cut(names, folds, seed=1)
    assert n == folds or parts != cut(names, folds, seed=2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "demo"
    write_demo_cohort(folder, subjects=4, held_out=0, shape=(16, 18, 16))
    return folder


def validation(data: Path, folder: Path, folds: int = 2, **asked) -> CrossValidation:
    return CrossValidation(
        data, folder / "output", folder / "models", ROOT / "configs/train.yaml",
        ROOT / "configs/evaluate.yaml", LearnedAtlasConfig.load({**TINY, **asked}),
        EvaluateConfig.load({"folds": folds}), ROOT,
    )  # fmt: skip


class Interrupted(Exception):
    pass


def test_folds_are_trained_once_and_every_subject_is_held_out_once(cohort, tmp_path, monkeypatch):
    jobs: list[str] = []
    run = CrossValidation._run

    def counted(self, config, run_id, **overrides):
        if len(jobs) == 3 and run_id == "evaluating":
            jobs.append("interrupted")
            raise Interrupted
        jobs.append(run_id)
        run(self, config, run_id, **overrides)

    monkeypatch.setattr(CrossValidation, "_run", counted)
    with pytest.raises(Interrupted):
        validation(cohort, tmp_path).run()
    assert jobs == ["training", "evaluating", "training", "interrupted"]
    assert not (tmp_path / "output").exists()
    with pytest.raises(CheckpointError, match="other folds"):
        validation(cohort, tmp_path, folds=3).run()
    with pytest.raises(CheckpointError, match="other settings"):
        validation(cohort, tmp_path, optimizer={"epochs": 2}).run()

    folder = validation(cohort, tmp_path).run()
    assert jobs[4:] == ["evaluating"]
    about = json.loads((folder / "evaluation.json").read_text())
    names = [one["subject"] for one in about["subjects"]]
    assert sorted(names) == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert len({fold["weights"] for fold in about["folds"]}) == 2
    for fold in about["folds"]:
        assert sorted(fold["subjects"]) == sorted(
            one["subject"] for one in about["subjects"] if one["fold"] == fold["fold"]
        )
        assert fold["templates"][0]["efc_average"] > 0
        inside = tmp_path / "models" / "cross_validation" / f"fold-{fold['fold']}"
        trained_on = json.loads((inside / "learned_atlas" / "atlas.json").read_text())["cohort"]
        others = {one["subject"] for one in trained_on["subjects"]}
        assert others == set(names) - set(fold["subjects"])
    mean = sum(one["correlation"] for one in about["subjects"]) / 4
    assert about["summary"]["correlation"]["mean"] == pytest.approx(mean)


def test_images_of_a_person_are_held_out_together(cohort, tmp_path):
    for number, folder in enumerate(sorted(cohort.glob("sub-*"))):
        map_file = next(folder.rglob("fdt_paths.nii.gz"))
        name = f"p{number // 2}_t{number % 2}.nii.gz"
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copy(map_file, tmp_path / "data" / name)
    pattern = {"pattern": "{subject}_{run}.nii.gz", "normalisation": "none", "margin": 1}
    made = validation(tmp_path / "data", tmp_path, cohort=pattern)
    settings = made._training_settings()
    whole = read_cohort(tmp_path / "data", settings.cohort_request())
    parts = made._parts(whole, settings)
    assert sorted(parts) == [["p0_t0", "p0_t1"], ["p1_t0", "p1_t1"]]
    # What a fold leaves out by the names of images is left out, and no other image is renamed.
    left = _without(settings.model_dump(exclude_unset=True), parts[0])
    rest = read_cohort(tmp_path / "data", left.cohort_request())
    assert [one.name for one in rest.subjects] == parts[1]
    made.settings = EvaluateConfig.load({"folds": 3})
    with pytest.raises(CohortError, match=r"2 usable subjects .* evaluate.folds = 3 parts"):
        made._parts(whole, settings)


@pytest.mark.parametrize(
    ("folds", "asked", "message"),
    [
        (5, {}, "4 usable subjects in .* can't be split into evaluate.folds = 5 parts"),
        (2, {"min_subjects": 3}, "2 of 4 subjects remain for training"),
    ],
)
def test_a_cohort_too_small_to_be_cut(cohort, tmp_path, folds, asked, message):
    with pytest.raises(CohortError, match=message):
        validation(cohort, tmp_path, folds, **asked).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["missing", "damaged"])
def test_folds_without_their_plan_are_not_believed(cohort, tmp_path, monkeypatch, what):
    def interrupted(self, config, run_id, **overrides):
        Path(overrides["ckpt_dir"]).mkdir(parents=True)
        raise Interrupted

    monkeypatch.setattr(CrossValidation, "_run", interrupted)
    with pytest.raises(Interrupted):
        validation(cohort, tmp_path).run()
    plan = tmp_path / "models" / "cross_validation" / "folds.json"
    if what == "missing":
        plan.unlink()
    else:
        raw = bytearray(plan.read_bytes())
        raw[raw.index(b"seed") + 7] ^= 1
        plan.write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"folds\.json: .*{what}"):
        validation(cohort, tmp_path).run()


def test_settings_of_an_evaluation():
    with pytest.raises(ConfigurationError, match=r"evaluate.folds = 1: must be an integer >= 2"):
        EvaluateConfig.load({"folds": 1})
