"""Pictures of the template during the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events

from scripts.atlas.training_step import bare
from scripts.runtime.processes import is_first
from scripts.runtime.storage import write_whole
from scripts.spatial.projections import three_views

__all__ = ["TemplateSnapshots"]


class TemplateSnapshots:
    """Saves a PNG of the templates' log density every few epochs, three views each.

    Args:
        network: the atlas network.
        folder: for ``template_epoch-0010.png`` and so on.
        interval: epochs between pictures; 0: none.
    """

    def __init__(self, network: torch.nn.Module, folder: str | Path, interval: int = 10) -> None:
        self.network = bare(network)
        self.folder = Path(folder)
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Draw every ``interval`` epochs, in the first process."""
        if self.interval and is_first():
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Draw the current templates."""
        from matplotlib.image import imsave

        rows = [
            three_views(channel)
            for template in self.network.template.detach().cpu().numpy()
            for channel in template
        ]
        name = f"template_epoch-{engine.state.epoch:04d}.png"
        with write_whole(self.folder / name) as path:
            imsave(path, np.concatenate(rows, axis=0), cmap="inferno", vmin=0)
