"""Whether a network's operations are being recorded, as a program or for a gradient."""

from __future__ import annotations

import torch

__all__ = ["is_followed", "is_recorded"]


def is_recorded() -> bool:
    """True under `torch.jit.trace`, `torch.export` and `torch.compile`.

    Tensors and sizes may then be symbolic, and the effects of plain Python code are lost.
    """
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def is_followed(*tensors: torch.Tensor) -> bool:
    """True if what is made of these is recorded, or differentiated: nothing may change in place."""
    differentiated = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
    return is_recorded() or differentiated
