"""Networks: their parameter counts, sizes, starts, and the exact composition of the merged one."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import CohortError
from scripts.spatial.jacobian import smallest_corner_determinant
from scripts.supervised.field_network import PairInputs, with_dark_background
from scripts.supervised.global_network import GlobalNetwork
from scripts.supervised.layers import CentredAffine, compose_displacements, interior
from scripts.supervised.local_network import LocalNetwork
from scripts.supervised.merging import MergedNetwork, global_stage, what_is_left

SHAPE = (40, 56)


def count(network: torch.nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


def pair(shape=SHAPE, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 2, *shape, generator=generator)


def small_local(d=2, **more):
    torch.manual_seed(0)
    return LocalNetwork(d, (4,), (4, 4), (4,), (4, 4), (6,), **more)


def small_global(shape=SHAPE, **more):
    torch.manual_seed(0)
    network = GlobalNetwork(shape, (4, 4), 8, **more)
    torch.nn.init.normal_(network.parameters_of.weight, std=0.02)
    return network


def test_the_two_networks_have_the_parameters_of_the_contract():
    assert count(GlobalNetwork((320, 456))) == 237_630
    assert count(LocalNetwork(2)) == 192_578


def test_the_last_layers_make_these_counts():
    """40 x 4480 + 40 of the dense layer; 2 x 2 x 64 x 2 + 2 of the field's convolution."""
    network = GlobalNetwork((320, 456))
    assert count(network.dense) == 179_240
    assert count(network.parameters_of) == 246
    assert count(LocalNetwork(2).field) == 514


@pytest.mark.parametrize("shape", [(40, 56), (41, 59), (18, 33), (20, 16, 24), (17, 21, 19)])
@pytest.mark.parametrize("inputs", ["images", "forces"])
def test_any_size_gives_a_field_of_that_size(shape, inputs):
    d = len(shape)
    images = pair(shape)
    for network in (small_global(shape, inputs=inputs), small_local(d, inputs=inputs)):
        field = network(images)
        assert field.shape == (1, d, *shape)
        assert field.dtype == torch.float32
        assert torch.isfinite(field).all()


def test_the_last_convolution_is_padded_below_and_to_the_right():
    network, kept = small_local(), []
    network.end.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach()))
    field = network(pair())
    padded = torch.nn.functional.pad(kept[0], [0, 1, 0, 1])
    wanted = torch.nn.functional.conv2d(padded, network.field.weight, network.field.bias)
    torch.testing.assert_close(field, wanted, atol=1e-6, rtol=1e-5)


def test_images_that_the_halvings_leave_nothing_of_are_refused():
    with pytest.raises(CohortError, match=r"20 x 56 are too small .* 5 halvings, which need 32"):
        GlobalNetwork((20, 56))


def test_a_global_network_starts_at_the_identity_and_a_local_one_near_it():
    torch.manual_seed(0)
    assert GlobalNetwork((64, 64))(pair((64, 64))).abs().max() == 0
    field = LocalNetwork(2)(pair((64, 64)))
    assert 0 < field.abs().max() < 0.5


def test_another_size_gives_the_same_transform_in_half_extents():
    network = small_global((64, 64))
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 2, 6, 6), size=(256, 256), mode="bicubic", align_corners=False
    )
    small = torch.nn.functional.interpolate(
        smooth, size=(64, 64), mode="bilinear", align_corners=False, antialias=True
    )
    with torch.no_grad():
        large_field, small_field = network(smooth), network(small)
    corner = (0, slice(None), 0, 0)
    torch.testing.assert_close(large_field[corner] / 4, small_field[corner], atol=0.1, rtol=0.05)


@pytest.mark.parametrize("shape", [(40, 56), (16, 20, 18)])
def test_the_merged_field_is_the_exact_composition(shape):
    d = len(shape)
    network = MergedNetwork(small_global(shape), small_local(d))
    torch.nn.init.normal_(network.local_network.field.weight, std=0.2)
    images = pair(shape)
    with torch.no_grad():
        result = network.find(images, inverse=True, expose_global=True)
        affine = network.global_network.affine(images)
        left = network.local_network(global_stage(images, affine))
    points = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))
    centre = torch.tensor([(n - 1) / 2 for n in shape]).view(d, *[1] * d)
    there = points + left
    moved = torch.einsum("bij,bj...->bi...", affine.linear, there - centre)
    wanted = there + moved + affine.shift.view(1, d, *[1] * d) - points
    torch.testing.assert_close(result.field, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.global_field, affine.displacement(shape))
    assert left.abs().max() > 0.1


def test_what_a_global_stage_leaves_composes_to_the_truth_again():
    generator = torch.Generator().manual_seed(3)
    affine = CentredAffine(
        0.1 * torch.randn(2, 2, 2, generator=generator), torch.randn(2, 2, generator=generator)
    )
    truth = torch.randn(2, 2, *SHAPE, generator=generator)
    left, _ = what_is_left(affine, truth)
    torch.testing.assert_close(affine.after(left), truth, atol=1e-4, rtol=1e-4)


def test_compute_inv_asks_the_same_weights_about_the_swapped_pair():
    network = small_local(compute_inv=True)
    images = pair()
    with torch.no_grad():
        result = network.find(images, inverse=True)
        swapped = network(images.flip(1))
    torch.testing.assert_close(result.inverse, swapped)
    assert network.find(images).inverse is None


def test_a_global_inverse_is_exact_and_an_iterated_one_leads_back():
    images = pair()
    network = small_global()
    with torch.no_grad():
        result = network.find(images, inverse=True)
        affine = network.affine(images)
    assert affine.inverse().after(result.field).abs().max() < 1e-3
    torch.testing.assert_close(result.inverse, affine.inverse().displacement(SHAPE))
    local = small_local(compute_inv=False)
    torch.nn.init.normal_(local.field.weight, std=0.01)
    with torch.no_grad():
        result = local.find(images, inverse=True)
    back = compose_displacements(result.inverse, result.field).square().sum(1).sqrt()
    assert back[interior(result.field, 1)].max() < 0.05


def test_odd_sizes_are_continued_not_cut():
    """A shift that a cropped network would tear at the border stays whole."""
    network = small_local()
    torch.nn.init.zeros_(network.field.weight)
    network.field.bias.data = torch.tensor([10.0, -10.0])
    field = network(pair((41, 59))).detach()
    torch.testing.assert_close(field, field[:, :, :1, :1].expand_as(field))
    assert smallest_corner_determinant(field[0]).min() > 0.99


def test_the_background_becomes_0_and_a_bright_one_is_inverted():
    image = torch.zeros(1, 1, 12, 12)
    image[..., 4:8, 4:8] = 1.0
    dark, bright = with_dark_background(image + 0.2), with_dark_background(1 - image)
    torch.testing.assert_close(dark, image)
    torch.testing.assert_close(bright, image)
    seen = PairInputs()(torch.cat([image, 1 - 0.5 * image], dim=1))
    torch.testing.assert_close(seen[:, :1], seen[:, 1:])
    assert float(seen.square().mean()) == pytest.approx(1.0)


def test_forces_change_the_first_convolution_alone():
    plain, forces = LocalNetwork(2), LocalNetwork(2, inputs="forces")
    assert count(forces) - count(plain) == 8 * 16 * 9
    assert forces.inputs.channels(2) == 10


def test_weights_lie_channels_last():
    for network in (GlobalNetwork((64, 64)), LocalNetwork(2)):
        for one in network.modules():
            if isinstance(one, torch.nn.Conv2d):
                assert one.weight.is_contiguous(memory_format=torch.channels_last)


def test_every_parameter_learns():
    for network in (small_global(), small_local(), MergedNetwork(small_global(), small_local())):
        network(pair(batch=2)).square().sum().backward()
        assert all(one.grad is not None for one in network.parameters())
        moved = [name for name, one in network.named_parameters() if one.grad.abs().max() == 0]
        assert not moved
