"""Handlers of the atlas's trainer."""

from scripts.atlas.handlers.centring import Centring
from scripts.atlas.handlers.fold_monitor import FoldMonitor
from scripts.atlas.handlers.snapshots import TemplateSnapshots

__all__ = ["Centring", "FoldMonitor", "TemplateSnapshots"]
