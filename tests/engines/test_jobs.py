"""A program's values in a shipped configuration."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from scripts.engines.jobs import CONFIGS, job_config, run_job
from scripts.errors import ConfigurationError


def value(config: dict, id: str) -> object:
    return ConfigParser(config).get_parsed_content(id)


def test_values_and_settings_replace_those_of_the_file_and_the_rest_stays():
    shipped = job_config("train.yaml", {}, "learned_atlas", {})
    config = job_config(
        "train.yaml",
        {"output_dir": "$1 + 1", "train#dataset#data": ["@x"]},
        "learned_atlas",
        {"optimizer": {"epochs": 7}, "min_subjects": 3},
    )
    assert value(config, "output_dir") == "$1 + 1"
    assert value(config, "train#dataset#data") == ["@x"]
    assert value(config, "learned_atlas#optimizer#epochs") == 7
    kept = shipped["learned_atlas"]["optimizer"]
    assert {**config["learned_atlas"]["optimizer"], "epochs": kept["epochs"]} == kept


def test_a_second_file_replaces_values_of_the_first():
    over = ConfigParser.load_config_file(str(CONFIGS / "build.yaml"))
    config = job_config("train.yaml", {}, "learned_atlas", {}, "build.yaml")
    for id, expected in over.items():
        part = config
        for key in id.split("#"):
            part = part[key]
        assert part == expected


def test_a_user_s_error_is_raised_itself():
    def fail() -> None:
        raise ConfigurationError("blur = -1: must be above 0")

    with pytest.raises(ConfigurationError, match=r"^blur = -1: must be above 0$"):
        run_job({"job": {"_target_": fail}}, "job")
