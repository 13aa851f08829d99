"""Settings of the label transfer: rules, the config that ships, the docs."""

from pathlib import Path

import pytest
import yaml

from scripts.errors import ConfigurationError
from scripts.settings.label_transfer import LabelTransferConfig

ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_is_documented_with_its_default():
    text = (ROOT / "docs" / "label_transfer.md").read_text(encoding="utf-8")
    section = text.split("| `label_transfer#` |")[1].split("\n\n")[0]
    rows = [line.split("`") for line in section.splitlines() if line.startswith("| `")]
    documented = {row[1]: yaml.safe_load(row[3]) for row in rows}
    assert documented == LabelTransferConfig().as_dict()


def test_the_config_has_the_defaults():
    config = yaml.safe_load((ROOT / "configs" / "transfer_labels.yaml").read_text())
    assert LabelTransferConfig.load(config["label_transfer"]) == LabelTransferConfig()
    assert set(config["label_transfer"]) == set(LabelTransferConfig.model_fields)


def test_the_defaults_are_those_of_the_contract():
    """Feydy et al., MICCAI 2019, but for the scaling: 0.9 is ten times slower, no more accurate."""
    expected = {
        "n_points": 20, "end_weight": 2.0, "blur": 3.0, "reach": 20.0, "scaling": 0.5,
        "outlier_threshold": 0.2,
    }  # fmt: skip
    result = LabelTransferConfig().as_dict()
    assert {key: result[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_points", 1), ("end_weight", 0), ("blur", -1), ("reach", "inf"), ("scaling", 1),
        ("scaling", 0), ("outlier_threshold", 1.5), ("solver", "fast"), ("n_clusters", 0),
        ("seed", -1), ("device", "gpu"), ("threads", 0), ("format", "nii"), ("labels", " "),
        ("blurr", 3),
    ],
)  # fmt: skip
def test_a_broken_rule_names_key_and_value(key, value):
    with pytest.raises(ConfigurationError, match=rf"label_transfer\.{key} = "):
        LabelTransferConfig.load({key: value})
