"""Training of the network that ships, on generated pairs alone."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from scripts.engines.opening import reserved
from scripts.engines.rates import RateShares
from scripts.errors import CheckpointError, TrainingError
from scripts.losses.atlas_loss import AtlasLoss
from scripts.networks.checkpoint import load_checkpoint, save_checkpoint
from scripts.networks.precision import autocast
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import write_whole
from scripts.shipped.network import PairNetwork
from scripts.shipped.pair_unet import FIELD_RESOLUTION, PairUNet
from scripts.shipped.pairs import KINDS, GeneratedPair, PairGenerator
from scripts.shipped.weights import save_pair_network

__all__ = ["GeneratedTraining", "PairTraining", "move_left", "pair_loss"]

logger = logging.getLogger(__name__)

_WARM_UP = 100  # steps
_EPOCH = 100  # steps in which schedules count
_CLIP = 1.0  # largest norm of a gradient
_LAST_STEPS = 200  # steps at the end of the training whose mean is stored with the network
_SMOOTHNESS = 0.7  # as in configs/train.yaml
_WORSE = 1.01  # share of the moves that is left, above which a network is worse than none


def pair_loss(
    network: PairNetwork, pair: GeneratedPair, supervision: float, early: float, dtype: str
) -> dict[str, torch.Tensor]:
    """The atlas's loss of a pair, and how far the found moves are from the true one.

    Args:
        network: in training.
        pair: one pair.
        supervision: weight of the mean distance, in voxels, between found and true displacement
            in the tissue.
        early: weight of the same after each pass but the last, on the reduced grid.
        dtype: of the convolutions.

    Returns:
        ``loss``, the atlas's terms, ``error`` (mean distance in voxels) and ``move`` (what it was
        before).
    """
    shape = pair.moving.shape[2:]
    with autocast("cpu", dtype):
        velocities = network(pair.moving, pair.fixed)
    with torch.autocast("cpu", enabled=False):
        move = network.integration(velocities[-1], shape)
        true = network.integration(pair.velocity, shape, rough=True)
        tissue = pair.tissue.float()
        error = _distance(move, true, tissue)
        spacing = [float(s) for s in pair.size]
        terms = AtlasLoss(spacing, FIELD_RESOLUTION, smoothness_weight=_SMOOTHNESS)(
            network.warp(pair.moving, move), pair.fixed, velocities[-1]
        )
        total = terms["loss"] + supervision * error
        if early:
            coarse = torch.nn.functional.avg_pool3d(tissue, 2, ceil_mode=True) > 0.25
            moved = network.integration(pair.velocity, shape, FIELD_RESOLUTION, rough=True)
            for velocity in velocities[:-1]:
                here = network.integration(velocity, shape, FIELD_RESOLUTION, rough=True)
                total = total + early * _distance(here, moved, coarse.float())
    before = _distance(torch.zeros_like(true), true, tissue)
    parts = {name: value.detach() for name, value in terms.items() if name != "loss"}
    return {"loss": total, **parts, "error": error.detach(), "move": before}


def _distance(estimate: torch.Tensor, true: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mean length of the difference of two displacements, in voxels, over a mask."""
    length = ((estimate - true).square().sum(1, keepdim=True) + 1e-4).sqrt()
    return (length * where).sum() / where.sum().clamp_min(1)


Trained = TypeVar("Trained", bound=PairUNet)


class GeneratedTraining(ABC, Generic[Trained]):
    """Steps on generated pairs, from a seed; an interrupted training resumes.

    Args:
        network: at its start.
        folder: where checkpoints and curves go.
        steps: in all. Until the learning rate falls, a run may resume with another number.
        lr: largest rate of Adam, after a warm-up of 100 steps.
        kept: how many checkpoints are kept along the way, evenly spaced.
        saved: steps between checkpoints.
        schedule: how the rate changes, see `RateScheduleConfig`; an epoch is 100 steps.
        schedule_epochs: likewise.
        schedule_factor: likewise.
    """

    title: ClassVar[str]
    """Of the network, in its file."""

    def __init__(
        self,
        network: Trained,
        folder: str | Path,
        steps: int,
        lr: float,
        kept: int = 10,
        saved: int = 50,
        schedule: str = "late_cosine",
        schedule_epochs: int = 10,
        schedule_factor: float = 0.1,
    ) -> None:
        self.network = network
        self.folder = Path(folder)
        self.steps = steps
        self.lr = lr
        self.kept = kept
        self.saved = saved
        self.shares = RateShares(schedule, steps, _EPOCH, schedule_epochs, schedule_factor)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.99))

    @property
    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Settings that a resumed run must not change, besides the steps of a falling rate."""

    @abstractmethod
    def terms(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """``loss`` and further terms of a step's pairs, and further entries of its curve's row."""

    @property
    @abstractmethod
    def share_left(self) -> Any:
        """Share of the moves that the network left in the last steps, for its file."""

    def about(self) -> dict[str, Any]:
        """Facts stored with the network."""
        return {
            "title": self.title,
            "licence": "Apache-2.0",
            "data": "generated pairs alone (scripts/shipped), no data of people",
            "training": {
                **self.plan,
                "steps": self.steps,
                "step": self.step,
                "passes": list(self.network.passes),
            },
            "share_of_the_move_left": self.share_left,
        }

    @property
    def _schedule(self) -> dict[str, Any]:
        """The schedule, unless it is the one of files that don't name any."""
        shares = self.shares
        if shares.name == "late_cosine":
            return {}
        return {
            "schedule": shares.name,
            "schedule_epochs": shares.every,
            "schedule_factor": shares.factor,
        }

    def run(self) -> Trained:
        """Train to the end, from the folder's checkpoint if any; writes ``network.pt`` there.

        Raises:
            CheckpointError: the folder contains a training with other settings.
            TrainingError: the loss isn't finite, or the network is worse than none in the end.
        """
        with reserved([self.folder]):
            self._resume()
            self.network.train()
            with progress_bar(self.steps, "training", initial=self.step) as bar:
                while self.step < self.steps:
                    row = self._take_step()
                    self.curve.append(row)
                    self.step += 1
                    bar.set_postfix(
                        {"error": f"{row['error']:.2f} of {row['move']:.2f}"}, refresh=False
                    )
                    bar.update()
                    if self.step % self.saved == 0 or self.step == self.steps:
                        self._save()
                    if self.step * self.kept % self.steps < self.kept:
                        self._keep(f"network-{self.step:06d}.pt")
            self._require_gain()
            self._keep("network.pt")
        return self.network.eval()

    def _require_gain(self) -> None:
        """Refuse a network that enlarges the distances of the last pairs, each of which it saw
        once.

        Raises:
            TrainingError: saying by how much.
        """
        share = move_left(self.curve[-_LAST_STEPS:])
        if not share <= _WORSE:
            raise TrainingError(
                f"the network is worse than none: of the distances of the last pairs it leaves "
                f"{share:.4g} times as much, so network.pt isn't written; train for more steps, or "
                "with a smaller lr"
            )

    def _rate(self) -> float:
        means: list[float] = []
        if self.shares.name == "plateau":
            losses = [row["loss"] for row in self.curve]
            means = [sum(losses[n - _EPOCH : n]) for n in range(_EPOCH, len(losses) + 1, _EPOCH)]
        share = self.shares.at(self.step, means)
        warm = 1.0 if self.shares.rises else min(1.0, (self.step + 1) / _WARM_UP)
        return self.lr * warm * share

    def _take_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        terms, about = self.terms(self.step)
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        if not (torch.isfinite(terms["loss"]) and torch.isfinite(norm)):
            raise TrainingError(
                f"the loss of step {self.step} is not finite; lower lr and start in a new folder"
            )
        self.optimizer.step()
        row = {name: float(value.detach()) for name, value in terms.items()}
        return {**row, **about}

    # -- files -----------------------------------------------------------------------------

    def _keep(self, name: str) -> None:
        """Write the network, with its description, to a file of the folder."""
        save_pair_network(self.network, self.folder / name, self.about())

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        checkpoint = load_checkpoint(path)
        if checkpoint.get("plan") != self.plan:
            raise CheckpointError(
                f"{path}: belongs to a training with other settings ({checkpoint.get('plan')}), "
                f"not {self.plan}; give the same settings, or another folder"
            )
        level = self.shares.level
        if self.steps != checkpoint["steps"] and checkpoint["step"] > level * min(
            self.steps, checkpoint["steps"]
        ):
            raise CheckpointError(
                f"{path}: belongs to a training of {checkpoint['steps']} steps, whose learning "
                "rate depends on their number since step "
                f"{int(level * checkpoint['steps'])}; give the same number of steps, or another "
                "folder"
            )
        try:
            self.network.load_state_dict(checkpoint["network"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: belongs to a network with other features; give the same, or another "
                "folder"
            ) from error
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step = checkpoint["step"]
        self.curve = list(checkpoint["curve"])
        logger.info("training resumes after step %d", self.step)

    def _save(self) -> None:
        save_checkpoint(
            {
                "plan": self.plan,
                "step": self.step,
                "steps": self.steps,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "curve": self.curve,
            },
            self.folder / "state.pt",
        )
        with write_whole(self.folder / "curve.json") as path:
            path.write_text(json.dumps(self.curve), encoding="utf-8")


def move_left(rows: Sequence[Mapping[str, float]]) -> float:
    """Share of the moves that is left after these steps of a curve."""
    return round(sum(row["error"] for row in rows) / sum(row["move"] for row in rows), 4)


class PairTraining(GeneratedTraining[PairNetwork]):
    """Steps of one pair each: pair n in step n.

    Args:
        network: at its start.
        pairs: what it is trained on.
        folder: where checkpoints and curves go.
        steps: in all.
        lr: largest rate.
        supervision: see `pair_loss`.
        early: see `pair_loss`.
        dtype: of the convolutions.
        kept: checkpoints.
        saved: steps between checkpoints.
        schedule: of the rate.
        schedule_epochs: likewise.
        schedule_factor: likewise.
        used_passes: that the files name for the network's use; None: those of the training. More
            of them are more accurate and would make the training slower.
    """

    title = "Registration of tract densities and images, for unseen pairs"

    def __init__(
        self,
        network: PairNetwork,
        pairs: PairGenerator,
        folder: str | Path,
        steps: int = 3000,
        lr: float = 1.5e-3,
        supervision: float = 0.1,
        early: float = 0.03,
        dtype: str = "bfloat16",
        kept: int = 10,
        saved: int = 50,
        schedule: str = "late_cosine",
        schedule_epochs: int = 10,
        schedule_factor: float = 0.1,
        used_passes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            network, folder, steps, lr, kept, saved, schedule, schedule_epochs, schedule_factor
        )
        self.pairs = pairs
        self.supervision = supervision
        self.early = early
        self.dtype = dtype
        self.used_passes = used_passes

    @property
    def plan(self) -> dict[str, Any]:
        """Settings that a resumed run must not change, besides the steps of a falling rate."""
        return {
            "seed": self.pairs.seed,
            "lr": self.lr,
            "supervision": self.supervision,
            "early": self.early,
            "dtype": self.dtype,
            **self._schedule,
            **self._variant,
        }

    @property
    def _variant(self) -> dict[str, Any]:
        """Entries that older files lack: those have pairs of all kinds, and forces."""
        kinds, inputs = sorted(self.pairs.kinds), self.network.inputs.name
        return {
            **({} if kinds == sorted(KINDS) else {"kinds": kinds}),
            **({} if inputs == "forces" else {"inputs": inputs}),
        }

    @property
    def share_left(self) -> dict[str, float]:
        """By kind of the pairs."""
        last = self.curve[-_LAST_STEPS:]
        kinds = {
            "bundles": [row for row in last if not row["images"]],
            "images": [row for row in last if row["images"]],
        }
        return {kind: move_left(rows) for kind, rows in kinds.items() if rows}

    def _keep(self, name: str) -> None:
        trained, about = self.network.passes, self.about()
        self.network.passes = tuple(self.used_passes or trained)
        try:
            save_pair_network(self.network, self.folder / name, about)
        finally:
            self.network.passes = trained

    def terms(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """See `GeneratedTraining.terms`."""
        pair = self.pairs[step]
        terms = pair_loss(self.network, pair, self.supervision, self.early, self.dtype)
        return terms, {"images": float(pair.kind == "images")}
