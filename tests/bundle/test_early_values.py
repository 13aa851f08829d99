"""Paths and settings that are known before MONAI is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_configuration import config

from bundle.early_values import early_settings, known_path
from bundle.overrides import (
    UsageError,
    apply_overrides,
)
from scripts.errors import ConfigurationError, StorageError
from scripts.runtime.error_report import find_user_error

ROOT = Path(__file__).resolve().parents[2]


def test_overrides_are_seen_by_the_early_check():
    changed = config()
    apply_overrides(changed, {"learned_atlas#refine#rounds": 2, "learned_atlas#refine#lr": "1e-2"})
    settings = early_settings(changed)
    assert (settings.refine.rounds, settings.refine.lr) == (2, 0.01)


@pytest.mark.parametrize(
    "block",
    [
        {"device": "$'cuda' if torch.cuda.is_available() else 'cpu'"},
        {"dtype": "@some#where"},
        {"device": "%other.yaml#device"},
    ],
)
def test_expressions_do_not_hide_another_settings_error(block):
    with pytest.raises(ConfigurationError, match="min_subjects = 0"):
        early_settings(config(min_subjects=0, **block))
    assert early_settings(config(**block)) is not None


def test_rules_that_read_an_unknown_value_wait_for_monai():
    # two channels need two tract names, which an expression may hold
    block = {"model": {"channels": 2}, "cohort": {"tracts": ["a"]}}
    with pytest.raises(ConfigurationError):
        early_settings(config(**block))
    block["model"]["channels"] = "$len(@names)"
    block["cohort"]["tracts"] = ["a", "b"]
    assert early_settings(config(**block)) is None


@pytest.mark.parametrize("block", [None, "%other.yaml", "@elsewhere"])
def test_no_block_to_judge(block):
    assert early_settings({"learned_atlas": block}) is None


@pytest.mark.parametrize("block", [[], 5])
def test_block_of_another_kind(block):
    with pytest.raises(ConfigurationError, match="must be a mapping"):
        early_settings({"learned_atlas": block})


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("/plain", "/plain"),
        ("@bundle_root", "."),
        ("$@bundle_root + '/data'", "./data"),
        ("$pathlib.Path(@bundle_root) / 'x'", "x"),
    ],
)
def test_a_path_is_what_the_job_will_take(value, path):
    given = {"imports": ["$import pathlib"], "bundle_root": ".", "dataset_dir": value}
    assert known_path(given, "dataset_dir") == path
    assert given["dataset_dir"] is value


def test_a_component_gives_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.phantom.ensure_demo_cohort", lambda folder: f"{folder}/made")
    demo = {"_target_": "scripts.phantom.ensure_demo_cohort", "folder": "$@bundle_root + '/demo'"}
    assert known_path({"bundle_root": "/r", "dataset_dir": demo}, "dataset_dir") == "/r/demo/made"


def test_a_plain_path_needs_no_monai():
    code = (
        "import sys; from bundle.early_values import known_path; "
        "assert known_path({'a': '@b', 'b': '/x'}, 'a') == '/x'; "
        "sys.exit('monai' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("$@nowhere + '/x'", "nowhere"),
        ("$@bundle_root + 1", "can only concatenate"),
        ("$(", "never closed"),
        ("%none.yaml#x", "No such file"),
        ("@loop", "circular"),
        ("@dataset_dir_typo", "dataset_dir_typo"),
        (None, "has no dataset_dir"),
        (5, "has no dataset_dir"),
    ],
)
def test_what_gives_no_path_is_reported_with_the_reason(value, reason):
    with pytest.raises(UsageError, match=f"{reason}.*; give --dataset_dir <folder>"):
        known_path({"bundle_root": ".", "loop": "@loop", "dataset_dir": value}, "dataset_dir")


def test_an_error_that_a_user_can_mend_stays_itself(monkeypatch):
    def fail(folder):
        raise StorageError("no room")

    monkeypatch.setattr("scripts.phantom.ensure_demo_cohort", fail)
    demo = {"_target_": "scripts.phantom.ensure_demo_cohort", "folder": "x"}
    with pytest.raises(Exception, match="Failed to instantiate") as caught:
        known_path({"dataset_dir": demo}, "dataset_dir")
    assert str(find_user_error(caught.value)) == "no room"


@pytest.mark.parametrize("value", ["$__import__('os').getcwd()", "$'a' + 'b'", "%file.yaml"])
def test_an_early_check_runs_no_expression(value):
    assert early_settings(config(device=value)) is not None
