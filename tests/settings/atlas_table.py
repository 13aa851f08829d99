"""The `learned_atlas:` block as a table: defaults, bounds, choices."""

from pathlib import Path

import pytest

from scripts.errors import ConfigurationError
from scripts.settings.atlas import (
    LearnedAtlasConfig,
)

ROOT = Path(__file__).resolve().parents[2]
AFFINE = {"training_space": "affine_native"}

# The contract's table, key by key.
DEFAULTS = {
    "enabled": True,
    "training_space": "template_native",
    "device": "cuda",
    "dtype": "float32",
    "affine_native_relpath": None,
    "emit_baseline_maps": ["mean", "std", "std_error", "cov", "prob_threshold"],
    "output_subdir": "learned_atlas",
    "min_subjects": 5,
    "save_fields": True,
    "verify_jacobian": True,
    "model.channels": 1,
    "model.n_templates": 1,
    "model.int_steps": 7,
    "model.enc_features": [16, 32, 32, 32],
    "model.dec_features": [32, 32, 32, 16, 16],
    "loss.similarity_weight": 1.0,
    "loss.presence_weight": 0.5,
    "loss.smoothness_weight": 0.5,
    "loss.log_offset": 1e-3,
    "optimizer.lr": 1e-4,
    "optimizer.epochs": 50,
    "optimizer.batch_size": 2,
    "optimizer.seed": 0,
    "presence_value": 0.1,
    "cov_mean_threshold_pct": 0.01,
}

FLAGS = [
    "enabled",
    "save_fields",
    "verify_jacobian",
    "resume",
    "model.checkpointing",
    "cohort.resample",
]
# Smallest and greatest value allowed (None: no bound).
INTEGERS = {
    "min_subjects": (1, None),
    "model.channels": (1, None),
    "model.n_templates": (1, None),
    "model.int_steps": (0, 10),
    "optimizer.epochs": (0, None),
    "optimizer.batch_size": (1, None),
    "optimizer.seed": (0, None),
    "optimizer.warmup_epochs": (0, None),
    "optimizer.early_stop_patience": (0, None),
    "cohort.margin": (0, None),
    "cohort.num_workers": (0, None),
    "refine.network_rounds": (0, None),
    "refine.rounds": (0, None),
    "refine.iterations": (1, None),
    "refine.new_subject_iterations": (0, None),
}
# An allowed value at or next to the bound, and refused ones.
NUMBERS = {
    "loss.similarity_weight": (0, [-1e-9]),
    "loss.presence_weight": (0, [-1]),
    "loss.smoothness_weight": (0, [-0.5]),
    "loss.centrality_weight": (0, [-1]),
    "loss.log_offset": (1e-12, [0, -1e-3]),
    "optimizer.lr": (1e-12, [0, -1]),
    "optimizer.template_lr_ratio": (10, [0, 10.001]),
    "optimizer.gradient_clip": (1e-12, [0]),
    "refine.lr": (1e-12, [0]),
    "presence_value": (0, [-0.1]),
    "cov_mean_threshold_pct": (0, [-0.01, 1]),
}
CHOICES = {
    "training_space": ["template_native", "affine_native"],
    "dtype": ["float16", "float32", "bfloat16"],
    "cohort.layout": ["probtrackx2", "mrtrix3", "xtract", "tractseg", "bids", "flat"],
    "cohort.normalisation": ["waytotal", "streamline_density", "max", "none"],
    "cohort.cache": ["ram", "device", "disk", "none"],
}


def block(key: str, value: object) -> dict:
    """The block that sets one key."""
    *section, name = key.split(".")
    inner = {name: value}
    return {section[0]: inner} if section else inner


def value_at(config: LearnedAtlasConfig, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def refusal(values: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        LearnedAtlasConfig.load(values)
    return str(caught.value)
