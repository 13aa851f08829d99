"""Shares of the learning rate: closed forms, and nothing but steps and losses counts."""

from __future__ import annotations

import math

import pytest

from scripts.engines.rates import RateShares
from scripts.settings.affine import LearnedAffineConfig
from scripts.settings.schedules import SCHEDULES

STEPS, LENGTH = 120, 10
LOSSES = [3.0, 2.0, 2.5, 2.4, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.6, 0.7]


def shares(name: str, **more: float) -> list[float]:
    made = RateShares(name, STEPS, LENGTH, **more)  # type: ignore[arg-type]
    return [made.at(step, LOSSES[: step // LENGTH]) for step in range(STEPS)]


def test_constant_stays() -> None:
    assert shares("constant") == [1.0] * STEPS


def test_a_cosine_falls_to_its_last_share() -> None:
    result = shares("cosine")
    expected = [0.01 + 0.99 * (1 + math.cos(math.pi * n / STEPS)) / 2 for n in range(STEPS)]
    assert result == pytest.approx(expected)


def test_a_late_cosine_stays_for_three_fifths() -> None:
    result = shares("late_cosine")
    assert result[:73] == [1.0] * 73
    assert result[73:] == sorted(result[73:], reverse=True)
    assert result[72 + 24] == pytest.approx(0.5)
    assert result[-1] < 0.01


def test_steps_drop_every_so_many_epochs() -> None:
    result = shares("step", every=3, factor=0.5)
    assert result == pytest.approx([0.5 ** (step // (3 * LENGTH)) for step in range(STEPS)])


def test_a_plateau_drops_after_so_many_epochs_without_a_lower_loss() -> None:
    result = shares("plateau", every=2, factor=0.5)
    # Epochs 2 and 3 aren't below 2.0, epochs 5 and 6 and 7 and 8 not below 1.0.
    by_epoch = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125]
    assert result == [by_epoch[step // LENGTH] for step in range(STEPS)]


def test_one_cycle_rises_to_the_largest_rate_and_falls_to_nearly_nothing() -> None:
    result = shares("one_cycle")
    top = result.index(max(result))
    assert result[0] == pytest.approx(1 / 25)
    assert result[top] == pytest.approx(1.0)
    assert top == pytest.approx(0.3 * STEPS, abs=1)
    assert result[: top + 1] == sorted(result[: top + 1])
    assert result[top:] == sorted(result[top:], reverse=True)
    assert result[-1] < 1e-5


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_share_is_the_same_whether_asked_in_turn_or_at_once(name: str) -> None:
    result = shares(name, every=2, factor=0.3)
    made = RateShares(name, STEPS, LENGTH, 2, 0.3)
    for step in (119, 37, 80, 0):  # forwards and backwards
        assert made.at(step, LOSSES[: step // LENGTH]) == result[step]


def test_the_settings_know_every_name_and_no_other() -> None:
    for name in SCHEDULES:
        LearnedAffineConfig.load({"optimizer": {"schedule": name}})
        assert len(shares(name)) == STEPS
    with pytest.raises(ValueError, match="schedule must be one of"):
        RateShares("cyclic", STEPS, LENGTH)
