"""The libraries of the extra ``stack``, and one line where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from scripts.errors import ConfigurationError

__all__ = ["require"]


def require(name: str) -> ModuleType:
    """Import a library that only the jobs over stacks need.

    Args:
        name: ``zarr``, ``dask``, ``tifffile`` or ``imageio.v3``.

    Raises:
        ConfigurationError: it isn't installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            f"stacks need the package {name.partition('.')[0]}, which can't be imported "
            f"({error}); install it with: pip install 'tract-density-atlas[stack]'"
        ) from error
