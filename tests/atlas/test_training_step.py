"""One iteration: its output, its two kinds of parameters, its mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.engines.utils import IterationEvents
from torch import nn

from scripts.atlas.network import AtlasNetwork
from scripts.atlas.training_step import atlas_optimizer, bare, responsibilities

TERMS = ("loss", "similarity", "presence", "smoothness", "centrality")


class Outputs:
    """Keeps what the engine holds when the gradient is known."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        norm = torch.linalg.vector_norm(
            torch.stack([p.grad.norm() for p in engine.network.unet.parameters()])
        )
        self.seen.append({**engine.state.output, "gradient_norm": norm})


@pytest.mark.parametrize("k", [1, 2])
def test_an_iteration_reports_its_terms_fields_and_subjects(
    k: int, make_training: Callable[..., Any]
) -> None:
    training = make_training(model={"n_templates": k})
    outputs = Outputs()
    training.trainer([outputs]).run()
    assert len(outputs.seen) == 4  # 2 epochs of 2 batches
    network = training.network
    for output in outputs.seen:
        for name in TERMS:
            assert output[name].shape == ()
            assert torch.isfinite(output[name])
            assert not output[name].requires_grad
        assert output["velocity"].shape == (2, k, 3, *network.reduced)
        assert output["warped"].shape == (2, k, 1, *network.shape)
        torch.testing.assert_close(output["responsibility"].sum(1), torch.ones(2))
        assert len(output["subject"]) == 2
    names = [name for output in outputs.seen[:2] for name in output["subject"]]
    assert sorted(names) == [s.name for s in training.cohort.subjects]


@pytest.mark.parametrize("k", [1, 2])
def test_training_learns(k: int, make_training: Callable[..., Any]) -> None:
    training = make_training(
        made_of={"spread": 2.5},
        model={"n_templates": k},
        optimizer={"epochs": 25, "batch_size": 4, "lr": 5e-3},
    )
    training.trainer([training.history]).run()
    losses = [epoch["loss"] for epoch in training.history.epochs]
    assert min(losses[-3:]) < 0.9 * losses[0]


def test_the_template_stays_in_its_feasible_set(make_training: Callable[..., Any]) -> None:
    training = make_training(optimizer={"lr": 0.05, "template_lr_ratio": 10})
    before = training.network.template.detach().clone()
    training.network.set_support(before > 0)
    training.trainer().run()
    template = training.network.template.detach()
    assert not torch.equal(template, before)
    assert (template >= 0).all()
    assert (template[before == 0] == 0).all()


def test_the_networks_gradient_is_clipped(make_training: Callable[..., Any]) -> None:
    free, clipped = Outputs(), Outputs()
    make_training(optimizer={"gradient_clip": 1e9}).trainer([free]).run()
    bound = 0.5 * float(free.seen[0]["gradient_norm"])
    make_training(optimizer={"gradient_clip": bound}).trainer([clipped]).run()
    assert float(clipped.seen[0]["gradient_norm"]) == pytest.approx(bound, rel=1e-3)


def test_half_precision_trains_in_float32_outside_of_the_convolutions(
    make_training: Callable[..., Any],
) -> None:
    training, outputs = make_training(dtype="bfloat16"), Outputs()
    training.trainer([outputs]).run()
    for output in outputs.seen:
        assert all(v.dtype == torch.float32 for v in output.values() if torch.is_tensor(v))
    assert all(p.dtype == torch.float32 for p in training.network.parameters())


def test_the_same_seed_gives_the_same_result_bit_for_bit_and_another_does_not(
    make_training: Callable[..., Any],
) -> None:
    states = []
    for seed in (0, 0, 1):
        training = make_training(optimizer={"seed": seed})
        training.trainer().run()
        states.append(training.network.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert not torch.equal(states[0]["template"], states[2]["template"])


def test_responsibilities_by_hand() -> None:
    losses = torch.tensor([[0.5, 0.6], [0.3, 0.3]])
    mixture = torch.tensor([0.25, 0.75])
    result = responsibilities(losses, mixture, 10.0)
    odds = torch.tensor([0.25 / 0.75 * torch.e, 0.25 / 0.75])
    torch.testing.assert_close(result[:, 0], odds / (1 + odds))
    assert torch.isfinite(responsibilities(losses, torch.tensor([0.0, 1.0]), 50.0)).all()


def test_the_template_has_a_rate_of_its_own(make_network: Callable[..., AtlasNetwork]) -> None:
    network = make_network()
    groups = {g["name"]: g for g in atlas_optimizer(network, 1e-3, 5.0).param_groups}
    assert groups["network"]["lr"] == 1e-3
    assert groups["template"]["lr"] == pytest.approx(5e-3)
    assert groups["template"]["params"] == [network.template]
    learned = {id(p) for group in groups.values() for p in group["params"]}
    assert learned == {id(p) for p in network.parameters()}


def test_the_network_inside_a_wrapper_is_found(make_network: Callable[..., AtlasNetwork]) -> None:
    network = make_network()
    assert bare(network) is network
    wrapper = nn.Module()
    wrapper.module = network
    assert bare(wrapper) is network
