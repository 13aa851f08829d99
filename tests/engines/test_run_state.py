"""To which run a folder belongs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.cohort import Cohort
from scripts.engines.run_state import RunState
from scripts.errors import CheckpointError
from scripts.settings.atlas import LearnedAtlasConfig


@pytest.fixture
def begin(
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Callable[..., RunState]:
    """Begin, or go on with, a run; ``left_out`` drops subjects of the cohort."""

    def make(
        left_out: int = 0, resume: bool = True, read_only: bool = False, **changes: Any
    ) -> Any:
        cohort = make_cohort()
        cohort = replace(cohort, subjects=cohort.subjects[left_out:])
        settings = make_settings(**changes)
        return RunState(tmp_path / "run", settings, cohort, resume=resume, read_only=read_only)

    return make


def leave_something(state: RunState) -> Path:
    """As a training does."""
    state.training.write_bytes(b"weights")
    return state.training


def test_an_unfinished_run_of_its_own_is_gone_on_with(begin: Callable[..., RunState]) -> None:
    left = leave_something(begin())
    begin()
    assert left.read_bytes() == b"weights"


def test_what_a_cut_may_have_damaged_is_made_again(begin: Callable[..., RunState]) -> None:
    state = begin()
    state.cache.mkdir()
    (state.cache / "x").write_bytes(b"half")
    begin()
    assert not state.cache.exists()


def test_a_finished_run_is_followed_by_a_fresh_one(begin: Callable[..., RunState]) -> None:
    state = begin()
    left = leave_something(state)
    state.finish("abc")
    assert state.belongs_to("abc")
    assert not state.belongs_to("abd")
    begin()
    assert not left.exists()
    assert not state.belongs_to("abc")


def test_resume_false_throws_an_unfinished_run_away(begin: Callable[..., RunState]) -> None:
    left = leave_something(begin())
    begin(resume=False)
    assert not left.exists()
    left = leave_something(begin())
    begin(resume=False, optimizer={"lr": 0.5})  # another's, too
    assert not left.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": {"lr": 0.5}}, ["learned_atlas.optimizer.lr was 0.001, now 0.5"]),
        ({"model": {"int_steps": 2}}, ["learned_atlas.model.int_steps was 5, now 2"]),
        ({"loss": {"scales": [1]}}, [r"learned_atlas.loss.scales was [1, 2], now [1]"]),
        ({"dtype": "bfloat16"}, ["learned_atlas.dtype was 'float32', now 'bfloat16'"]),
        (
            {"optimizer": {"epochs": 9, "seed": 3}},
            ["optimizer.epochs was 2, now 9", "optimizer.seed was 0, now 3"],
        ),
    ],
)
def test_other_settings_are_refused_by_name(
    changes: dict[str, Any], named: list[str], begin: Callable[..., RunState]
) -> None:
    left = leave_something(begin())
    with pytest.raises(CheckpointError) as caught:
        begin(**changes)
    for text in (*named, "--learned_atlas#resume false", str(left.parent)):
        assert text in str(caught.value)
    assert left.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"save_fields": False},
        {"verify_jacobian": False},
        {"presence_value": 0.5},
        {"emit_baseline_maps": ["mean"]},
        {"output_subdir": "elsewhere"},
        {"resume": True},
        {"cohort": {"cache": "disk", "num_workers": 2}},
        {"model": {"checkpointing": True}},
        {"device": "cuda:1"},
    ],
)
def test_settings_that_do_not_change_what_is_learned_may_change(
    changes: dict[str, Any], begin: Callable[..., RunState]
) -> None:
    left = leave_something(begin())
    begin(**changes)
    assert left.exists()


def test_another_cohort_is_refused(begin: Callable[..., RunState]) -> None:
    left = leave_something(begin())
    with pytest.raises(CheckpointError, match="belongs to another cohort"):
        begin(left_out=1)
    assert left.exists()


def test_another_cohorts_run_does_not_belong_to_the_same_weights(
    begin: Callable[..., RunState],
) -> None:
    begin().finish("abc")
    assert begin(read_only=True).belongs_to("abc")
    assert not begin(read_only=True, left_out=1).belongs_to("abc")


def test_looking_changes_nothing(begin: Callable[..., RunState], tmp_path: Path) -> None:
    begin(read_only=True)
    assert not (tmp_path / "run").exists()
    left = leave_something(begin())
    begin(read_only=True, optimizer={"lr": 0.5})
    assert left.exists()


def test_a_damaged_file_is_named(begin: Callable[..., RunState], tmp_path: Path) -> None:
    begin()
    (tmp_path / "run" / "run.json").write_text("{cut")
    with pytest.raises(CheckpointError, match=r"run\.json: damaged"):
        begin()


def test_another_format_is_refused(begin: Callable[..., RunState], tmp_path: Path) -> None:
    begin()
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="format 99"):
        begin()
