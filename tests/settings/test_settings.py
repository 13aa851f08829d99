"""The `learned_atlas:` block: defaults, and what is accepted."""

import json
import logging
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pytest
from atlas_table import (
    AFFINE,
    CHOICES,
    DEFAULTS,
    FLAGS,
    INTEGERS,
    NUMBERS,
    ROOT,
    block,
    value_at,
)

from scripts.errors import ConfigurationError
from scripts.settings.atlas import (
    LearnedAtlasConfig,
    LearnedAtlasLossConfig,
    LearnedAtlasModelConfig,
    LearnedAtlasOptimizerConfig,
    LearnedAtlasRefineConfig,
    load_settings,
)
from scripts.settings.cohort import LearnedAtlasCohortConfig

# ------------------------------------------------------------------------------- what is accepted


@pytest.mark.parametrize("values", [None, {}, {"model": None, "loss": None}, {"cohort": {}}])
def test_nothing_given_is_all_defaults(values):
    config = LearnedAtlasConfig.load(values)
    assert {key: value_at(config, key) for key in DEFAULTS} == DEFAULTS


def test_number_types_of_defaults_are_kept():
    config = LearnedAtlasConfig.load({"loss": {"similarity_weight": 2}, "min_subjects": "3"})
    assert type(config.loss.similarity_weight) is float
    assert type(config.min_subjects) is int


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize(
    "given_, number", [("1e-4", 1e-4), (" 0.5 ", 0.5), (np.float32(0.25), 0.25)]
)
def test_numeric_text_and_numpy_are_numbers(key, given_, number):
    assert value_at(LearnedAtlasConfig.load(block(key, given_)), key) == number


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("given_", [3, "3", " +3 ", np.int64(3)])
def test_integral_text_and_numpy_are_integers(key, given_):
    assert value_at(LearnedAtlasConfig.load(block(key, given_)), key) == 3


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize(
    "given_, flag", [(True, True), (False, False), ("true", True), ("False", False)]
)
def test_flags_as_the_command_line_brings_them(key, given_, flag):
    assert value_at(LearnedAtlasConfig.load(block(key, given_)), key) is flag


@pytest.mark.parametrize("key, value", [(k, v) for k, values in CHOICES.items() for v in values])
def test_every_choice_is_accepted(key, value):
    values = {**block(key, value), "affine_native_relpath": "dwi/tdi.nii.gz"}
    assert value_at(LearnedAtlasConfig.load(values), key) == value


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device):
    assert LearnedAtlasConfig.load({"device": device}).device == device


@pytest.mark.parametrize("relpath", ["a.nii.gz", "dwi/{tract}/tdi.nii.gz", "x/{run}/..y/d.nii"])
def test_paths_inside_the_subject_folder(relpath):
    config = LearnedAtlasConfig.load({**AFFINE, "affine_native_relpath": relpath})
    assert config.affine_native_relpath == relpath


@pytest.mark.parametrize("relpath", [None, ""])
def test_relpath_is_not_required_in_template_space(relpath):
    assert LearnedAtlasConfig.load({"affine_native_relpath": relpath}).training_space


@pytest.mark.parametrize("maps", [["mean"], ("cov", "mean"), DEFAULTS["emit_baseline_maps"]])
def test_maps(maps):
    assert LearnedAtlasConfig.load({"emit_baseline_maps": maps}).emit_baseline_maps == list(maps)


@pytest.mark.parametrize("name", ["atlas2", "my atlas", "атлас", "learned_atlas-1.0", "é" * 127])
def test_safe_folder_names(name):
    assert LearnedAtlasConfig.load({"output_subdir": name}).output_subdir == name


@pytest.mark.parametrize(
    "enc, dec", [([8], [4]), (["8", 16], (4, 4)), ([1, 1], [1, 1, 1, 1]), ([16] * 4, [1] * 4)]
)
def test_features(enc, dec):
    model = LearnedAtlasConfig.load({"model": {"enc_features": enc, "dec_features": dec}}).model
    assert model.enc_features == [int(n) for n in enc]
    assert model.dec_features == list(dec)


def test_a_single_loss_weight_is_enough():
    weights = {"similarity_weight": 0, "presence_weight": 0, "smoothness_weight": "1e-9"}
    assert LearnedAtlasConfig.load({"loss": weights}).loss.smoothness_weight == 1e-9


def test_several_channels_need_no_names():
    assert LearnedAtlasConfig.load({"model": {"channels": 3}}).cohort.tracts == []


def test_any_mapping_and_loaded_settings_are_accepted():
    values = MappingProxyType({"loss": MappingProxyType({"window": 9})})
    config = LearnedAtlasConfig.load(values)
    assert config.loss.window == 9
    assert LearnedAtlasConfig.load(config) is config


def test_as_dict_survives_json_and_loads_again():
    config = LearnedAtlasConfig.load({"optimizer": {"lr": "3e-4"}, "cohort": {"subjects": ["a"]}})
    assert LearnedAtlasConfig.load(json.loads(json.dumps(config.as_dict()))) == config


def test_settings_are_frozen():
    config = LearnedAtlasConfig.load()
    with pytest.raises(ValueError, match="frozen"):
        config.min_subjects = 1
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 1.0


def test_defaults_are_not_shared_between_settings():
    LearnedAtlasConfig.load().emit_baseline_maps.append("mean")
    assert LearnedAtlasConfig.load().emit_baseline_maps == DEFAULTS["emit_baseline_maps"]


# --------------------------------------------------------------------------- rules, docs, configs


def test_every_setting_has_a_description_and_a_rule():
    for section in [
        LearnedAtlasConfig,
        LearnedAtlasModelConfig,
        LearnedAtlasLossConfig,
        LearnedAtlasOptimizerConfig,
        LearnedAtlasCohortConfig,
        LearnedAtlasRefineConfig,
    ]:
        for name, described in section.model_json_schema()["properties"].items():
            assert described.get("description"), name
            assert described.get("rule"), name


def test_load_settings_of_a_disabled_block_ends_quietly(caplog, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended:
        load_settings({"enabled": "false"})
    assert ended.value.code == 0
    assert len(caplog.records) == 1


def test_a_disabled_block_is_validated_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ConfigurationError):
        load_settings({"enabled": False, "min_subjects": 0})


def test_load_settings_shows_violations_without_a_traceback():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from scripts.settings.atlas import load_settings as s\ns({'optimizer': {'lr': -1}})",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: learned_atlas.optimizer.lr = -1: must be a number > 0\n"


def test_settings_need_nothing_heavy():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom scripts.settings.atlas import LearnedAtlasConfig\n"
            "LearnedAtlasConfig.load({'model': {'channels': '2'}})\n"
            "print([name for name in ('torch', 'monai', 'numpy') if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.strip() == "[]"
