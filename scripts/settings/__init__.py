"""The blocks of settings, one file a block, validated without torch or monai."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import a block when it is first named, as `scripts` does with its rooms."""
    qualified = f"{__name__}.{name}"
    if name.startswith("__") or importlib.util.find_spec(qualified) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(qualified)
