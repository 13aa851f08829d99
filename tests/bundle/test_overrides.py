"""Reading the command line and the configuration without MONAI, yet as MONAI reads them."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.overrides import (
    UsageError,
    apply_overrides,
    early_settings,
    known_path,
    locate_config_files,
    parse_overrides,
    parse_value,
    read_config,
)
from scripts.errors import ConfigurationError, StorageError
from scripts.runtime.error_report import find_user_error

ROOT = Path(__file__).resolve().parents[2]


def config(**block):
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "learned_atlas": {"optimizer": {"lr": 1e-3}, **block},
        "trainer": {"max_epochs": 5, "handlers": [{"name": "a"}, {"name": "b"}]},
        "losses": "$[1, 2]",
    }


# --- the command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-1", -1),
        ("1e-3", 1e-3),
        ("True", True),
        ("true", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("no", "no"),
        ("sub-01", "sub-01"),
        ("2024-01-01", "2024-01-01"),
        ("[1, 2]", [1, 2]),
        ("[mean,std]", ["mean", "std"]),
        ("{a: 1}", {"a": 1}),
        ("/data/a b", "/data/a b"),
        ("$@epochs * 2", "$@epochs * 2"),
        ("@device", "@device"),
        ("%other.yaml#block", "%other.yaml#block"),
        ("'5'", "5"),
        ("", ""),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("words", "files", "overrides"),
    [
        ([], [], {}),
        (["--a", "1"], [], {"a": 1}),
        (["--a=1"], [], {"a": 1}),
        (["--a=b=c"], [], {"a": "b=c"}),
        (["--a="], [], {"a": ""}),
        (["-a", "1"], [], {"a": 1}),
        (["--flag"], [], {"flag": True}),
        (["--flag", "--a", "1"], [], {"flag": True, "a": 1}),
        (["--flag", "false"], [], {"flag": False}),
        (["--lr", "-1"], [], {"lr": -1}),
        (["--block#optimizer#lr", "1e-3"], [], {"block#optimizer#lr": 1e-3}),
        (["--block::optimizer::lr", "1e-3"], [], {"block#optimizer#lr": 1e-3}),
        (["--dataset-dir", "x"], [], {"dataset_dir": "x"}),
        (["--a", "1", "--a", "2"], [], {"a": 2}),
        (["--config_file", "a.yaml"], ["a.yaml"], {}),
        (["--config_file", "a.yaml", "--config_file=b.yaml"], ["a.yaml", "b.yaml"], {}),
        (["--config_file", "['a.yaml','b.yaml']"], ["a.yaml", "b.yaml"], {}),
        (["--config-file", "5"], ["5"], {}),
    ],
)
def test_command_lines(words, files, overrides):
    assert parse_overrides(words) == (files, overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stray"], "unexpected argument 'stray'"),
        (["--a", "1", "2"], "unexpected argument '2'"),
        (["--"], "'--' has no key"),
        (["--=1"], "'--=1' has no key"),
        (["--config_file"], "--config_file needs a path"),
    ],
)
def test_command_lines_without_sense(words, message):
    with pytest.raises(UsageError, match=message):
        parse_overrides(words)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}(#[a-z_]{1,8})?", fullmatch=True), st.integers()))
def test_both_spellings_say_the_same(pairs):
    pairs.pop("config_file", None)
    spaced = [word for key, value in pairs.items() for word in (f"--{key}", str(value))]
    joined = [f"--{key}={value}" for key, value in pairs.items()]
    assert parse_overrides(spaced) == parse_overrides(joined) == ([], pairs)


# --- configurations ---------------------------------------------------------------------------


def test_later_files_replace_top_level_keys(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("x: {p: 1, q: 2}\ny: [1]\nz: 0\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"x": {"p": 3}, "+y": [2], "+w": 4}', encoding="utf-8")
    merged = read_config([tmp_path / "a.yaml", tmp_path / "b.json"])
    assert merged == {"x": {"p": 3}, "y": [1, 2], "z": 0, "w": 4}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [1", "can't be read"),
        ("a.json", "{", "can't be read"),
        ("a.yaml", "- 1\n", "contains no mapping"),
        ("a.yaml", "", "contains no mapping"),
    ],
)
def test_files_without_sense(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        read_config([tmp_path / name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_are_looked_for_here_then_in_the_bundle(tmp_path, monkeypatch):
    here, root = tmp_path / "here", tmp_path / "root"
    for folder, names in ((here, ["both.yaml"]), (root, ["both.yaml", "mine.yaml"])):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    monkeypatch.chdir(here)
    found = locate_config_files(["both.yaml", "mine.yaml"], root)
    assert found == [here / "both.yaml", root / "mine.yaml"]
    with pytest.raises(UsageError, match=r"no such configuration file: none\.yaml"):
        locate_config_files(["none.yaml"], root)


@pytest.mark.parametrize(
    ("key", "value", "passed"),
    [
        ("dataset_dir", "/x", {"dataset_dir": "/x"}),
        ("learned_atlas#optimizer#lr", 2, {"learned_atlas#optimizer#lr": 2}),
        # a key that the section lacks, then a section that the block lacks
        ("learned_atlas#optimizer#seed", 3, {"learned_atlas#optimizer#seed": 3}),
        ("learned_atlas#cohort#margin", 3, {"learned_atlas#cohort": {"margin": 3}}),
        # MONAI drops an override that is None
        ("learned_atlas#device", None, {"learned_atlas#device": "$None"}),
        ("learned_atlas#cohort#pattern", None, {"learned_atlas#cohort": {"pattern": "$None"}}),
        ("trainer#handlers#1#name", "c", {"trainer#handlers#1#name": "c"}),
        ("losses#0", 7, {"losses#0": 7}),
        ("run_id", "other", {"run_id": "other"}),
    ],
)
def test_overrides_reach_monai(key, value, passed):
    assert apply_overrides(config(), {key: value}) == passed


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("datset_dir", r"--datset_dir: .* has no datset_dir; did you mean --dataset_dir\?"),
        ("trainer#handlers#7#name", "trainer#handlers in the configuration has no 7"),
        ("trainer#handelrs#0", "trainer in the configuration has no handelrs"),
    ],
)
def test_unknown_keys_are_told(key, message):
    with pytest.raises(UsageError, match=message):
        apply_overrides(config(), {key: 1})


def test_overrides_are_seen_by_the_early_check():
    changed = config()
    apply_overrides(changed, {"learned_atlas#refine#rounds": 2, "learned_atlas#refine#lr": "1e-2"})
    settings = early_settings(changed)
    assert (settings.refine.rounds, settings.refine.lr) == (2, 0.01)


# --- early settings ---------------------------------------------------------------------------


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
        "import sys; from bundle.overrides import known_path; "
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
def test_what_gives_no_path_is_told_with_the_reason(value, reason):
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


def test_a_later_file_reaches_down_to_a_single_value(tmp_path):
    """As the multi-GPU overlay does, and as MONAI reads it."""
    (tmp_path / "base.yaml").write_text("train: {batches: {size: 3}, handlers: [a]}\n")
    (tmp_path / "over.yaml").write_text("train#batches#rank: 1\n+train::handlers: [b]\n")
    merged = read_config([tmp_path / "base.yaml", tmp_path / "over.yaml"])
    assert merged == {"train": {"batches": {"size": 3, "rank": 1}, "handlers": ["a", "b"]}}
