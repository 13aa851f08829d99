"""What a person types for a path or a name is that path, that name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.overrides import UsageError, apply_overrides, known_path, parse_overrides
from bundle.typed_values import as_expression, kind_of, typed_value

MONAI = pytest.importorskip("monai.bundle")

PATHS = [
    "study#2",
    "20240115",
    "2024_10_15",
    "pilot,2",
    "@home",
    "[x] y",
    "a b",
    "{x}",
    "1e5",
    "%x",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "key", ["dataset_dir", "warp#image", "learned_atlas#cohort#reference", "refine#fixed"]
)
def test_a_path_is_taken_as_typed(key: str, path: str) -> None:
    assert kind_of(key) == "path"
    for words in ([f"--{key}", path], [f"--{key}={path}"]):
        assert parse_overrides(words)[1] == {key: path}


def test_a_dash_after_a_key_that_holds_text_begins_its_value() -> None:
    assert parse_overrides(["--output_dir", "-out", "--a", "1"])[1] == {
        "output_dir": "-out",
        "a": 1,
    }
    with pytest.raises(UsageError, match="--output_dir needs a path"):
        parse_overrides(["--output_dir", "--a", "1"])


def test_home_is_put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    for key in ("output_dir", "learned_atlas#cohort#density_dir"):
        assert parse_overrides([f"--{key}=~/there"])[1] == {key: "/home/x/there"}
    assert parse_overrides(["--refine#moving", "['~/a.nii', b.nii]"])[1] == {
        "refine#moving": ["/home/x/a.nii", "b.nii"]
    }


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("names", "100310", ["100310"]),
        ("names", "0012,b", ["0012", "b"]),
        ("names", "[100301, '0012', \"a,b\"]", ["100301", "0012", "a,b"]),
        ("names", "[]", []),
        ("names_or_list", "list 1.txt", "list 1.txt"),
        ("names_or_list", "[100301, 100302]", ["100301", "100302"]),
        ("names_or_list", "null", None),
        ("paths", "pilot,2.nii", ["pilot,2.nii"]),
        ("paths", "['a,b.nii', c#d.nii]", ["a,b.nii", "c#d.nii"]),
        ("transforms", "[a.mat, 1]", [["a.mat", 1]]),
        ("transforms", "[a.mat, [b#.txt, 1]]", ["a.mat", ["b#.txt", 1]]),
        ("transform", "{path: a.mat, kind: ras}", {"path": "a.mat", "kind": "ras"}),
        ("path", "null", None),
        ("path", "'20240115'", "20240115"),
        ("text", "2024", "2024"),
    ],
)
def test_lists_names_and_transforms(kind: str, text: str, value: object) -> None:
    assert typed_value(kind, text) == value


def test_other_keys_are_read_as_before() -> None:
    for key in ("learned_atlas#optimizer#epochs", "align#starts", "learned_atlas#dtype", "no_such"):
        assert kind_of(key) == ""
    assert parse_overrides(["--align#starts", "[identity, centre]"])[1] == {
        "align#starts": ["identity", "centre"]
    }


def test_a_path_that_is_there_with_its_comma_or_brackets_is_one_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[a, b]", "x", "y"):
        Path(name).touch()
    assert typed_value("paths", "[a, b]") == ["[a, b]"]
    assert typed_value("paths", "x,y") == ["x", "y"]  # as Fire takes it, where both are there


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12))
def test_monai_takes_a_text_for_itself(text: str) -> None:
    """Whatever it holds, unless it is an expression that a person wrote."""
    if text[0] == "$":
        return
    parser = MONAI.ConfigParser({"a": {"b": [as_expression({}, text)]}})
    assert parser.get_parsed_content("a") == {"b": [text]}


@pytest.mark.parametrize("path", [*PATHS, "$HOME"])
def test_an_override_is_known_before_monai(path: str) -> None:
    config = {"dataset_dir": "x", "output_dir": "$@dataset_dir + '/out'"}
    passed = apply_overrides(config, {"dataset_dir": path})
    if path[0] != "$":
        assert known_path(config, "dataset_dir") == path
        assert known_path(config, "output_dir") == f"{path}/out"
    assert list(passed) == ["dataset_dir"]


def test_a_reference_stays_one_where_the_configuration_has_the_key() -> None:
    assert as_expression({"home": "x"}, "@home") == "@home"
    assert as_expression({}, "@home") != "@home"
