"""A template that depends on covariates: closed forms, and nothing changes at the mean."""

from __future__ import annotations

import pytest
import torch

from scripts.atlas.network import AtlasNetwork, density_of, log_density_of
from scripts.networks import autocast
from scripts.spatial.warp import warp

SHAPE = (12, 10, 8)
MODEL = {"enc_features": [4, 4], "dec_features": [4, 4, 4], "log_offset": 0.01}


def network(covariates: int, seed: int = 0) -> AtlasNetwork:
    torch.manual_seed(seed)
    template = torch.rand(1, 1, *SHAPE)
    made = AtlasNetwork(template, covariates=covariates, **MODEL)  # type: ignore[arg-type]
    torch.nn.init.normal_(made.unet.field.weight, std=0.05)
    return made.eval()


def test_without_covariates_nothing_is_kept_for_them() -> None:
    state = network(0).state_dict()
    assert not {"density_slopes", "velocity_slopes"} & set(state)
    assert {"density_slopes", "velocity_slopes"} <= set(network(2).state_dict())


@torch.no_grad()
def test_untouched_slopes_and_the_mean_give_the_unconditional_network() -> None:
    plain, made = network(0), network(2)
    image = torch.rand(2, 1, *SHAPE)
    assert torch.equal(plain(image), made(image))
    torch.testing.assert_close(made(image, torch.tensor([[1.0, -2.0], [0.3, 0.0]])), plain(image))
    made.density_slopes.fill_(0.1)
    made.velocity_slopes.fill_(0.7)
    assert torch.equal(plain(image), made(image))
    torch.testing.assert_close(made(image, torch.zeros(2, 2)), plain(image))


@torch.no_grad()
def test_a_template_is_the_changed_density_deformed() -> None:
    made = network(2)
    made.density_slopes[0] = -0.004
    made.velocity_slopes[1, 0] = 1.5  # everywhere the same: a shift along the first axis
    point = torch.tensor([[2.0, 1.0]])
    density = made.template_density()
    changed = (density - 0.008).clamp_min(0)
    torch.testing.assert_close(made.undeformed_density(point), changed)
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 0] = 1.5
    torch.testing.assert_close(
        made.template_density(point), warp(changed, shift), atol=1e-6, rtol=1e-5
    )
    assert float(made.template_density(torch.tensor([[50.0, 0.0]])).min()) == 0


@torch.no_grad()
def test_each_subject_of_a_batch_has_its_own_template() -> None:
    made = network(1)
    made.density_slopes.fill_(0.003)
    made.velocity_slopes.normal_(std=0.5)
    image, points = torch.rand(2, 1, *SHAPE), torch.tensor([[1.0], [-1.0]])
    both = made(image, points)
    alone = torch.cat([made(image[b : b + 1], points[b : b + 1]) for b in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_a_still_network_puts_the_template_of_the_covariates_into_the_subject() -> None:
    """Velocities are counted from the mean's template, so the part due to covariates is added."""
    made = network(1)
    torch.nn.init.zeros_(made.unet.field.weight)
    made.density_slopes.fill_(0.002)
    made.velocity_slopes[0, 1] = 0.8
    point, image = torch.tensor([[1.5]]), torch.rand(1, 1, *SHAPE)
    velocity, which = made.match(image, point)
    torch.testing.assert_close(velocity, made.covariate_velocity(point), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        made.predict(velocity, which, point), made.template_density(point), atol=1e-6, rtol=1e-4
    )
    moved = made.warped_template(made.displacement(velocity), 0, point)
    # Interpolated in logarithms, as everywhere in training.
    log = log_density_of(made.undeformed_density(point), made.log_offset)
    expected = warp(log, made.displacement(velocity))
    torch.testing.assert_close(moved, expected)
    assert density_of(moved, made.log_offset).min() >= 0


def test_a_mixture_cannot_depend_on_covariates() -> None:
    with pytest.raises(ValueError, match="mixture"):
        AtlasNetwork(torch.rand(2, 1, *SHAPE), covariates=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("columns", [0, 1, 2, 3])
def test_geometry_is_float32_for_any_dtype_and_number_of_columns(dtype: str, columns: int) -> None:
    """What each job asks of the network under autocast, beside the same without it."""
    made = network(columns)
    point = torch.rand(2, columns) - 0.5 if columns else None
    if point is not None:
        made.density_slopes.normal_(std=0.01)
        made.velocity_slopes.normal_(std=0.5)
    move, velocity = torch.rand(2, 3, *SHAPE), torch.rand(2, 3, *made.reduced) - 0.5
    which = torch.zeros(2, dtype=torch.long)

    def geometry() -> list[torch.Tensor]:
        result = [
            made.template_density(point),
            made.displacement(velocity),
            *made.displacements(velocity),
            made.warped_template(move, 0, point),
            made.predict(velocity, which, point),
        ]
        if point is not None:
            result += [made.undeformed_density(point), made.covariate_velocity(point)]
        return result

    with torch.no_grad():
        plain = geometry()
        with autocast("cpu", dtype):
            inside = geometry()
    for one, other in zip(plain, inside, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)
    # Registration, and a step of the network's training, as the jobs call them.
    image = torch.rand(2, 1, *SHAPE)
    with autocast("cpu", dtype):
        velocity, which = made.match(image, point)
    assert velocity.dtype == torch.float32
    assert torch.isfinite(made.predict(velocity, which, point)).all()
    made.train()
    with autocast("cpu", dtype):
        velocity = made.velocity(image, 0, point)
    warped = made.warped_template(made.displacement(velocity), 0, point)
    warped.square().sum().backward()
    assert torch.isfinite(made.unet.field.weight.grad).all()
