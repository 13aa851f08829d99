"""A network inside what wraps it for several processes."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["unwrapped"]

Wanted = TypeVar("Wanted", bound=nn.Module)


def unwrapped(network: nn.Module, kind: type[Wanted]) -> Wanted:
    """The network itself, which must be of a kind.

    Args:
        network: maybe inside ``DistributedDataParallel``.
        kind: what it is.
    """
    inner = getattr(network, "module", network)
    assert isinstance(inner, kind)
    return inner
