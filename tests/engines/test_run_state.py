"""To which run a folder belongs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.cohort import Cohort
from scripts.engines.run_state import RunState, check_earlier_run
from scripts.errors import CheckpointError, ConfigurationError, StorageError
from scripts.settings.atlas import LearnedAtlasConfig


@pytest.fixture
def begin(
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Callable[..., RunState]:
    """Begin, or continue with, a run; ``left_out`` drops subjects of the cohort."""

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


def test_an_unfinished_run_with_the_same_settings_is_continued(
    begin: Callable[..., RunState],
) -> None:
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


@pytest.mark.parametrize("also", ["", "cache/x", "fold-1/run_state/run.json", ".123.training.pt"])
def test_a_run_that_saved_nothing_gives_way_to_any_other(
    also: str, begin: Callable[..., RunState], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = begin().folder / (also or "run.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if also:
        path.write_text("{}")
    begin(optimizer={"lr": 0.5})
    assert "saved nothing is discarded: " in caplog.text
    assert "learned_atlas.optimizer.lr was 0.001, now 0.5" in caplog.text
    assert path.exists() is not bool(also)
    leave_something(begin(left_out=1, optimizer={"lr": 0.5}))
    with pytest.raises(CheckpointError, match="another cohort"):
        begin(optimizer={"lr": 0.5})


def test_a_run_that_saved_nothing_protects_no_file_of_others_from_being_named(
    begin: Callable[..., RunState],
) -> None:
    notes = begin().folder / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(CheckpointError, match="other settings"):
        begin(optimizer={"lr": 0.5})
    assert notes.read_text() == "mine"


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
    run = json.loads(path.read_text())
    run["signature"]["format"] = 99
    del run["checksum"]  # another version may make it otherwise, or not at all
    path.write_text(json.dumps(run))
    path.with_name("training.pt").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="format 99"):
        begin()


@pytest.mark.parametrize("name", ["notes.txt", "training.pt", "other/training.pt"])
def test_a_folder_of_something_else_is_neither_cleared_nor_used(
    name: str, begin: Callable[..., RunState], tmp_path: Path
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(
        StorageError, match=rf"run: would be cleared .* contains {name.split('/')[0]}"
    ):
        begin()
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "option"), [("run_state", "ckpt_dir"), (".aligned.unfinished", "output_dir")]
)
def test_a_refusal_names_the_key_of_the_folder(name: str, option: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=f"choose another --{option}"):
        check_earlier_run(tmp_path / name)


def test_what_was_added_to_a_finished_run_is_named_and_stays(
    begin: Callable[..., RunState],
) -> None:
    state = begin()
    state.finish("abc")
    (state.folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        begin()
    (state.folder / "notes.txt").unlink()
    begin()


def test_a_cut_while_a_run_is_cleared_leaves_a_folder_that_is_known(
    begin: Callable[..., RunState],
) -> None:
    state = begin()
    left = leave_something(state)
    (state.folder / "run.json").write_text('{"cleared": true}')
    begin()
    assert not left.exists()


def test_no_flipped_bit_of_the_description_is_believed(begin: Callable[..., RunState]) -> None:
    begin()
    path = begin().folder / "run.json"
    raw = path.read_bytes()
    for bit in range(0, 8 * len(raw), 37):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            begin(read_only=True)
        except CheckpointError as error:
            assert "run.json" in str(error) or "format" in str(error)
        else:
            assert flipped.split() == raw.split()  # white space alone


def test_a_run_in_the_root_of_the_file_system_is_refused(
    make_cohort: Callable[..., Cohort], make_settings: Callable[..., LearnedAtlasConfig]
) -> None:
    with pytest.raises(ConfigurationError, match="root of the file system"):
        RunState("/run_state", make_settings(), make_cohort())
