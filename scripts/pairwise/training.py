"""Training of the networks for pairs: the steps of trainer and evaluator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents

from scripts.engines.descent import descend
from scripts.networks.described import DescribedNetwork
from scripts.networks.precision import autocast
from scripts.networks.unwrapping import unwrapped

__all__ = ["HeldOutPairs", "MadePairs", "PairStep"]

_TRAINING, _HELD_OUT = 0, 1  # first number of a pair's key, so that the two never share a pair


class MadePairs(Protocol):
    """Interface of a batch of pairs, apart from its kind of truth."""

    @property
    def pair(self) -> torch.Tensor:
        """Input of the network, fixed and moving: ``(B, 2, *shape)``."""
        ...


Network = TypeVar("Network", bound=DescribedNetwork)
Made = TypeVar("Made", bound=MadePairs)


class PairStep(ABC, Generic[Network, Made]):
    """The trainer's ``iteration_update``: make pairs, forward, loss, backward, step.

    Args:
        pairs: makes them from the iteration number only, so that a resumed run sees the same pairs
            as an uninterrupted one.
        loss: takes the network, its output and the pairs; returns ``loss`` and its terms.
        dtype: of the convolutions.
        gradient_clip: largest norm of a gradient.
    """

    kind: ClassVar[type[DescribedNetwork]]
    block: ClassVar[str]
    """Name of the block of settings, for messages."""

    def __init__(
        self,
        pairs: Callable[[torch.Tensor, tuple[int, int]], Made],
        loss: Callable[[Network, Any, Made], dict[str, torch.Tensor]],
        dtype: str = "float32",
        gradient_clip: float = 1.0,
    ) -> None:
        self.pairs = pairs
        self.loss = loss
        self.dtype = dtype
        self.gradient_clip = gradient_clip

    @abstractmethod
    def find(self, network: Network, made: Made) -> Any:
        """Output of the network for the pairs, under autocast; input of the loss."""

    def measure(self, network: Network, estimate: Any, made: Made) -> dict[str, torch.Tensor]:
        """Further scalars to report besides the loss terms."""
        return {}

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Run one iteration; returns ``loss``, its terms and measurements as scalars."""
        assert engine.network is not None and engine.optimizer is not None
        network: Any = unwrapped(engine.network, self.kind)
        image = torch.as_tensor(batch["image"]).to(engine.state.device)
        made = self.pairs(image, (_TRAINING, engine.state.iteration))
        network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with autocast(image.device, self.dtype):
            estimate = self.find(network, made)
        engine.state.output = {"image": image, "subject": batch["subject"]}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = self.loss(network, estimate, made)
        engine.state.output.update({name: term.detach() for name, term in terms.items()})
        engine.state.output.update(self.measure(network, estimate, made))
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        descend(engine, terms["loss"], network.parameters(), self.gradient_clip, self.block)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class HeldOutPairs(ABC, Generic[Network, Made]):
    """The evaluator's ``iteration_update`` over fixed pairs of held-out subjects.

    Args:
        pairs: makes them; always the same ones, in every run with equal seed and ranges.
    """

    kind: ClassVar[type[DescribedNetwork]]

    def __init__(self, pairs: Callable[[torch.Tensor, tuple[int, int]], Made]) -> None:
        self.pairs = pairs

    @abstractmethod
    def errors(
        self, network: Network, estimate: torch.Tensor, made: Made
    ) -> dict[str, torch.Tensor]:
        """Errors of every pair ``(B,)``, with the network and (``..._before``) without."""

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """The errors of every pair, see `errors`."""
        assert engine.network is not None
        network: Any = unwrapped(engine.network, self.kind)
        image = torch.as_tensor(batch["image"]).to(engine.state.device)
        made = self.pairs(image, (_HELD_OUT, engine.state.iteration))
        network.eval()
        with torch.no_grad():
            estimate = engine.inferer(made.pair, network)
            errors = self.errors(network, estimate, made)
        engine.state.output = {"image": image, "subject": batch["subject"], **errors}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # splits the batch into subjects
        return engine.state.output
