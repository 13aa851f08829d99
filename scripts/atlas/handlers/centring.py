"""Tracks the cohort's mean velocity during the training."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from scripts.atlas.training_step import bare
from scripts.runtime.processes import add_up

__all__ = ["Centring"]


class Centring:
    """Running mean of the velocity over the subjects, in the network's ``mean_velocity``.

    The centrality loss pulls against it, and evaluation subtracts it. (Subtracting it during
    training was tried, but such a loop integrates its error: the raw field drifted by 15 voxels in
    700 steps without any effect on the loss.) After training it is replaced by the exact mean, see
    `scripts.atlas.cohort_refinement`.

    Args:
        network: the atlas network.
        rate: share of the newest batch in the running mean.
    """

    def __init__(self, network: torch.nn.Module, rate: float = 0.05) -> None:
        self.network = bare(network)
        self.rate = rate

    def attach(self, engine: Engine) -> None:
        """Update in each step (after it, MONAI has split the output into subjects)."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Add the last batch, for each template weighted by the subjects that it explains."""
        output: Any = engine.state.output
        velocity, weight = output["velocity"], output["responsibility"]
        shares = weight.sum(0)
        per_template = torch.einsum("bk,bk...->k...", weight, velocity)
        add_up(shares, per_template)
        count = shares.sum().clamp_min(1e-6)  # a subject's responsibilities sum to 1
        for k, share in enumerate(shares / count):
            newest = per_template[k] / shares[k].clamp_min(1e-6)
            self.network.mean_velocity[k].lerp_(newest, float(self.rate * share))
        self.network.mixture.lerp_(shares / count, self.rate)
