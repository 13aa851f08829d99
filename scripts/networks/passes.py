"""Several passes of one network over a pair, each correcting what the earlier ones left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.networks.grids import averaged, averaged_where, enlarge, reduced_shape
from scripts.networks.integration import VelocityIntegration
from scripts.networks.pair_inputs import PairInputs
from scripts.networks.smoothing import GaussianSmoothing
from scripts.networks.unet import RegistrationUNet
from scripts.spatial.field_extension import extended_field
from scripts.spatial.warp import Warp

__all__ = ["PairPasses"]


class PairPasses:
    """The velocity of a batch of pairs, pass by pass.

    Each pass sees the moving image as moved so far beside the fixed one, both averaged by the
    pass's factor; what it finds is smoothed and added to the velocity.

    Args:
        unet: its field on a grid reduced by ``integration.factor``.
        smoothing: of what it finds.
        integration: of velocities.
        warp: of the moving image.
        moving: ``(B, C, *shape)``.
        fixed: the same shape.
        scale: multiplies both before the network sees them.
        inputs: what is made of the pair for the network, of one channel. Then no gradient passes
            through what a pass sees: each pass learns to remove what is left. None: both images
            as they are, of any channels, with that gradient.
        valid: ``(B, 1, *shape)`` bool, voxels of the fixed image that count; None: all. Elsewhere
            each pass sees the moving image as moved so far in place of the fixed one, so that
            nothing is left to correct there, and what it finds continues what it finds around.
    """

    def __init__(
        self,
        unet: RegistrationUNet,
        smoothing: GaussianSmoothing,
        integration: VelocityIntegration,
        warp: Warp,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        scale: torch.Tensor | float = 1.0,
        inputs: PairInputs | None = None,
        valid: torch.Tensor | None = None,
    ) -> None:
        self.unet = unet
        self.smoothing = smoothing
        self.integration = integration
        self.warp = warp
        self.moving = moving
        self.fixed = fixed
        self.valid = valid
        self.scale = scale
        self.inputs = inputs
        self.shape = moving.shape[2:]
        self.reduced = reduced_shape(self.shape, integration.factor)
        self._fixed_copies: tuple[int, torch.Tensor] | None = None

    def run(self, passes: Sequence[int]) -> list[torch.Tensor]:
        """The velocity ``(B, d, *reduced)`` after each pass of these factors."""
        result: list[torch.Tensor] = []
        for factor in passes:
            before = result[-1] if result else None
            added = self.one_pass(factor, before)
            result.append(added if before is None else before + added)
        return result

    def one_pass(self, factor: int, velocity: torch.Tensor | None = None) -> torch.Tensor:
        """What one pass adds to the velocity found so far, both ``(B, d, *reduced)``."""
        with torch.autocast(self.moving.device.type, enabled=False):
            if self.inputs is None:
                shown = self._both(factor, velocity)
            else:
                with torch.no_grad():
                    shown = self._shown(self.inputs, factor, velocity)
        field = enlarge(self.unet(shown).float().contiguous(), self.reduced, factor) * factor
        if self.valid is not None:
            field = extended_field(field, self._known())
        return self.smoothing(field)

    def _known(self) -> torch.Tensor:
        """Voxels of the field's grid that are valid altogether, ``(B, 1, *reduced)``."""
        assert self.valid is not None
        return averaged(self.valid.float(), self.integration.factor) > 1 - 1e-3

    def _filled(self, factor: int, moved: torch.Tensor) -> torch.Tensor:
        """The fixed image at a resolution, with the moved one where it isn't valid."""
        if self.valid is None:
            return averaged(self.fixed, factor)
        mean, share = averaged_where(self.fixed, self.valid, factor)
        return mean * share + moved * (1 - share)

    def _moved(self, factor: int, velocity: torch.Tensor | None) -> torch.Tensor:
        shown = averaged(self.moving, factor)
        if velocity is None:
            return shown
        move = self.integration(velocity, self.shape, factor, rough=True)
        return self.warp(shown, move if factor == 1 else move / factor)

    def _both(self, factor: int, velocity: torch.Tensor | None) -> torch.Tensor:
        moved = self._moved(factor, velocity)
        images = (moved, self._filled(factor, moved))
        # Joined in the wanted memory order, channels last.
        pair = torch.cat([x.movedim(1, -1) for x in images], dim=-1)
        pair = pair.mul_(self.scale).movedim(-1, 1)
        return pair if pair.dim() == 5 else pair.contiguous()

    def _shown(
        self, inputs: PairInputs, factor: int, velocity: torch.Tensor | None
    ) -> torch.Tensor:
        moved = self._moved(factor, velocity)
        # With a mask the fixed image contains the moved one, which differs from pass to pass.
        stale = self._fixed_copies is None or self._fixed_copies[0] != factor
        if stale or self.valid is not None:
            copies = inputs.copies(self._filled(factor, moved) * self.scale)
            self._fixed_copies = (factor, copies)
        assert self._fixed_copies is not None
        return inputs(inputs.copies(moved * self.scale), self._fixed_copies[1])
