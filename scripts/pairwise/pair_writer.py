"""The handler that publishes the results of a network for pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events

__all__ = ["PairWriter"]


class PairWriter(ABC):
    """Writes every pair of the evaluator's last iteration."""

    def attach(self, engine: Engine) -> None:
        """Attach to an engine: write after each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the pairs of the last iteration; see `write` for what it raises."""
        items: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(items, outputs, strict=True):
            self.write(item, torch.as_tensor(output["pred"]))

    @abstractmethod
    def write(self, item: Mapping[str, Any], output: torch.Tensor) -> None:
        """Publish one pair.

        Args:
            item: has the paths ``fixed`` and ``moving``, and the pair's name as ``subject``.
            output: of the network for the pair.

        Raises:
            StorageError: a file can't be written.
        """
