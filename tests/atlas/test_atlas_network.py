"""The whole network: one tensor in, one out; training's outputs; the template's constraints."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from scripts.atlas.network import AtlasNetwork, density_of, log_density_of
from scripts.networks import autocast, open_device
from scripts.networks.grids import averaged
from scripts.spatial.warp import warp

FEATURES: dict[str, Any] = {"enc_features": (4, 4), "dec_features": (4, 4, 4), "int_steps": 4}
SHAPES = [(11, 9), (9, 10, 7)]


def templates(k: int, c: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(k + c).random((k, c, *shape)).astype(np.float32) * 3


def moving(network: AtlasNetwork, seed: int = 0) -> AtlasNetwork:
    """Give the network fields of about a voxel."""
    torch.manual_seed(seed)
    nn.init.normal_(network.unet.field.weight, std=0.05)
    assert network.unet.field.bias is not None
    nn.init.normal_(network.unet.field.bias, std=0.5)
    return network


def test_log_density_and_back() -> None:
    density = torch.tensor([0.0, 1e-6, 1e-3, 0.5, 2e4], dtype=torch.float64)
    logged = log_density_of(density, 1e-3)
    assert logged[0] == 0
    torch.testing.assert_close(logged[2], torch.tensor(2.0, dtype=torch.float64).log())
    torch.testing.assert_close(density_of(logged, 1e-3), density, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("k", "c"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("factor", [1, 2])
def test_shapes_in_training_and_evaluation(
    shape: tuple[int, ...], k: int, c: int, factor: int
) -> None:
    network = AtlasNetwork(templates(k, c, shape), field_resolution=factor, **FEATURES)
    image = torch.rand(3, c, *shape)
    result = network.train()(image)
    d, reduced = len(shape), tuple(-(-n // factor) for n in shape)
    assert result["velocity"].shape == (3, k, d, *reduced)
    assert result["warped"].shape == (3, k, c, *shape)
    predicted = network.eval()(image)
    assert isinstance(predicted, torch.Tensor)
    assert predicted.shape == (3, c, *shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_start_the_prediction_is_the_template_in_linear_density(
    shape: tuple[int, ...],
) -> None:
    start = templates(1, 2, shape)
    network = AtlasNetwork(start, log_offset=0.01, **FEATURES).eval()
    predicted = network(torch.rand(2, 2, *shape))
    expected = torch.tensor(0.01 * np.expm1(start)).expand(2, -1, *shape)
    torch.testing.assert_close(predicted, expected, rtol=0.02, atol=1e-4)
    torch.testing.assert_close(network.template_density(), expected[:1])


def test_prediction_is_the_density_warped_not_the_log_warped() -> None:
    network = moving(AtlasNetwork(templates(1, 1, (9, 10, 7)), **FEATURES)).eval()
    image = torch.rand(1, 1, 9, 10, 7)
    displacement = network.displacement(network.velocity(image))
    assert displacement.abs().max() > 0.2
    expected = warp(network.template_density(), displacement)
    torch.testing.assert_close(network(image), expected)
    other = density_of(network.warped_template(displacement), network.log_offset)
    assert (other - expected).abs().max() > 10 * (network(image) - expected).abs().max()


def test_evaluation_picks_for_each_subject_the_template_it_looks_like() -> None:
    shape = (8, 8)
    start = np.zeros((2, 1, *shape), dtype=np.float32)
    start[0, 0, 1:3, 1:7] = 2
    start[1, 0, 5:7, 1:7] = 2
    network = AtlasNetwork(start, **FEATURES).eval()
    images = torch.tensor(start[[1, 0, 1], :]) * 0.5
    predicted = network(images)
    for b, k in enumerate((1, 0, 1)):
        torch.testing.assert_close(
            predicted[b], network.template_density()[k], rtol=0.05, atol=1e-4
        )


def test_training_sees_the_raw_velocity_and_evaluation_the_centred_one() -> None:
    network = moving(AtlasNetwork(templates(2, 1, (8, 9)), **FEATURES))
    network.mean_velocity.normal_(generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 1, 8, 9)
    for k in range(2):
        raw = network.train().velocity(image, k)
        centred = network.eval().velocity(image, k)
        torch.testing.assert_close(raw - centred, network.mean_velocity[k][None])


def test_one_pass_at_full_resolution_is_the_u_net_smoothed() -> None:
    network = moving(AtlasNetwork(templates(1, 1, (9, 10, 7)), passes=[1], **FEATURES)).train()
    image = torch.rand(1, 1, 9, 10, 7)
    field = network.unet(torch.cat([network.template, image], 1) * network.input_scale)
    torch.testing.assert_close(network.velocity(image), network.smoothing(field))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("passes", [(1, 1), (2, 1), (4, 2, 1), (1, 2)])
@pytest.mark.parametrize("resolution", [1, 2, 4])
def test_each_pass_sees_what_the_ones_before_left(
    shape: tuple[int, ...], passes: tuple[int, ...], resolution: int, monkeypatch: Any
) -> None:
    """A U-Net that gives a constant move: the pair that it is shown is the moved, averaged one."""
    d = len(shape)
    network = AtlasNetwork(
        templates(1, 1, shape), passes=passes, field_resolution=resolution, **FEATURES
    ).eval()
    image, step = torch.rand(1, 1, *shape), torch.arange(1.0, d + 1) / 8
    pairs = []

    def look(pair: torch.Tensor) -> torch.Tensor:
        pairs.append(pair)
        grid = [-(-n // resolution) for n in pair.shape[2:]]
        return step.view(1, d, *[1] * d).expand(1, d, *grid).clone()

    monkeypatch.setattr(network.unet, "forward", look)
    velocity = network.velocity(image)
    done = torch.zeros(d)
    for pair, factor in zip(pairs, passes, strict=True):
        whole = done.view(1, d, *[1] * d).expand(1, d, *shape)
        coarse = whole[(..., *[slice(None, None, factor)] * d)] / factor
        expected = warp(averaged(network.template.detach(), factor), coarse)
        expected = torch.cat([expected, averaged(image, factor)], 1) * network.input_scale
        torch.testing.assert_close(pair, expected)
        done = done + factor * step
    expected = done.view(1, d, *[1] * d).expand(1, d, *network.reduced)
    torch.testing.assert_close(velocity, expected)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_more_passes_find_more_of_a_move_and_are_trained_together(n: int) -> None:
    """With a U-Net that finds the share g of what is left, n passes find 1 - (1 - g)^n.

    The derivative is n (1 - g)^(n - 1); were the moves that later passes see held fixed it would be
    sum_k (1 - g)^k.
    """
    size = 24
    x = torch.arange(size, dtype=torch.float32)
    share = torch.tensor(0.5, requires_grad=True)

    def blob(at: float) -> torch.Tensor:
        return torch.exp(-((x[:, None] - at) ** 2 + (x[None] - 11) ** 2) / 8)[None, None]

    def centre(of: torch.Tensor) -> torch.Tensor:
        return (of[0].sum(1) * x).sum() / of[0].sum()

    def look(pair: torch.Tensor) -> torch.Tensor:
        left = share * (centre(pair[:, 0]) - centre(pair[:, 1]))
        return torch.stack([left, torch.zeros(())]).view(1, 2, 1, 1).expand(1, 2, size, size)

    network = AtlasNetwork(blob(9.0), passes=[1] * n, field_resolution=1, **FEATURES).eval()
    network.unet.forward = look  # type: ignore[method-assign, assignment]
    result = network.velocity(blob(13.0))[0, 0].mean()
    torch.testing.assert_close(result, torch.tensor(-4 * (1 - 0.5**n)))
    slope = torch.autograd.grad(result, share)[0]
    torch.testing.assert_close(slope, torch.tensor(-4 * n * 0.5 ** (n - 1)), rtol=1e-4, atol=0)


def test_inverse_comes_from_the_negated_velocity() -> None:
    network = moving(AtlasNetwork(templates(1, 1, (9, 10, 7)), **FEATURES)).eval()
    velocity = network.velocity(torch.rand(1, 1, 9, 10, 7))
    forward, inverse = network.displacements(velocity)
    torch.testing.assert_close(forward, network.displacement(velocity))
    torch.testing.assert_close(inverse, network.displacement(-velocity))
    assert (forward + inverse).abs().max() < forward.abs().max()


def test_gradients_reach_template_and_network() -> None:
    network = moving(AtlasNetwork(templates(2, 1, (8, 9)), **FEATURES)).train()
    network(torch.rand(2, 1, 8, 9))["warped"].square().sum().backward()
    assert network.template.grad is not None
    assert (network.template.grad.abs().amax((1, 2, 3)) > 0).all()
    assert all(p.grad is not None for p in network.unet.parameters())


def test_projection_leaves_no_negative_and_an_exact_zero_off_the_support() -> None:
    network = AtlasNetwork(templates(2, 1, (8, 9)), **FEATURES)
    support = torch.zeros(1, 1, 8, 9, dtype=torch.bool)
    support[..., 2:5, 3:7] = True
    network.set_support(support)
    assert (network.template[~support.expand(2, -1, -1, -1)] == 0).all()
    with torch.no_grad():
        network.template += torch.randn(network.template.shape)
    inside = network.template.detach().clone()
    network.project_template()
    expected = torch.where(support, inside.clamp_min(0), torch.zeros(()))
    torch.testing.assert_close(network.template.detach(), expected, atol=0, rtol=0)
    density = network.template_density()
    assert (density[~support.expand(2, -1, -1, -1)] == 0).all()
    assert (density >= 0).all()


def test_everything_learned_and_described_survives_a_weights_only_file() -> None:
    about = {"format": 1, "grid": {"shape": [8, 9]}, "names": ["é", "b"], "x": 0.1}
    network = moving(AtlasNetwork(templates(2, 1, (8, 9)), description=about, **FEATURES))
    network.mean_velocity.fill_(0.25)
    network.mixture.copy_(torch.tensor([0.7, 0.3]))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = AtlasNetwork(np.zeros((2, 1, 8, 9)), description=about, **FEATURES)
    again.load_state_dict(state)
    assert again.description == about
    image = torch.rand(2, 1, 8, 9)
    torch.testing.assert_close(again.eval()(image), network.eval()(image), atol=0, rtol=0)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(11, 9), (17, 16, 18)])
def test_half_precision_convolutions_leave_fields_and_images_float32(
    shape: tuple[int, ...],
) -> None:
    network = moving(AtlasNetwork(templates(1, 1, shape), **FEATURES)).train()
    image = torch.rand(1, 1, *shape)
    with autocast("cpu", "bfloat16"):
        result = network(image)
    exact = network(image)
    for name, value in result.items():
        assert value.dtype == torch.float32
        assert 0 < (value - exact[name]).abs().max() < 0.1  # it was used, and stays close


def test_tiny_volumes_are_convolved_in_float32_on_a_cpu() -> None:
    """oneDNN's bfloat16 kernels read unwritten memory there."""
    network = moving(AtlasNetwork(templates(1, 1, (9, 10, 7)), **FEATURES)).train()
    image = torch.rand(1, 1, 9, 10, 7)
    with autocast("cpu", "bfloat16"):
        result = network(image)
    torch.testing.assert_close(result["velocity"], network(image)["velocity"], atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(9, 8, 2), (2, 3, 9), (7, 2)])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_volumes_of_few_slices(shape: tuple[int, ...], factor: int) -> None:
    """A reduced grid may have one voxel along an axis."""
    network = moving(AtlasNetwork(templates(1, 1, shape), field_resolution=factor, **FEATURES))
    network.train()(torch.rand(1, 1, *shape))["warped"].sum().backward()
    forward, inverse = network.displacements(torch.full((1, len(shape), *network.reduced), 0.5))
    torch.testing.assert_close(forward, torch.full_like(forward, 0.5))
    torch.testing.assert_close(inverse, -forward)


def test_autocast_float32_is_off_even_inside_another() -> None:
    layer, x = nn.Linear(3, 3), torch.rand(1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), autocast("cpu", "float32"):
        assert layer(x).dtype == torch.float32
    with autocast("cpu", "float16"):
        assert layer(x).dtype == torch.float16


def test_a_device_that_is_not_there_is_a_configuration_error() -> None:
    from scripts.errors import ConfigurationError

    assert open_device("cpu") == torch.device("cpu")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigurationError, match=f"learned_atlas.device: '{absent}'"):
        open_device(absent, "learned_atlas.device")


def test_a_prediction_keeps_what_its_image_knows() -> None:
    network = moving(AtlasNetwork(templates(1, 1, (9, 10, 7)), **FEATURES)).eval()
    image = torch.rand(1, 1, 9, 10, 7)
    known = MetaTensor(image, affine=2 * torch.eye(4), meta={"filename_or_obj": "sub-01.nii.gz"})
    predicted = network(known)
    assert isinstance(predicted, MetaTensor)
    assert predicted.meta["filename_or_obj"] == "sub-01.nii.gz"
    assert torch.equal(predicted.affine, known.affine)
    torch.testing.assert_close(predicted.as_tensor(), network(image), atol=0, rtol=0)
