"""The precision and the device of the convolutions."""

from __future__ import annotations

import torch

from scripts.errors import ConfigurationError

__all__ = ["autocast", "open_device"]

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
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            raise ConfigurationError(
                f"{key}: {name!r} is a CUDA device that this machine doesn't have ({there} "
                "found); set it to cpu"
            )
    return device
