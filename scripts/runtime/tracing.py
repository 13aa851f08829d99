"""Whether a network's operations are being recorded as a program."""

from __future__ import annotations

import torch

__all__ = ["is_recorded"]


def is_recorded() -> bool:
    """True under `torch.jit.trace`, `torch.export` and `torch.compile`.

    Tensors and sizes may then be symbolic, and the effects of plain Python code are lost.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
