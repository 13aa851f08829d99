"""Reading the command line and the configuration without MONAI, yet as MONAI reads them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_configuration import config

from bundle.overrides import (
    UsageError,
    apply_overrides,
    locate_config_files,
    parse_overrides,
    parse_value,
    read_config,
)

ROOT = Path(__file__).resolve().parents[2]


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
    result = locate_config_files(["both.yaml", "mine.yaml"], root)
    assert result == [here / "both.yaml", root / "mine.yaml"]
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
def test_unknown_keys_are_reported(key, message):
    with pytest.raises(UsageError, match=message):
        apply_overrides(config(), {key: 1})


def test_a_later_file_reaches_down_to_a_single_value(tmp_path):
    """As the multi-GPU overlay does, and as MONAI reads it."""
    (tmp_path / "base.yaml").write_text("train: {batches: {size: 3}, handlers: [a]}\n")
    (tmp_path / "over.yaml").write_text("train#batches#rank: 1\n+train::handlers: [b]\n")
    merged = read_config([tmp_path / "base.yaml", tmp_path / "over.yaml"])
    assert merged == {"train": {"batches": {"size": 3, "rank": 1}, "handlers": ["a", "b"]}}
