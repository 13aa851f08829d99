"""The precision and the device of the convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from scripts.errors import ConfigurationError

__all__ = ["autocast", "in_float32", "open_device"]

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def autocast(device: torch.device | str, dtype: str) -> torch.autocast:
    """Autocast of the convolutions to ``dtype`` on ``device``, also on the CPU; float32 turns it
    off.

    MONAI's ``SupervisedTrainer(amp=True)`` supports CUDA only. Grids, warps, integration and losses
    disable autocast themselves and stay float32.
    """
    kind = torch.device(device).type
    if dtype == "float32":
        return torch.autocast(kind, enabled=False)
    return torch.autocast(kind, dtype=_TYPES[dtype])


def in_float32(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """A method of a module that is never computed under autocast, whoever calls it.

    For geometry and densities: matrix products (``einsum`` too) would come out in half precision,
    which loses sub-voxel moves, and which ``grid_sample`` refuses beside float32.
    """

    @functools.wraps(method)
    def computed(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return method(self, *args, **kwargs)

    return computed


def open_device(name: str, key: str = "device") -> torch.device:
    """The device that a setting names, checked before any data are read.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``.
        key: dotted path of the setting, such as ``align.device``, for the message.

    Raises:
        ConfigurationError: the machine doesn't have it.
    """
    device = torch.device(name)
    if device.type == "cuda":
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= available:
            raise ConfigurationError(
                f"{key}: {name!r} is a CUDA device that this machine doesn't have ({available} "
                "found); set it to cpu"
            )
    return device
