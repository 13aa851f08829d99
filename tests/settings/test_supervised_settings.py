"""The three blocks: losses by name, and settings that contradict each other."""

from __future__ import annotations

import pytest

from scripts.errors import ConfigurationError
from scripts.settings.field_losses import FIELD_LOSSES, IMAGE_LOSSES, mixture_of
from scripts.settings.make_pairs import MakePairsConfig
from scripts.settings.predict_fields import PredictFieldsConfig
from scripts.settings.train_fields import TrainFieldsConfig

PAIRS = {"pairs": "a.h5"}


def test_losses_default_to_those_of_the_contract():
    def names(**changes):
        return TrainFieldsConfig.load({**PAIRS, **changes}).loss_names()

    assert names() == ["ncc_9", "vector_distance"]
    assert names(network="local") == ["ncc_9", "vector_distance&vdclip2", "vector_distance"]
    plain = names(network="local", model={"compute_inv": False})
    assert plain == ["ncc_9", "vector_distance&vdclip2"]
    assert TrainFieldsConfig.load(PAIRS).loss_weights() == [1.0, 1.0]


def test_every_name_is_taken_alone_and_mixed_in_either_order():
    for name in IMAGE_LOSSES:
        assert mixture_of(name, field=False) == [(1.0, name)]
        assert mixture_of(name, field=True) == [(1.0, name)]
    for name in FIELD_LOSSES:
        assert mixture_of(name, field=True) == [(1.0, name)]
        assert mixture_of(f"{name}&ncc_5", True) == [(0.5, name), (0.5, "ncc_5")]
        assert mixture_of(f"ncc_5&{name}", True) == [(0.5, "ncc_5"), (0.5, name)]
    assert mixture_of("vdclip2:10", True) == [(1.0, "vdclip2:10")]
    assert mixture_of("0.2*mae & .8*grad", True) == [(0.2, "mae"), (0.8, "grad")]


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("foo", False, "names 'foo', which is not a loss of an image"),
        ("vector_distance", False, "not a loss of an image"),
        ("foo", True, "not a loss of a field"),
        ("vdclip0", True, "not a loss of a field"),
        ("vdclip2:0", True, "not a loss of a field"),
        ("0.5*mae&mse", True, "a weight for some"),
        ("x*mae", True, "'x' where a weight"),
        ("0*mae&0*mse", True, "weights that are all 0"),
        ("", True, "not a loss of a field"),
        ("mae&", True, "not a loss of a field"),
    ],
)
def test_losses_that_make_no_sense_are_refused(text, field, message):
    with pytest.raises(ValueError, match=message):
        mixture_of(text, field)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ["mae"]}, "losses has 1 entries; a global network has 2 outputs: image, field"),
        ({"losses": ["mae", "foo"]}, r"losses\[1\] = 'foo' names 'foo'"),
        ({"losses_weights": [1]}, "losses_weights = .* must be 2 numbers >= 0, not all 0"),
        ({"losses_weights": [0, 0]}, "not all 0"),
        ({"losses_weights": [1, -1]}, "must be 2 numbers >= 0"),
        ({"optimizer": {"epochs": 0}}, "epochs = 0 is for network merged"),
        ({"global_model": "a.pt"}, "global_model is for the networks local and merged"),
        ({"local_model": "a.pt"}, "local_model is for network merged"),
        ({"fold": 0, "validation": "b.h5"}, "fold and validation exclude each other"),
        ({"fold": 0, "indexes": [1]}, "fold and indexes exclude each other"),
        ({"fold": 5}, r"train_fields\.fold = 5: is not a fold"),
        ({"model": {"up_filters": [8]}}, "has 1 entries, down_filters has 4"),
        ({"model": {"down_filters": []}}, "is empty"),
        ({"augment": {"augment_ref": ["zoom"]}}, "'zoom', which is not an augmentation"),
        ({"indexes": []}, "is empty"),
        ({"network": "both"}, "must be global, local or merged"),
        ({"pairs": " "}, r"train_fields\.pairs = ' ': is missing"),
    ],
)  # fmt: skip
def test_training_settings_are_refused_with_key_value_and_rule(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        TrainFieldsConfig.load({**PAIRS, **changes})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "needs either reference or atlas_dir"),
        ({"reference": [], "count": 3, "seed": 1}, r"atlas_dir \(given: \{'reference': \[\]\}\)$"),
        ({"reference": "a", "atlas_dir": "b"}, "needs either reference or atlas_dir"),
        ({"reference": "a", "dims": 4}, "is not a number of dimensions"),
        ({"reference": "a", "shape": [8, 8]}, "has an entry below 16"),
        ({"reference": "a", "elastic": {"kind": "none"}, "affine": {"probability": 0}},
         "nothing would move"),
        ({"reference": "a", "elastic": {"kind": "waves"}}, "must be noise, control_points"),
    ],
)  # fmt: skip
def test_pair_settings_are_refused(block, message):
    with pytest.raises(ConfigurationError, match=message):
        MakePairsConfig.load(block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "needs either pairs, or fixed and moving"),
        ({"pairs": "a", "fixed": "b", "moving": "c"}, "needs either pairs, or fixed and moving"),
        ({"fixed": "b"}, "needs moving too"),
        ({"moving": "b"}, "needs fixed too"),
        ({"fixed": "b", "moving": ["x/a.nii", "y/a.nii.gz"]}, "several images called a"),
    ],
)
def test_prediction_settings_are_refused(block, message):
    with pytest.raises(ConfigurationError, match=message):
        PredictFieldsConfig.load(block)
