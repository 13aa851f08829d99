"""Settings of the affine and elastic networks: rules, and messages that name them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.errors import ConfigurationError
from scripts.settings.affine import LearnedAffineConfig
from scripts.settings.elastic import LearnedElasticConfig
from scripts.settings.evaluate import EvaluateConfig
from scripts.settings.folds import FOLDS
from scripts.settings.monai_command import refuse_dropped_nulls
from scripts.settings.train_fields import TrainFieldsConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"model": {"passes": 0}}, "learned_affine.model.passes = 0: must be an integer from 1"),
        ({"folds": 3, "fold": 3}, "learned_affine.fold = 3: is not a fold"),
        ({"fold": -1}, "learned_affine.fold = -1: is not a fold"),
        ({"folds": 1}, "learned_affine.folds = 1: must be an integer >= 2"),
        ({"family": "similar"}, "learned_affine.family = 'similar': must be one of rigid"),
        ({"images": {"shape": [32]}}, "learned_affine.images.shape = .32.: has 1 entries"),
        ({"images": {"shape": [8, 32]}}, "has an entry below 16: 8"),
        ({"images": {"pattern": "x.nii"}}, "learned_affine.images.pattern = 'x.nii': has no {sub"),
        (
            {"images": {"exclude": ["a", "a"]}},
            "learned_affine.images.exclude = .*contains a name twice",
        ),
        ({"pairs": {"rotation": 120}}, "learned_affine.pairs.rotation = 120: must be .* <= 90"),
        ({"pairs": {"augmentations": ["blur"]}}, "names 'blur', which is not an augmentation"),
        (
            {"pairs": {"rotation": 0, "translation": 0, "scale": 0, "shear": 0}},
            "learned_affine.pairs: .*nothing to learn",
        ),
        ({"loss": {"parameter_weight": 0}}, "learned_affine.loss: .*both 0"),
        ({"modl": {}}, "learned_affine.modl = {}: unknown key; did you mean model?"),
    ],
)
def test_affine_rules(block, message):
    with pytest.raises(ConfigurationError, match=message.replace("?", r"\?").replace("{", r"\{")):
        LearnedAffineConfig.load(block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"images": {"levels": []}}, "learned_elastic.images.levels = .*non-empty"),
        ({"images": {"levels": [0.1, 0.1]}}, "learned_elastic.images.levels = .*a number twice"),
        ({"images": {"levels": [1]}}, "learned_elastic.images.levels = .*out of range"),
        ({"synthesis": {"warp": 0, "between_subjects": 0}}, "learned_elastic.synthesis: .*nothing"),
        ({"model": {"dec_features": [8]}}, "learned_elastic.model.dec_features = .8.: has 1 entr"),
        ({"loss": {"overlap_weight": 0}}, "learned_elastic.loss.overlap_weight = 0: must be"),
    ],
)
def test_elastic_rules(block, message):
    with pytest.raises(ConfigurationError, match=message):
        LearnedElasticConfig.load(block)


@pytest.mark.parametrize(
    ("config", "kind"),
    [("train_affine", LearnedAffineConfig), ("train_elastic", LearnedElasticConfig)],
)
def test_shipped_configurations_keep_the_rules(config, kind):
    text = (ROOT / "configs" / f"{config}.yaml").read_text(encoding="utf-8")
    block = yaml.safe_load(text)[kind.key_path]
    kind.load({**block, "device": "cpu", "fold": 0})


def test_settings_need_no_torch():
    code = (
        "import sys, scripts.settings.affine, scripts.settings.elastic; "
        "sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_job_has_the_same_folds_by_default():
    pairs = {"pairs": "p.h5"}
    blocks = {
        "train_affine": LearnedAffineConfig, "train_elastic": LearnedElasticConfig,
        "train_fields": TrainFieldsConfig, "evaluate": EvaluateConfig,
    }  # fmt: skip
    for name, kind in blocks.items():
        given = pairs if kind is TrainFieldsConfig else {}
        assert kind.load(given).folds == FOLDS == 5
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text("utf-8"))
        assert config[kind.key_path]["folds"] == FOLDS


@pytest.mark.parametrize("text", ["null", "None", None])
def test_null_as_text_is_no_fold(text):
    """MONAI's command hands on ``--fold null`` as text."""
    settings = LearnedAffineConfig.load({"fold": text, "images": {"spacing": text}})
    assert settings.fold is None
    assert settings.images.spacing is None
    with pytest.raises(
        ConfigurationError, match=r"learned_affine.folds = 'null': is not an integer"
    ):
        LearnedAffineConfig.load({"folds": "null"})


MONAI = "/env/monai/bundle/__main__.py"


@pytest.mark.parametrize(
    "words", [["--fold", "None"], ["--fold=None"], ["--seed", "1", "--a#b", " None "]]
)
def test_monais_command_drops_none_so_it_is_refused(words):
    key = words[-2] if "=" not in words[0] else "--fold"
    with pytest.raises(ConfigurationError, match=f"{key} None: MONAI.*must be {key} null"):
        refuse_dropped_nulls([MONAI, "run", "training", *words])
    refuse_dropped_nulls(["bundle/__main__.py", *words])
    refuse_dropped_nulls([MONAI, "run", "training", "--fold", "null", "--name", "Nonesuch"])
