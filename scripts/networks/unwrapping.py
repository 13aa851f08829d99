"""Unwraps a network that is wrapped for several processes."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["unwrapped"]

Wanted = TypeVar("Wanted", bound=nn.Module)


def unwrapped(network: nn.Module, kind: type[Wanted]) -> Wanted:
    """The network itself, which must be of a given class.

    Args:
        network: possibly inside ``DistributedDataParallel``.
        kind: the expected class.
    """
    inner = getattr(network, "module", network)
    assert isinstance(inner, kind)
    return inner
