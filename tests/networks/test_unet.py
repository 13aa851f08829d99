"""The registration U-Net: sizes, counts, its start, checkpointing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from scripts.networks import RegistrationUNet

SMALL: dict[str, Any] = {"enc_features": (4, 6), "dec_features": (6, 4, 4)}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("factor", "count"), [(1, 251_235), (2, 237_395)])
def test_defaults_have_the_contracts_size(factor: int, count: int) -> None:
    assert parameters(RegistrationUNet(3, 2, factor=factor)) == count


def test_multiply_adds_at_full_resolution() -> None:
    """About 22 k a voxel, counted from the convolutions that really run."""
    network = RegistrationUNet(3, 2)
    done: list[int] = []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv3d)
        done.append(layer.weight.numel() * math.prod(output.shape[2:]))

    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 2, 16, 16, 16))
    assert 20_000 < sum(done) / 16**3 < 24_000


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 7, 11), (5, 13, 6), (3, 4, 5), (17, 10), (7, 7)])
def test_any_size_gives_a_field_of_the_reduced_size(shape: tuple[int, ...], factor: int) -> None:
    network = RegistrationUNet(len(shape), 2, factor=factor, **SMALL)
    field = network(torch.randn(2, 2, *shape))
    assert field.shape == (2, len(shape), *(-(-n // factor) for n in shape))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_field_is_near_zero_at_the_start_but_not_zero(spatial_dims: int) -> None:
    """Zero everywhere would have no gradient for what lies below the last layer."""
    field = RegistrationUNet(spatial_dims, 2)(torch.rand(1, 2, *([16] * spatial_dims)))
    assert 0 < field.abs().max() < 0.01


def test_every_parameter_gets_a_gradient() -> None:
    for factor in (1, 2, 4):
        network = RegistrationUNet(2, 2, factor=factor, **SMALL)
        network(torch.randn(1, 2, 13, 11)).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("factor", [1, 2])
def test_the_field_moves_with_its_input(factor: int) -> None:
    """A shift by the coarsest stride shifts the field: skips and crops are in register."""
    torch.manual_seed(0)
    network = RegistrationUNet(2, 1, factor=factor, **SMALL).eval()
    nn.init.normal_(network.field.weight)
    image = torch.zeros(1, 1, 80, 40)
    image[..., 33:39, 18:27] = torch.rand(6, 9)
    there, step = network(image), 8
    moved = network(image.roll(step, dims=2))
    inner = slice(24 // factor, 48 // factor)
    ahead = slice((24 + step) // factor, (48 + step) // factor)
    assert there[..., inner, :].std() > 1e-3
    torch.testing.assert_close(moved[..., ahead, :], there[..., inner, :], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [1, 2])
def test_checkpointing_changes_neither_output_nor_gradients(factor: int) -> None:
    image = torch.randn(1, 2, 9, 10, 7)
    result = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        network = RegistrationUNet(3, 2, factor=factor, checkpointing=checkpointing, **SMALL)
        nn.init.normal_(network.field.weight, std=0.1)
        field = network.train()(image)
        field.square().sum().backward()
        result.append((field.detach(), [p.grad for p in network.parameters()]))
    (kept, kept_grads), (again, again_grads) = result
    assert kept.abs().max() > 1e-3
    torch.testing.assert_close(again, kept, atol=0, rtol=0)
    for a, b in zip(kept_grads, again_grads, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_recomputes_activations_in_training_alone() -> None:
    network = RegistrationUNet(2, 2, checkpointing=True, **SMALL)
    calls: list[int] = []
    network.encoder[0].register_forward_pre_hook(lambda *_: calls.append(1))
    image = torch.randn(1, 2, 8, 8)
    network.train()(image).sum().backward()
    assert len(calls) == 2
    calls.clear()
    network.eval()(image).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_is_its_entries_one_by_one(batch: int) -> None:
    """Small single volumes take another way through the convolutions."""
    network = RegistrationUNet(3, 2, **SMALL)
    nn.init.normal_(network.field.weight)
    images = torch.randn(3, 2, 9, 8, 7)
    together = network(images)
    alone = torch.cat([network(images[b : b + batch]) for b in range(0, 3, batch)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 3}, "factor must be a power of 2"),
        ({"factor": 8}, r"up to 2\*\*2, got 8"),
        ({"factor": 0}, "factor"),
        ({"dec_features": (4,)}, "at least 2 entries, one per encoder level, got 1"),
    ],
)
def test_bad_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegistrationUNet(3, 2, **{**SMALL, **changes})
