"""The initial network of a training and its length, if the settings give neither."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.settings.atlas import LearnedAtlasConfig

AUTO: dict[str, Any] = {
    "model": {"initial": "auto"},
    "optimizer": {"epochs": "auto"},
    "refine": dict.fromkeys(("network_rounds", "iterations", "final_lr", "network_epochs"), "auto"),
}


def lengths(config: LearnedAtlasConfig) -> tuple[object, ...]:
    refine = config.refine
    return (
        config.optimizer.epochs, refine.network_rounds, refine.iterations, refine.final_lr,
        refine.network_epochs,
    )  # fmt: skip


def test_the_network_that_came_along_needs_no_training():
    config = LearnedAtlasConfig.load(AUTO)
    assert config.model.initial == "shipped"
    assert lengths(config) == (0, 3, 8, 0.02, 0)


@pytest.mark.parametrize("null", [None, "null"])
def test_random_weights_are_trained(null):
    config = LearnedAtlasConfig.load({**AUTO, "model": {"initial": null}})
    assert config.model.initial is None
    assert lengths(config) == (20, 0, 10, None, 30)


@pytest.mark.parametrize(
    "features",
    [{"enc_features": [4, 8], "dec_features": [8, 8, 4]}, {"field_resolution": 1}],
)
def test_another_network_than_the_one_that_came_along_starts_from_random_weights(features):
    config = LearnedAtlasConfig.load({**AUTO, "model": {"initial": "auto", **features}})
    assert config.model.initial is None
    assert lengths(config) == (20, 0, 10, None, 30)


def test_the_features_may_be_those_of_the_network_that_came_along():
    features = {"enc_features": (16, 32, 32, 32), "dec_features": [32, 32, 32, 16, 16]}
    config = LearnedAtlasConfig.load({**AUTO, "model": {"initial": "auto", **features}})
    assert config.model.initial == "shipped"


def test_a_length_that_is_given_stays():
    config = LearnedAtlasConfig.load({**AUTO, "optimizer": {"epochs": 7}})
    assert lengths(config) == (7, 3, 8, 0.02, 0)
