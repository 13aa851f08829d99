"""The library behind the bundle's configs.

Submodules are loaded when first used, so that ``$scripts.atlas...`` works in a config after a plain
``import scripts``, while ``import scripts`` itself (and ``scripts.settings``) needs neither torch
nor monai.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import the submodule ``name`` (PEP 562); any other name is an AttributeError."""
    qualified = f"{__name__}.{name}"
    # Look it up before the import: an import that fails inside an existing submodule must show its
    # own error instead of "scripts has no attribute".
    if name.startswith("__") or importlib.util.find_spec(qualified) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(qualified)


def __dir__() -> list[str]:
    return sorted({*globals(), *(module.name for module in pkgutil.iter_modules(__path__))})
