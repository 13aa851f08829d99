"""Refinement: closed forms of template and centring, and a cut that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from atlas_training import Interrupted

from scripts.atlas.cohort_refinement import CohortRefinement
from scripts.atlas.network import AtlasNetwork, density_of
from scripts.errors import CheckpointError
from scripts.spatial.jacobian import jacobian_determinant
from scripts.spatial.warp import warp

ROUNDS: dict[str, Any] = {"rounds": 2, "iterations": 3}


def refinement(training: Any, folder: str = "refinement", **changes: Any) -> CohortRefinement:
    """Over a training's cohort; its network as it stands."""
    return CohortRefinement(
        training.network, training.dataset, training.loss, training.folder / folder, **changes
    )


def moving(network: AtlasNetwork) -> None:
    """Give the network fields of about a voxel that differ between subjects."""
    torch.manual_seed(1)
    torch.nn.init.normal_(network.unet.field.weight, std=0.05)
    assert network.unet.field.bias is not None
    torch.nn.init.normal_(network.unet.field.bias, std=0.4)


def final_velocities(found: CohortRefinement) -> torch.Tensor:
    """``(N, d, *reduced)``, each subject's to its own template."""
    homes = found.assignment.argmax(1).tolist()
    return torch.cat([found.velocity(i, home) for i, home in enumerate(homes)])


def spread(x: torch.Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


# -- centring --------------------------------------------------------------------------------


def test_without_rounds_a_common_move_goes_into_the_template(
    make_training: Callable[..., Any],
) -> None:
    """Every field is exp(m): afterwards none moves, and the template is T(x + exp(m)(x))."""
    training = make_training()
    network = training.network
    with torch.no_grad():
        network.unet.field.weight.zero_()
        network.unet.field.bias.copy_(torch.tensor([1.5, -0.5, 0.25]))
    before = network.template.detach().clone()
    move = network.displacement(
        network.unet.field.bias.view(1, 3, 1, 1, 1).expand(1, 3, *network.reduced)
    )
    result = refinement(training)
    result.run()
    assert spread(final_velocities(result)) < 1e-6
    expected = warp(before, move) * network.support
    torch.testing.assert_close(network.template.detach(), expected, atol=1e-5, rtol=0)
    assert spread(expected - before) > 0.1


def test_the_running_mean_of_the_training_is_not_subtracted_twice(
    make_training: Callable[..., Any],
) -> None:
    results = []
    for running in (0.0, 0.7):
        training = make_training()
        moving(training.network)
        training.network.mean_velocity.fill_(running)
        result = refinement(training, f"running-{running}")
        result.run()
        results.append((training.network.template.detach(), final_velocities(result)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_without_rounds_the_mean_velocity_is_nearly_zero(
    make_training: Callable[..., Any],
) -> None:
    """To first order: the network looks at the moved template when it is asked again."""
    training = make_training(made_of={"spread": 2.0})
    moving(training.network)
    with torch.no_grad():
        raw = [training.network.eval().velocity(item["image"][None]) for item in training.dataset]
    result = refinement(training)
    result.run()
    mean = final_velocities(result).mean(0)
    assert spread(torch.cat(raw).mean(0)) > 0.15
    assert spread(mean) < 0.1 * spread(torch.cat(raw).mean(0))


# -- rounds ----------------------------------------------------------------------------------


def test_after_rounds_the_mean_velocity_is_zero_and_so_is_the_networks(
    make_training: Callable[..., Any],
) -> None:
    training = make_training(made_of={"spread": 2.0})
    moving(training.network)
    result = refinement(training, **ROUNDS)
    result.run()
    velocities = final_velocities(result)
    assert spread(velocities) > 0.05
    assert velocities.mean(0).abs().max() < 1e-6
    with torch.no_grad():
        own = [training.network.velocity(item["image"][None]) for item in training.dataset]
    assert torch.cat(own).mean(0).abs().max() < 1e-5


def test_no_subject_is_worse_than_at_the_start_of_its_round(
    make_training: Callable[..., Any],
) -> None:
    training = make_training(made_of={"spread": 2.0})
    network = training.network
    start = refinement(training, "start")
    start.run()
    costs = []
    with torch.no_grad():
        for i in range(len(training.dataset)):
            velocity = start.velocity(i)
            warped = network.warped_template(network.displacement(velocity))
            costs.append(float(training.loss(warped, start.image(i), velocity)["loss"]))
    result = refinement(training, "start", rounds=1, iterations=8)
    result.run()
    for i, cost in enumerate(costs):
        stored = torch.load(result.folder / "round-000" / f"{i:06d}.pt", weights_only=True)
        assert stored["loss"] < cost
    assert result.history[0] < sum(costs) / len(costs)


def test_rounds_sharpen_the_template_and_lower_the_loss(
    make_training: Callable[..., Any],
) -> None:
    training = make_training(made_of={"spread": 2.5, "subjects": 5})
    before = float(training.network.template_density().amax())
    result = refinement(training, rounds=3, iterations=15)
    result.run()
    assert len(result.history) == 3
    assert result.history[-1] < 0.9 * result.history[0]
    assert float(training.network.template_density().amax()) > 1.02 * before


def inject(found: CohortRefinement, velocities: torch.Tensor) -> None:
    """Store velocities as if the first round had found them."""
    folder = found.folder / "round-000"
    folder.mkdir(parents=True)
    for i, velocity in enumerate(velocities):
        torch.save({"velocity": velocity, "loss": 0.0}, folder / f"{i:06d}.pt")


def test_the_template_of_still_velocities_is_the_mean_density(
    make_training: Callable[..., Any],
) -> None:
    training = make_training()
    network = training.network
    with torch.no_grad():
        network.template.mul_(0.3)
    result = refinement(training, rounds=1)
    inject(result, torch.zeros(4, 3, *network.reduced))
    result.run()
    expected = torch.tensor(training.cohort.mean_density)
    torch.testing.assert_close(network.template_density()[0], expected, atol=1e-6, rtol=1e-4)


def test_the_template_of_true_moves_is_the_subject_without_blur(
    make_training: Callable[..., Any],
) -> None:
    """Bumps at c + s_i with v_i = -s_i + m: the offset m goes, one bump at c remains."""
    training = make_training(made_of={"subjects": 3, "spread": 1.5})  # s = -1, 0, 1
    network = training.network
    shifts = torch.tensor([-1.0, 0.0, 1.0])
    velocities = torch.zeros(3, 3, *network.reduced)
    velocities[:, 0] = -shifts.view(3, 1, 1, 1) + 0.5
    result = refinement(training, rounds=1)
    inject(result, velocities)
    result.run()
    middle = density_of(training.dataset[1]["image"], network.log_offset)
    torch.testing.assert_close(network.template_density()[0], middle, atol=1e-6, rtol=2e-3)
    expected = velocities[:, 0] - 0.5
    torch.testing.assert_close(final_velocities(result)[:, 0], expected, atol=1e-6, rtol=0)


def test_the_template_weighs_subjects_by_how_much_they_are_enlarged(
    make_training: Callable[..., Any],
) -> None:
    """sum J_i d_i / sum J_i, checked against the formula for velocities of two kinds."""
    from scripts.spatial.jacobian import jacobian_determinant

    training = make_training(made_of={"subjects": 2})
    network = training.network
    ramp = torch.linspace(-1, 1, network.reduced[0]).view(1, -1, 1, 1)
    velocities = torch.zeros(2, 3, *network.reduced)
    velocities[0, :1], velocities[1, :1] = ramp, -ramp
    result = refinement(training, rounds=1)
    inject(result, velocities)
    result.run()
    total, weight = torch.zeros(1, *network.shape), torch.zeros(network.shape)
    for item, velocity in zip(training.dataset, velocities, strict=True):
        inverse = network.displacement(-velocity[None])
        size = jacobian_determinant(inverse[0])
        total += size * warp(density_of(item["image"], network.log_offset)[None], inverse)[0]
        weight += size
    expected = total / weight * network.support[0]
    assert weight.std() > 0.02 or float((total / 2 - expected).abs().max()) > 1e-4
    torch.testing.assert_close(network.template_density()[0], expected, atol=1e-6, rtol=1e-3)


def test_two_templates_take_their_own_subjects(make_training: Callable[..., Any]) -> None:
    training = make_training(
        made_of={"spread": 5.0}, model={"n_templates": 2, "mixture_sharpness": 200}
    )
    result = refinement(training, mixture_sharpness=200.0, **ROUNDS)
    result.run()
    homes = result.assignment.argmax(1)
    assert homes[0] == homes[1]
    assert homes[2] == homes[3]
    assert homes[0] != homes[2]
    torch.testing.assert_close(result.assignment.sum(1), torch.ones(4))
    torch.testing.assert_close(training.network.mixture, result.assignment.mean(0))
    velocities = final_velocities(result)
    for k in range(2):
        assert velocities[homes == k].mean(0).abs().max() < 1e-6


# -- interruptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("readings", [2, 6, 13, 16, 21, 27])
def test_a_cut_refinement_resumes_to_the_same_result_bit_for_bit(
    readings: int, make_training: Callable[..., Any]
) -> None:
    unbroken = make_training(made_of={"spread": 2.0})
    moving(unbroken.network)
    expected = refinement(unbroken, "unbroken", **ROUNDS)
    expected.run()

    broken = make_training(made_of={"spread": 2.0})
    moving(broken.network)
    cut = refinement(broken, "broken", **ROUNDS)
    cut.dataset = Interrupted(broken.dataset, readings)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        cut.run()

    resumed = make_training(made_of={"spread": 2.0})
    moving(resumed.network)  # as the training's checkpoint brings it back
    result = refinement(resumed, "broken", **ROUNDS)
    result.run()
    assert result.round == 2
    assert result.history == expected.history
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name
    assert torch.equal(final_velocities(result), final_velocities(expected))


def test_a_finished_refinement_is_read_and_not_run_again(
    make_training: Callable[..., Any],
) -> None:
    first = make_training()
    done = refinement(first, **ROUNDS)
    done.run()
    again = make_training()
    result = refinement(again, **ROUNDS)
    result.dataset = Interrupted(again.dataset, 0)  # type: ignore[assignment]
    result.run()
    assert torch.equal(final_velocities(result), final_velocities(done))
    assert torch.equal(again.network.template, first.network.template)


def test_disk_use_does_not_grow_with_the_rounds(make_training: Callable[..., Any]) -> None:
    training = make_training()
    result = refinement(training, rounds=4, iterations=1)
    result.run()
    kept = sorted(p.name for p in Path(result.folder).iterdir())
    assert kept == ["round-003", "state.previous.pt", "state.pt"]


def test_a_damaged_state_or_velocity_gives_way_and_the_result_is_the_same(
    make_training: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = make_training()
    done = refinement(first, "unbroken", **ROUNDS)
    done.run()
    second = make_training()
    broken = refinement(second, **ROUNDS)
    broken.dataset = Interrupted(second.dataset, 18)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    folder = Path(broken.folder)
    velocity = max(folder.rglob("0*.pt"))
    for path in (folder / "state.pt", velocity):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    again = make_training()
    result = refinement(again, **ROUNDS)
    result.run()
    assert str(folder / "state.pt") in caplog.text
    assert str(velocity) in caplog.text
    assert torch.equal(final_velocities(result), final_velocities(done))
    assert torch.equal(again.network.template, first.network.template)


@pytest.mark.parametrize("what", ["a velocity of the last round", "the only state"])
def test_what_nothing_else_can_replace_is_made_again_from_the_trainings_end(
    what: str, make_training: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = make_training()
    done = refinement(first, **ROUNDS)
    done.run()
    folder = Path(done.folder)
    damaged = folder / ("round-001/000000.pt" if what.startswith("a") else "state.pt")
    (folder / "state.previous.pt").unlink()
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    again = make_training()
    result = refinement(again, **ROUNDS)
    result.run()
    assert f"{damaged}: " in caplog.text
    assert "starts again from the end of the training" in caplog.text
    assert torch.equal(final_velocities(result), final_velocities(done))
    assert torch.equal(again.network.template, first.network.template)


def test_a_finished_refinement_is_restored_without_writing(
    make_training: Callable[..., Any],
) -> None:
    first = make_training()
    done = refinement(first, **ROUNDS)
    done.run()
    before = {path: path.read_bytes() for path in Path(done.folder).rglob("*.pt")}
    again = make_training()
    result = refinement(again, **ROUNDS)
    result.restore()
    assert torch.equal(final_velocities(result), final_velocities(done))
    result.check_unchanged()
    assert {path: path.read_bytes() for path in Path(done.folder).rglob("*.pt")} == before
    done.offset = done.offset + 1
    done.save()  # another run
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        result.check_unchanged()
    (Path(done.folder) / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        refinement(make_training(), **ROUNDS).restore()


# -- rounds of the network alone -------------------------------------------------------------


def test_the_network_alone_makes_centred_fields_and_the_template_of_all(
    make_training: Callable[..., Any],
) -> None:
    training = make_training(made_of={"spread": 2.0})
    network = training.network
    moving(network)
    with torch.no_grad():
        network.unet.field.weight.mul_(200)  # so that subjects differ by a tenth of a voxel
    network.passes = (2, 1)
    seen: list[tuple[int, ...]] = []
    estimate = network.velocity

    def watched(*arguments: Any, passes: Any = None) -> torch.Tensor:
        seen.append(tuple(passes or network.passes))
        return estimate(*arguments, passes=passes)

    network.velocity = watched
    result = refinement(training, network_rounds=3)
    result.run()
    count = len(training.dataset)
    assert seen[: 3 * count] == [(2,)] * (2 * count) + [(2, 1)] * count
    assert network.passes == (2, 1)
    velocities = final_velocities(result)
    assert spread(velocities) > 0.05
    assert spread(velocities.mean(0)) < 1e-5
    # The template is the least-squares fit to everybody, moved by these fields.
    total = weight = torch.zeros(())
    for index, velocity in enumerate(velocities):
        _, inverse = network.displacements(velocity[None])
        size = jacobian_determinant(inverse[0]).clamp_min(0)
        density = density_of(result.image(index), network.log_offset)
        total, weight = total + size * warp(density, inverse)[0], weight + size
    expected = total / weight.clamp_min(1e-6) * network.support[0]
    torch.testing.assert_close(network.template_density()[0], expected, atol=1e-6, rtol=1e-3)


def test_several_subjects_at_once_give_the_bits_of_one_after_the_other(
    make_training: Callable[..., Any],
) -> None:
    results, threads = [], torch.get_num_threads()
    for workers in (1, 2, 3):
        training = make_training(made_of={"spread": 2.0})
        moving(training.network)
        torch.set_num_threads(workers)
        try:
            result = refinement(training, f"{workers}", network_rounds=1, rounds=1, iterations=2)
            result.run()
        finally:
            torch.set_num_threads(threads)
        results.append((final_velocities(result), training.network.template.detach()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_the_network_of_rounds_alone_is_left_centred(make_training: Callable[..., Any]) -> None:
    training = make_training(made_of={"spread": 2.0})
    network = training.network
    with torch.no_grad():  # whoever it is, it finds the same move
        network.unet.field.weight.zero_()
        network.unet.field.bias.copy_(torch.tensor([1.5, -0.5, 0.25]))
    result = refinement(training, network_rounds=2)
    result.run()
    assert spread(final_velocities(result)) < 1e-6
    assert spread(network.velocity(result.image(0))) < 1e-6


@pytest.mark.parametrize("n_templates", [1, 2])
def test_a_cut_in_rounds_of_the_network_leaves_no_trace(
    make_training: Callable[..., Any], n_templates: int
) -> None:
    def made(folder: str) -> CohortRefinement:
        training = make_training(made_of={"spread": 2.0}, model={"n_templates": n_templates})
        moving(training.network)
        return refinement(training, folder, network_rounds=2, **ROUNDS)

    whole = made("whole")
    whole.run()
    cut = made("cut")
    refine, done = cut._refine_subject, []

    def stopping(index: int) -> float:
        if len(done) == len(cut.dataset) + 1:
            raise KeyboardInterrupt
        done.append(index)
        return refine(index)

    cut._refine_subject = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = made("cut")
    resumed.run()
    assert len(resumed.history) == 4
    assert torch.equal(resumed.network.template, whole.network.template)
    assert torch.equal(final_velocities(resumed), final_velocities(whole))
    assert torch.equal(resumed.assignment, whole.assignment)
