"""What a person types for a path or a name is that path, that name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.early_values import known_path
from bundle.overrides import UsageError, apply_overrides, parse_overrides, quoted_texts, read_config
from bundle.typed_values import PATH_KEYS, as_expression, kind_of, typed_value
from scripts.settings import BLOCKS
from scripts.settings.section import Section

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


ROOT = Path(__file__).resolve().parents[2]
KINDS = ("path", "paths", "paths_by_name", "transform", "transforms")


def keys_of(model: type[Section], above: str) -> list[str]:
    """Keys of settings that hold a path."""
    result = []
    for name, field in model.model_fields.items():
        kind, key = field.annotation, f"{above}#{name}"
        if isinstance(kind, type) and issubclass(kind, Section):
            result += keys_of(kind, key)
        elif kind_of(key) in KINDS:
            result.append(f"{key}#FA" if kind_of(key) == "paths_by_name" else key)
    return result


OF_BLOCKS = [key for name, block in BLOCKS.items() for key in keys_of(block.schema(), name)]
OF_COMPONENTS = ["publisher#folder", "cross_validation#train_config", "state#ckpt_dir"]


def test_all_paths_of_settings_are_known_as_such() -> None:
    assert len(OF_BLOCKS) > 35
    assert {"train_fields#pairs", "register_stack#stack", "tract_stats#images#FA"} < {*OF_BLOCKS}
    for file in (ROOT / "configs").glob("*.yaml"):
        for key in read_config([file]):
            if key.endswith(("_dir", "_file", "_root")):
                assert kind_of(key) == "path", (file, key)


@pytest.mark.parametrize("path", [*PATHS, "~ x", "O'Brien", "a::b", "-x.nii", "--y", "2024-01"])
def test_every_path_arrives_as_typed(path: str) -> None:
    """From the word on the command line to what MONAI's parser hands to the job."""
    for key in (*sorted(PATH_KEYS), "input", "moving", *OF_BLOCKS, *OF_COMPONENTS):
        *sections, last = key.split("#")
        config: dict = {}
        inner = config
        for name in sections:
            inner = inner.setdefault(name, {})
        inner[last] = "x"
        given = MONAI.ConfigParser({**config, "_meta_": {}})
        words = [f"--{key}={path}"] if path[:2] == "--" else [f"--{key}", path]
        for name, value in apply_overrides(config, parse_overrides(words)[1]).items():
            given[name] = value
        result = given.get_parsed_content(key.replace("#", "::"))
        assert result in (path, [path]), key


def test_a_path_in_a_file_is_that_path_too(tmp_path: Path) -> None:
    """MONAI would read ``study::2``."""
    file = tmp_path / "own #1.yaml"
    file.write_text(
        "dataset_dir: study#2\noutput_dir: $@dataset_dir + '/x'\nckpt_dir: '@dataset_dir'\n"
        "warp:\n  image: a#b::c\n  transforms: ['m#1.mat', {path: 'n#2', kind: ras}]\n"
        "other: a#b\n"
    )
    config = read_config([file])
    passed = quoted_texts(config)
    assert set(passed) == {"dataset_dir", "warp#image", "warp#transforms"}
    parser = MONAI.ConfigParser(config)
    for name, value in passed.items():
        parser[name] = value
    assert parser.get_parsed_content("output_dir") == "study#2/x"
    assert parser.get_parsed_content("ckpt_dir") == "study#2"
    assert parser.get_parsed_content("warp") == {
        "image": "a#b::c", "transforms": ["m#1.mat", {"path": "n#2", "kind": "ras"}]
    }  # fmt: skip


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
        ("transform", "{path: p,2.mat, inverse: 1}", {"path": "p,2.mat", "inverse": 1}),
        ("transform", "{'path': 'a: #b', 'kind': 'ras'}", {"path": "a: #b", "kind": "ras"}),
        (
            "paths_by_name",
            "{FA: a,b/{subject}.nii, MD: c#d}",
            {"FA": "a,b/{subject}.nii", "MD": "c#d"},
        ),
        ("paths_by_name", "FA", "FA"),
        ("indexes", "a #1,2.npy", "a #1,2.npy"),
        ("indexes", "1,2", (1, 2)),
        ("indexes", "[3]", [3]),
        ("paths", "[O'Brien.nii, b.nii]", ["O'Brien.nii", "b.nii"]),
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
