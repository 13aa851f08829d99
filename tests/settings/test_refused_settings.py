"""The `learned_atlas:` block: a message for every violation."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from atlas_table import (
    AFFINE,
    CHOICES,
    FLAGS,
    INTEGERS,
    NUMBERS,
    block,
    refusal,
)
from hypothesis import given
from hypothesis import strategies as st

from scripts.errors import ConfigurationError
from scripts.settings import section as sections
from scripts.settings.atlas import (
    LearnedAtlasConfig,
    LearnedAtlasLossConfig,
    LearnedAtlasModelConfig,
    LearnedAtlasOptimizerConfig,
    LearnedAtlasRefineConfig,
)
from scripts.settings.cohort import LearnedAtlasCohortConfig

# -------------------------------------------------------------------------------- what is refused

NO_NUMBERS = [
    True,
    False,
    "nan",
    "inf",
    "-inf",
    float("nan"),
    float("inf"),
    -float("inf"),
    np.bool_(True),
    "1e999",
    10**400,
    "",
    "fast",
    "1_000",
    "0x10",
    None,
    [],
    {},
    1j,
    b"1",
]
NO_INTEGERS = [
    *(value for value in NO_NUMBERS if not (isinstance(value, int) and value > 1)),
    2.5,
    2.0,
    "2.0",
    "2.5",
    "1e2",
    Fraction(5, 2),
    "٣",
]
NO_FLAGS = [0, 1, "yes", "no", "0", "1", "", None, [], "truee", 1.0]
NO_TEXTS = [None, 3, True, ["cpu"], b"cpu", {}]

BAD = [
    *[(key, value, "a number") for key in NUMBERS for value in NO_NUMBERS],
    *[(key, value, "a number") for key, (_, bad) in NUMBERS.items() for value in bad],
    *[(key, value, "integer") for key in INTEGERS for value in NO_INTEGERS],
    *[(key, low - 1, "integer") for key, (low, _) in INTEGERS.items()],
    *[(key, high + 1, "integer") for key, (_, high) in INTEGERS.items() if high is not None],
    *[("loss.window", value, "odd integer >= 3") for value in [1, 4, -7, True, 7.0, "8"]],
    *[(key, value, "true or false") for key in FLAGS for value in NO_FLAGS],
    *[(key, value, CHOICES[key][0]) for key in CHOICES for value in [*NO_TEXTS, "", "other"]],
    *[(key, CHOICES[key][0].upper(), CHOICES[key][0]) for key in CHOICES],
    *[
        ("device", value, "cpu, cuda or cuda:N")
        for value in [
            *NO_TEXTS,
            "",
            "CPU",
            "cuda:",
            "cuda:-1",
            "cuda:a",
            "cpu:0",
            "gpu",
            "cuda:0 ",
            "mps",
            " cpu",
            "cpu\n",
            "cuda:0\n",
            "cpu|cuda",
            "cuda:0,1",
            "cuda:٣",
        ]
    ],
    *[
        ("emit_baseline_maps", value, "non-empty list out of mean, std, std_error, cov")
        for value in [
            [],
            "mean",
            None,
            {"mean": 1},
            ["std"],
            ["mean", "mean"],
            ["mean", "median"],
            3,
            ["Mean"],
            {"mean"},
        ]
    ],
    *[
        ("output_subdir", value, "one path component")
        for value in [
            "",
            ".",
            "..",
            "...",
            "a/b",
            "/a",
            "a/",
            "a\\b",
            "../a",
            ".hidden",
            "a\0b",
            "a\nb",
            "atlas",
            "Atlas",
            "ATLAS",
            "x" * 256,
            "é" * 128,
            " a",
            "a ",
            "a.",
            "~a",
            "-a",
            "a:b",
            "a*",
            "$a",
            "a|b",
            None,
            3,
            True,
            ["a"],
        ]
    ],
    *[
        (key, value, "non-empty list of integers, each >= 1")
        for key in ["model.enc_features", "model.dec_features"]
        for value in [[], [0], [16, -1], "16", 16, None, {"a": 1}]
    ],
    *[
        ("model.passes", value, "1, 2, 4 and 8")
        for value in [[], [0], [3], [1, 16], [1] * 9, [-1], 1, "2 1", [True], [2.0]]
    ],
    *[
        ("model.initial", value, "null, shipped, or the path of a .pt file")
        for value in ["", "shiped", "model.onnx", 3, True, ["shipped"]]
    ],
    *[("model.field_resolution", value, "1, 2 or 4") for value in [0, 3, 8, -1, "a", True, 2.0]],
    *[
        ("cohort.pattern", value, "a path with {subject}")
        for value in [
            "",
            " ",
            "tdi.nii.gz",
            "/x/{subject}.nii",
            "../{subject}.nii",
            "{subject}/../x.nii",
            "{subject}/{hemi}.nii",
            "{subject",
            "{subject}}/x",
            "{subject}//x",
            "{subject}/",
            "./{subject}",
            "{subject}/a**/x",
            "{subject}/**",
            "C:/{subject}",
            "~/{subject}",
            3,
            "{subject}\\x",
            "{subject}/a\0b",
        ]
    ],
    *[
        ("cohort.subjects", value, "non-empty list of distinct names")
        for value in [[], ["a", "a"], [""], [1.5], "sub-01", 3.5, {"a": 1}, "subjects.xml", True]
    ],
    *[
        ("cohort.exclude", value, "a list of distinct")
        for value in ["a", None, [1.5], [True], ["a", "a"]]
    ],
    *[
        ("cohort.tracts", value, "distinct tract names")
        for value in ["cst", None, ["a", "a"], [""], ["../a"], [".."], ["a\\b"], [1.5]]
    ],
]


def test_numbers_are_names_where_subjects_are_named():
    """YAML takes 100310 for a number."""
    result = LearnedAtlasConfig.load({"cohort": {"subjects": [100301, "b"], "exclude": 100310}})
    assert result.cohort.subjects == ["100301", "b"]
    assert result.cohort.exclude == ["100310"]
    assert LearnedAtlasConfig.load({"cohort": {"subjects": 7}}).cohort.subjects == ["7"]


@pytest.mark.parametrize(
    "key, value, rule", BAD, ids=[f"{key}={value!r:.30}" for key, value, _ in BAD]
)
def test_every_violation_names_key_value_and_rule(key, value, rule):
    message = refusal(block(key, value))
    shown = value[0] if key.endswith("features") and isinstance(value, list) and value else value
    assert f"learned_atlas.{key}" in message
    assert sections._shorten(shown).strip("[]") in message
    assert rule in message


@pytest.mark.parametrize("relpath", [None, "", "  "])
def test_relpath_is_required_in_affine_space(relpath):
    message = refusal({**AFFINE, "affine_native_relpath": relpath})
    assert f"learned_atlas.affine_native_relpath = {relpath!r}" in message
    assert "required with training_space affine_native" in message


def test_relpath_missing_altogether_in_affine_space():
    assert "learned_atlas.affine_native_relpath = None" in refusal(AFFINE)


@pytest.mark.parametrize(
    "relpath, reason",
    [
        ("/data/x.nii.gz", "is absolute"),
        ("C:/x.nii.gz", "is absolute"),
        ("~/x.nii.gz", "is absolute"),
        ("../x.nii.gz", "contains '..'"),
        ("a/../../x.nii.gz", "contains '..'"),
        ("a/..", "contains '..'"),
        ("..\\x.nii.gz", "contains a backslash"),
        ("a\0.nii.gz", "contains a control character"),
        ("a//b.nii.gz", "contains an empty part"),
        ("a/", "contains an empty part"),
        (".", "contains an empty part or '.'"),
        ("{subject}.nii.gz", "unknown placeholder {subject}"),
        ("{tract/x.nii.gz", "unmatched brace"),
    ],
)
@pytest.mark.parametrize("space", ["affine_native", "template_native"])
def test_relpath_stays_inside_the_subject_folder(relpath, reason, space):
    message = refusal({"training_space": space, "affine_native_relpath": relpath})
    assert f"learned_atlas.affine_native_relpath = {relpath!r}" in message
    assert reason in message


def test_decoder_needs_an_entry_per_up_sampling_step():
    message = refusal({"model": {"enc_features": [8, 8, 8], "dec_features": [8, 8]}})
    assert "learned_atlas.model.dec_features = [8, 8]: has 2 entries for 3 upsampling" in message


def test_default_decoder_is_checked_against_a_deeper_encoder():
    assert "has 5 entries for 6" in refusal({"model": {"enc_features": [8] * 6}})


def test_quarter_resolution_needs_two_levels():
    message = refusal({"model": {"enc_features": [8], "field_resolution": 4}})
    assert "learned_atlas.model.field_resolution = 4" in message


@pytest.mark.parametrize("zero", [0, 0.0, "0", -0.0, "0e5"])
def test_all_loss_weights_zero(zero):
    names = ["similarity_weight", "presence_weight", "smoothness_weight"]
    message = refusal({"loss": {**dict.fromkeys(names, zero), "centrality_weight": 1}})
    assert message.startswith("learned_atlas.loss: ")
    assert all(name in message for name in names)


def test_as_many_tracts_as_channels():
    message = refusal({"cohort": {"tracts": ["af", "cst"]}})
    assert "tracts has 2 names and model.channels is 1" in message
    assert LearnedAtlasConfig.load({"cohort": {"tracts": ["af"]}}).cohort.tracts == ["af"]


def test_pattern_contradicts_affine_space():
    values = {**AFFINE, "affine_native_relpath": "x.nii", "cohort": {"pattern": "{subject}/x.nii"}}
    assert "learned_atlas.cohort: pattern isn't used" in refusal(values)


@pytest.mark.parametrize(
    "values, path, hint",
    [
        ({"min_subject": 3}, "learned_atlas.min_subject = 3", "did you mean min_subjects?"),
        ({"optimizer": {"learning_rate": 1}}, "learned_atlas.optimizer.learning_rate = 1", "lr"),
        ({"model": {"chanels": 1}}, "learned_atlas.model.chanels = 1", "did you mean channels?"),
        ({"loss": {"ncc": 1}}, "learned_atlas.loss.ncc = 1", "similarity_weight"),
        ({"optimizer#lr": 1}, "learned_atlas.optimizer#lr = 1", "must be one of enabled"),
        ({1: 2}, "learned_atlas.1", "unknown key"),
        ({None: 2}, "learned_atlas.None", "unknown key"),
    ],
)
def test_unknown_keys(values, path, hint):
    message = refusal(values)
    assert path in message
    assert "unknown key" in message
    assert hint in message


@pytest.mark.parametrize("values", [[], "enabled", 3, True, [("enabled", True)]])
def test_block_must_be_a_mapping(values):
    assert refusal(values) == f"learned_atlas = {values!r}: must be a mapping of settings"


@pytest.mark.parametrize("section", ["model", "loss", "optimizer", "cohort", "refine"])
@pytest.mark.parametrize("values", [[], "x", 3, True])
def test_sections_must_be_mappings(section, values):
    expected = f"learned_atlas.{section} = {values!r}: must be a mapping of settings"
    assert refusal({section: values}) == expected


def test_one_line_per_violation():
    message = refusal(
        {
            "device": "gpu",
            "optimizer": {"lr": -1, "epochs": -1},
            "model": {"enc_features": [16, 0]},
            "training_space": "affine_native",
            "lr": 1,
        }
    )
    lines = message.splitlines()
    assert len(lines) == 6
    keys = sorted(line.split(" = ")[0].removeprefix("learned_atlas.") for line in lines)
    assert keys == [
        "affine_native_relpath",
        "device",
        "lr",
        "model.enc_features",
        "optimizer.epochs",
        "optimizer.lr",
    ]


def test_entries_of_lists_are_named_by_their_index():
    message = refusal({"model": {"enc_features": [16, "x"]}})
    assert "learned_atlas.model.enc_features[1] = 'x'" in message


def test_a_long_value_is_cut():
    assert len(refusal({"output_subdir": "x" * 10_000})) < 700


@pytest.mark.parametrize(
    "section, values, path",
    [
        (LearnedAtlasConfig, {"min_subjects": 0}, "learned_atlas.min_subjects"),
        (LearnedAtlasModelConfig, {"channels": 0}, "learned_atlas.model.channels"),
        (LearnedAtlasLossConfig, {"log_offset": 0}, "learned_atlas.loss.log_offset"),
        (LearnedAtlasOptimizerConfig, {"lr": True}, "learned_atlas.optimizer.lr"),
        (LearnedAtlasCohortConfig, {"margin": -1}, "learned_atlas.cohort.margin"),
        (LearnedAtlasRefineConfig, {"iterations": 0}, "learned_atlas.refine.iterations"),
    ],
)
def test_sections_on_their_own_raise_the_same_error(section, values, path):
    for attempt in (section.load, lambda given_: section(**given_)):
        with pytest.raises(ConfigurationError, match=path):
            attempt(values)


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(LearnedAtlasConfig.model_fields)), _anything))
def test_whatever_is_given_either_loads_or_is_a_configuration_error(values):
    try:
        config = LearnedAtlasConfig.load(values)
    except ConfigurationError as error:
        assert "learned_atlas" in str(error)
    else:
        assert LearnedAtlasConfig.load(config.as_dict()) == config


@given(st.text())
def test_an_accepted_folder_name_is_one_component(name):
    try:
        accepted = LearnedAtlasConfig.load({"output_subdir": name}).output_subdir
    except ConfigurationError:
        return
    assert Path("/root", accepted).resolve().parent == Path("/root").resolve()
    assert Path(accepted).name == name
