"""Settings of a learning rate over a training, which all trainers share; torch-free."""

from __future__ import annotations

from typing import Literal, get_args

from scripts.settings.section import Section, setting
from scripts.settings.values import Integer, Number

__all__ = ["SCHEDULES", "RateScheduleConfig", "Schedule"]

Schedule = Literal["constant", "cosine", "late_cosine", "step", "plateau", "one_cycle"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


class RateScheduleConfig(Section):
    """How the learning rate changes."""

    schedule: Schedule = setting(
        "cosine",
        "How the learning rate changes. constant: it stays; cosine: it falls to 1 % along a "
        "cosine; late_cosine: it stays for 60 % of the steps, then falls to 0 along a cosine; "
        "step: it is multiplied by schedule_factor every schedule_epochs epochs; plateau: the "
        "same after schedule_epochs epochs without a lower mean training loss; one_cycle: it "
        "rises from 4 % over 30 % of the steps, then falls to nearly 0. All but one_cycle rise "
        "over the first epoch.",
        f"one of {', '.join(SCHEDULES)}",
    )
    schedule_epochs: Integer = setting(
        10, "Epochs between the drops of schedule step; patience of schedule plateau.", ge=1
    )
    schedule_factor: Number = setting(
        0.1,
        "Factor of each drop of the schedules step and plateau.",
        "a number > 0 and < 1",
        gt=0,
        lt=1,
    )
