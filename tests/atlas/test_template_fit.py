"""The template of registered subjects: closed forms of least squares, centred, flat memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch

from scripts.atlas.network import AtlasNetwork, log_density_of
from scripts.atlas.template_fit import (
    fit_conditional_template,
    fit_templates,
    fit_velocity_slopes,
    in_template_space,
)
from scripts.spatial.jacobian import jacobian_determinant

SHAPE = (12, 10, 8)
LOG_OFFSET = 0.01
Subject = tuple[torch.Tensor, torch.Tensor]  # density, Jacobian determinant


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def make_network(templates: int = 1, covariates: int = 0, channels: int = 2) -> AtlasNetwork:
    template = log_density_of(torch.rand(templates, channels, *SHAPE), LOG_OFFSET)
    return AtlasNetwork(
        template, LOG_OFFSET, [4, 4], [4, 4, 4], covariates=covariates, velocity_smoothing=0.0
    )


def make_subjects(count: int, channels: int = 2) -> list[Subject]:
    return [(torch.rand(channels, *SHAPE), torch.rand(SHAPE) + 0.5) for _ in range(count)]


def bump(centre: float) -> torch.Tensor:
    """``(1, *SHAPE)``, a smooth blob in the middle of the last two axes."""
    middle = torch.tensor([centre, 4.5, 3.5]).view(3, 1, 1, 1)
    places = torch.stack(torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"))
    return torch.exp(-((places - middle) ** 2).sum(0) / 6)[None]


# -- templates ---------------------------------------------------------------------------------


def test_a_cohort_of_equal_maps_gives_that_map_whatever_the_weights() -> None:
    network = make_network()
    density = torch.rand(2, *SHAPE)
    sizes = [size for _, size in make_subjects(4)]
    fit_templates(network, ((0, density, size) for size in sizes))
    torch.testing.assert_close(network.template_density()[0], density, rtol=1e-4, atol=1e-6)


def test_the_template_is_the_weighted_mean_of_its_subjects() -> None:
    """It minimises sum_i J_i |T - d_i|^2, so the weighted residuals add up to 0 at each voxel."""
    network = make_network()
    subjects = make_subjects(5)
    fit_templates(network, ((0, *subject) for subject in subjects))
    template = network.template_density()[0]
    residual = torch.stack([size * (density - template) for density, size in subjects]).sum(0)
    assert float(residual.abs().max()) < 1e-4
    plain = torch.stack([density for density, _ in subjects]).mean(0)
    assert float((template - plain).abs().max()) > 0.05


def test_order_and_scale_of_the_weights_do_not_matter() -> None:
    subjects = make_subjects(5)
    results = []
    for listed in (subjects, subjects[::-1], [(density, 3 * size) for density, size in subjects]):
        network = make_network()
        fit_templates(network, ((0, *subject) for subject in listed))
        results.append(network.template_density())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


def test_each_template_is_fitted_to_its_subjects_and_one_without_any_stays() -> None:
    network = make_network(templates=3)
    before = network.template.clone()
    maps = torch.rand(2, 2, *SHAPE)
    ones = torch.ones(SHAPE)
    fit_templates(network, [(0, maps[0], ones), (2, maps[1], ones), (0, maps[0], ones)])
    torch.testing.assert_close(network.template_density()[[0, 2]], maps, rtol=1e-4, atol=1e-6)
    assert torch.equal(network.template[1], before[1])


def test_the_template_is_zero_outside_the_support() -> None:
    network = make_network()
    support = torch.zeros(SHAPE, dtype=torch.bool)
    support[3:9] = True
    network.set_support(support)
    fit_templates(network, ((0, *subject) for subject in make_subjects(2)))
    assert not network.template[:, :, ~support].any()
    assert (network.template[:, :, support] > 0).all()


# -- registered subjects -----------------------------------------------------------------------


def test_a_still_velocity_leaves_the_density_with_weight_one() -> None:
    network = make_network()
    density = torch.rand(2, *SHAPE)
    still = torch.zeros(1, 3, *network.reduced)
    moved, size = in_template_space(network, log_density_of(density, LOG_OFFSET)[None], still)
    torch.testing.assert_close(moved, density, rtol=1e-4, atol=1e-6)
    assert torch.equal(size, torch.ones(SHAPE))


def test_the_weight_is_the_volume_that_a_template_voxel_takes_in_the_subject() -> None:
    network = make_network(channels=1)
    velocity = torch.zeros(1, 3, *network.reduced)
    velocity[0, 0] = torch.linspace(-1, 1, network.reduced[0]).view(-1, 1, 1)  # enlarges
    _, size = in_template_space(network, log_density_of(bump(5.5), LOG_OFFSET)[None], velocity)
    forward, inverse = network.displacements(velocity)
    torch.testing.assert_close(size, jacobian_determinant(inverse[0]))
    middle = (slice(3, 9), slice(2, 8), slice(2, 6))
    assert float(size[middle].max()) < 1  # the subject's anatomy is the smaller one
    assert float(jacobian_determinant(forward[0])[middle].min()) > 1


def test_subjects_on_both_sides_give_one_that_lies_between_them() -> None:
    """Blobs at c - 2 and c + 2 with the velocities that lead there: one blob at c, without blur."""
    network = make_network(channels=1)

    def registered() -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for shift in (-2.0, 2.0):
            velocity = torch.zeros(1, 3, *network.reduced)
            velocity[:, 0] = -shift
            image = log_density_of(bump(5.5 + shift), LOG_OFFSET)[None]
            yield (0, *in_template_space(network, image, velocity))

    fit_templates(network, registered())
    inside = slice(2, -2)  # nearer to the border a subject's map ends
    template = network.template_density()[0]
    torch.testing.assert_close(template[:, inside], bump(5.5)[:, inside], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(template[:, inside], template.flip(1)[:, inside])


# -- covariates --------------------------------------------------------------------------------


def test_a_linear_cohort_gives_its_intercept_and_slopes() -> None:
    """Densities b_0 + c b_1 without noise: nothing is shrunk, whatever the weights."""
    network = make_network(covariates=1)
    intercept, slope = torch.rand(2, *SHAPE) + 1, 0.2 * torch.rand(2, *SHAPE)
    design = torch.tensor([[-1.0], [-0.5], [0.3], [1.2]])
    fit_conditional_template(
        network, ((c, intercept + c * slope, torch.rand(SHAPE) + 0.5) for c in design), 3
    )
    torch.testing.assert_close(network.template_density()[0], intercept, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network.density_slopes[0], slope, rtol=1e-3, atol=1e-4)


def test_a_cohort_of_equal_maps_does_not_depend_on_the_covariates() -> None:
    network = make_network(covariates=2)
    density = torch.rand(2, *SHAPE)
    fit_conditional_template(
        network, ((c, density, torch.ones(SHAPE)) for c in torch.randn(6, 2)), 3
    )
    torch.testing.assert_close(network.template_density()[0], density, rtol=1e-3, atol=1e-5)
    assert float(network.density_slopes.abs().max()) < 1e-4


def test_a_subject_counts_as_much_as_its_volume() -> None:
    """An outlier whose volume is 0 changes nothing."""
    network = make_network(covariates=1)
    intercept, slope = torch.rand(2, *SHAPE) + 1, 0.2 * torch.rand(2, *SHAPE)
    design = torch.tensor([[-1.0], [-0.5], [0.3], [1.2]])
    subjects = [(c, intercept + c * slope, torch.ones(SHAPE)) for c in design]
    outlier = (torch.tensor([2.0]), torch.full((2, *SHAPE), 9.0), torch.zeros(SHAPE))
    fit_conditional_template(network, [*subjects, outlier], 3)
    torch.testing.assert_close(network.template_density()[0], intercept, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network.density_slopes[0], slope, rtol=1e-3, atol=1e-4)


def test_template_and_slopes_are_zero_outside_each_channels_support() -> None:
    network = make_network(covariates=1)
    support = torch.zeros(1, 2, *SHAPE, dtype=torch.bool)
    support[:, 0, 3:9] = True
    support[:, 1, 2:5] = True
    network.set_support(support)
    design = torch.tensor([[-1.0], [0.0], [1.0]])
    fit_conditional_template(
        network, ((c, (2 + c) * torch.ones(2, *SHAPE), torch.ones(SHAPE)) for c in design), 3
    )
    assert not network.template[~support].any()
    assert not network.density_slopes[~support].any()
    assert (network.density_slopes[support] > 0.9).all()


def test_velocities_linear_in_the_covariates_give_their_slopes() -> None:
    network = make_network(covariates=2)
    slopes = torch.randn(2, 3, *network.reduced)
    design = torch.randn(7, 2)
    fit_velocity_slopes(
        network, ((c, torch.einsum("p,p...->...", c, slopes)[None]) for c in design), 5
    )
    torch.testing.assert_close(network.velocity_slopes, slopes, rtol=1e-3, atol=1e-3)


def test_a_velocity_that_all_subjects_share_is_no_effect_of_a_covariate() -> None:
    network = make_network(covariates=1)
    shared = torch.randn(1, 3, *network.reduced)
    fit_velocity_slopes(network, ((c, shared) for c in torch.randn(6, 1)), 5)
    assert float(network.velocity_slopes.abs().max()) < 1e-4


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["templates", "conditional", "velocities"])
def test_memory_does_not_grow_with_the_number_of_subjects(kind: str) -> None:
    """A subject's tensors are freed before the next but one is asked for."""
    network = make_network(covariates=0 if kind == "templates" else 1)
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(sum(one() is not None for one in made))
        made.append(weakref.ref(tensor))
        return tensor

    def densities() -> Iterator[Subject]:
        for _ in range(6):
            yield watched(torch.rand(2, *SHAPE)), torch.ones(SHAPE)

    if kind == "templates":
        fit_templates(network, ((0, *subject) for subject in densities()))
    elif kind == "conditional":
        fit_conditional_template(network, ((torch.randn(1), *one) for one in densities()), 3)
    else:
        fit_velocity_slopes(
            network,
            ((torch.randn(1), watched(torch.randn(1, 3, *network.reduced))) for _ in range(6)),
            5,
        )
    assert len(alive) == 6
    assert max(alive) <= 2  # the one in use, and the last one of the loop's generator
