"""The network's last epochs: it comes nearer, the atlas stays, a cut leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.atlas.cohort_refinement import CohortRefinement
from scripts.atlas.fine_tuning import NetworkFineTuning
from scripts.atlas.network import AtlasNetwork
from scripts.data import EpochBatches
from scripts.errors import CheckpointError, TrainingError

APART = {"spread": 2.0}


def tuning(
    training: Any, name: str = "run", epochs: int = 2, batch_size: int = 1, **of_rounds: Any
) -> NetworkFineTuning:
    """Over a training's cohort, its rounds done."""
    result = CohortRefinement(
        training.network, training.dataset, training.loss, training.folder / name / "refinement",
        **{"rounds": 1, "iterations": 3, **of_rounds},
    )  # fmt: skip
    result.run()
    return NetworkFineTuning(
        result,
        EpochBatches(len(training.dataset), batch_size),
        training.folder / name / "fine_tuning.pt",
        epochs=epochs,
        lr=1e-2,
    )


def weights(network: AtlasNetwork) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def mean_loss(made: NetworkFineTuning) -> float:
    with torch.no_grad():
        losses = [float(made._loss(i)) for i in range(len(made.refinement.dataset))]
    return sum(losses) / len(losses)


def test_the_network_comes_nearer_and_the_atlas_stays(make_training: Callable[..., Any]) -> None:
    made = tuning(make_training(made_of=APART), epochs=12)
    template = made.network.template.detach().clone()
    fields = [made.refinement.velocity(i) for i in range(len(made.refinement.dataset))]
    before = mean_loss(made)
    made.run()
    refined = made.refinement.history[-1]
    assert refined < before - 0.01
    assert before - mean_loss(made) > 0.1 * (before - refined)
    assert torch.equal(made.network.template.detach(), template)
    assert all(torch.equal(made.refinement.velocity(i), v) for i, v in enumerate(fields))


def test_afterwards_the_network_is_centred(make_training: Callable[..., Any]) -> None:
    training = make_training(made_of=APART)
    torch.manual_seed(1)
    torch.nn.init.normal_(training.network.unet.field.weight, std=5.0)
    made = tuning(training)
    made.run()
    refined = [made.refinement.velocity(i) for i in range(len(made.refinement.dataset))]
    with torch.no_grad():
        own = [made.network.velocity(item["image"][None]) for item in made.refinement.dataset]
    difference = torch.cat(own).mean(0) - torch.cat(refined).mean(0)
    assert torch.cat(own).abs().max() > 0.05
    assert difference.abs().max() < 1e-5


def test_without_rounds_the_template_moves_to_the_middle(
    make_training: Callable[..., Any],
) -> None:
    made = tuning(make_training(made_of=APART), rounds=0, epochs=4)
    made.run()
    with torch.no_grad():
        own = [made.network.velocity(item["image"][None]) for item in made.refinement.dataset]
    each, mean = torch.cat(own), torch.cat(own).mean(0)
    assert mean.square().mean().sqrt() < 0.1 * each.square().mean().sqrt()


def test_no_epochs_no_change(make_training: Callable[..., Any]) -> None:
    made = tuning(make_training(), epochs=0)
    before = weights(made.network)
    made.run()
    assert same(before, weights(made.network))
    assert not made.path.exists()


@pytest.mark.parametrize("cut", [1, 5])
def test_a_cut_leaves_no_trace(make_training: Callable[..., Any], cut: int) -> None:
    """Cut after so many steps: in the first epoch, and in the second."""
    whole = tuning(make_training(made_of=APART), "whole", epochs=3)
    whole.run()
    broken = tuning(make_training(made_of=APART), "cut", epochs=3)
    steps = 0

    def stop_there(step: Callable[..., float]) -> Callable[..., float]:
        def wrapped(*arguments: Any) -> float:
            nonlocal steps
            steps += 1
            if steps > cut:
                raise KeyboardInterrupt
            return step(*arguments)

        return wrapped

    broken._step = stop_there(broken._step)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    resumed = tuning(make_training(made_of=APART), "cut", epochs=3)
    resumed.run()
    assert same(weights(whole.network), weights(resumed.network))
    assert resumed.losses == whole.losses


def test_what_is_done_is_not_done_again(make_training: Callable[..., Any]) -> None:
    made = tuning(make_training(made_of=APART))
    made.run()
    after = weights(made.network)
    again = tuning(make_training(made_of=APART))
    assert same(after, weights(again.network))  # by the refinement's state, which an export reads
    again._step = None  # type: ignore[assignment,method-assign]
    again.run()
    assert same(after, weights(again.network))
    assert again.losses == made.losses


def test_from_here_on_the_network_looks_several_times(make_training: Callable[..., Any]) -> None:
    """Also after a resumed run; without these epochs the network makes one pass."""
    trainings = [make_training(made_of=APART) for _ in range(3)]
    for training, epochs, passes in zip(trainings, (0, 1, 1), ((1,), (2, 1), (2, 1)), strict=True):
        made = tuning(training, "none" if epochs == 0 else "run", epochs=epochs)
        made.passes = (2, 1)
        assert made.network.passes == (1,)
        made.run()
        assert made.network.passes == passes


def test_a_batch_has_the_mean_of_its_subjects_gradients(make_training: Callable[..., Any]) -> None:
    made = tuning(make_training(made_of=APART), batch_size=3)
    made.gradient_clip = 1e9
    singly = [torch.autograd.grad(made._loss(i), made.parameters) for i in (0, 1, 2)]
    made._step([0, 1, 2], 0, 10)
    for gradients, parameter in zip(zip(*singly, strict=True), made.parameters, strict=True):
        assert parameter.grad is not None
        expected = torch.stack(gradients).mean(0)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_each_subject_is_led_to_its_own_template(make_training: Callable[..., Any]) -> None:
    made = tuning(make_training(model={"n_templates": 2}, made_of=APART))
    made.refinement.assignment = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 1)
    with torch.no_grad():
        made.network.template[1] *= 0.2
        result = [float(made._loss(i)) for i in (0, 1)]
        made.network.template[0] *= 3.0
        other = [float(made._loss(i)) for i in (0, 1)]
    assert result[0] != other[0]
    assert result[1] == other[1]


def test_a_loss_that_is_no_number_ends_it(make_training: Callable[..., Any]) -> None:
    made = tuning(make_training())
    with torch.no_grad():
        made.network.unet.field.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"fine-tuning is not finite .* in epoch 1"):
        made.run()
    assert not made.path.exists()


def test_a_checkpoint_of_another_version_is_refused(
    make_training: Callable[..., Any], tmp_path: Path
) -> None:
    made = tuning(make_training())
    torch.save({"format": 99}, made.path)
    with pytest.raises(CheckpointError, match="written in format 99, this version reads 1"):
        made.run()
