"""The perceptual losses: weights from a file, features of five depths."""

from __future__ import annotations

import pytest
import torch

from scripts.errors import CheckpointError, ConfigurationError
from scripts.losses.perceptual import PerceptualLoss, load_perceptual_loss

KEY = "train_fields.perceptual_weights"


def weights_as_lpips_names_them(loss: PerceptualLoss) -> dict[str, torch.Tensor]:
    """Random weights under the names of an `lpips.LPIPS`'s state dict."""
    places = {
        "alex": [(0,), (3,), (6,), (8,), (10,)],
        "vgg": [(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)],
    }
    generator = torch.Generator().manual_seed(0)
    result = {}
    for depth, names in enumerate(places[loss.network]):
        layers = [one for one in loss.slices[depth] if isinstance(one, torch.nn.Conv2d)]
        for place, layer in zip(names, layers, strict=True):
            stem = f"net.slice{depth + 1}.{place}"
            scale = (2 / layer.weight[0].numel()) ** 0.5
            weight = torch.randn(layer.weight.shape, generator=generator)
            result[f"{stem}.weight"] = scale * weight
            result[f"{stem}.bias"] = torch.zeros_like(layer.bias)
        result[f"lin{depth}.model.1.weight"] = torch.rand(
            loss.weights[depth].shape, generator=generator
        )
    return result


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lpips_alex.pt"
    torch.save(weights_as_lpips_names_them(PerceptualLoss("alex")), path)
    return path


@pytest.mark.parametrize("kind", ["net", "net-lin"])
def test_equal_images_cost_nothing_and_others_have_a_gradient(file, kind):
    loss = load_perceptual_loss(f"perceptual_loss_{kind}_alex", file, KEY)
    generator = torch.Generator().manual_seed(1)
    true = torch.rand(1, 1, 48, 48, generator=generator)
    assert float(loss(true, true)) == 0
    result = torch.rand(1, 1, 48, 48, generator=generator).requires_grad_()
    value = loss(result, true)
    value.backward()
    assert value > 0
    assert torch.isfinite(result.grad).all()
    assert result.grad.abs().max() > 0
    assert not any(one.requires_grad for one in loss.parameters())


def test_the_channels_weights_are_those_of_the_file(file):
    linear = load_perceptual_loss("perceptual_loss_net-lin_alex", file, KEY)
    plain = load_perceptual_loss("perceptual_loss_net_alex", file, KEY)
    wanted = torch.load(file)["lin2.model.1.weight"]
    torch.testing.assert_close(linear.weights[2].data, wanted)
    assert all(float(one.min()) == float(one.max()) == 1 for one in plain.weights)


def test_a_volume_is_seen_plane_by_plane(file):
    loss = load_perceptual_loss("perceptual_loss_net_alex", file, KEY)
    true, result = torch.rand(2, 1, 1, 3, 40, 40).unbind(0)
    planes = [loss(result[:, :, i], true[:, :, i]) for i in range(3)]
    torch.testing.assert_close(loss(result, true), torch.stack(planes).mean())


def test_vgg_has_its_thirteen_convolutions():
    loss = PerceptualLoss("vgg")
    convolutions = [m for m in loss.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 13
    assert sum(one.weight.numel() + one.bias.numel() for one in convolutions) == 14_714_688


def test_without_a_file_one_line_says_what_and_where():
    message = r"vgg needs a weights file, and train_fields\.perceptual_weights is null; make one"
    with pytest.raises(ConfigurationError, match=message):
        load_perceptual_loss("perceptual_loss_net-lin_vgg", None, KEY)


def test_weights_of_another_network_are_refused(file, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no weights of lpips\.LPIPS\(net='vgg'\)"):
        load_perceptual_loss("perceptual_loss_net_vgg", file, KEY)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_perceptual_loss("perceptual_loss_net_vgg", tmp_path / "none.pt", KEY)
