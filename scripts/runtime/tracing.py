"""Whether a network's operations are being recorded as a program."""

from __future__ import annotations

import torch

__all__ = ["is_recorded"]


def is_recorded() -> bool:
    """Under `torch.jit.trace`, `torch.export` and `torch.compile`.

    Tensors and sizes are then a recording's, maybe fakes, and what is done in Python is lost.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
