"""A global and a local network joined: their fields composed exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from scripts.supervised.field_network import FieldNetwork, FoundFields
from scripts.supervised.global_network import GlobalNetwork
from scripts.supervised.layers import CentredAffine, warp_image
from scripts.supervised.local_network import LocalNetwork

__all__ = ["MergedNetwork", "global_stage", "what_is_left"]


def global_stage(pair: torch.Tensor, affine: CentredAffine) -> torch.Tensor:
    """The input of a local network: the reference, and the moving image warped by an affine."""
    with torch.autocast(pair.device.type, enabled=False):
        moved = warp_image(pair[:, 1:], affine.displacement(pair.shape[2:]))
        return torch.cat([pair[:, :1].float(), moved], dim=1)


def what_is_left(
    affine: CentredAffine, field: torch.Tensor, inverse: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The target of a local network after a global one: ``A^-1(x + u(x)) - x``, and back.

    Exact, since the global stage is affine: with l the result, A(x + l(x)) = x + u(x).

    Args:
        affine: of the global stage.
        field: true displacement of the pair.
        inverse: true displacement back.
    """
    left = affine.inverse().after(field)
    return left, None if inverse is None else affine.before(inverse)


class MergedNetwork(FieldNetwork):
    """``u(x) = l(x) + g(x + l(x))``, where the input of l is the image warped by g.

    g is affine and evaluated exactly, so that the moving image is interpolated once by u.

    Args:
        global_network: g.
        local_network: l.
        description: see `DescribedNetwork`.
    """

    name = "merged"

    def __init__(
        self,
        global_network: GlobalNetwork,
        local_network: LocalNetwork,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(description)
        self.global_network = global_network
        self.local_network = local_network

    def find(
        self, pair: torch.Tensor, inverse: bool = False, expose_global: bool = False
    ) -> FoundFields:
        """See `FieldNetwork.find`.

        Args:
            pair: ``(B, 2, *shape)``.
            inverse: also the field back, composed of both stages' inverses.
            expose_global: also the field of the global stage alone.
        """
        affine = self.global_network.affine(pair)
        left = self.local_network.find(global_stage(pair, affine), inverse)
        with torch.autocast(pair.device.type, enabled=False):
            field = affine.after(left.field)
            back = None
            if left.inverse is not None:
                back = affine.inverse().before(left.inverse)
            stage = affine.displacement(pair.shape[2:]) if expose_global else None
            return FoundFields(field, back, stage)
