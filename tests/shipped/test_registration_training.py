"""Training on generated pairs: a cut leaves no trace, other settings are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bundle.cli import main
from scripts.errors import CheckpointError, TrainingError
from scripts.shipped.network import PairNetwork
from scripts.shipped.pairs import PairGenerator
from scripts.shipped.training import PairTraining, pair_loss
from scripts.shipped.weights import load_pair_network

SHAPES = ((16, 18, 14),)


def training(
    folder: Path,
    steps: int = 4,
    kinds: Sequence[str] = ("bundles", "images"),
    features: Sequence[int] = (4, 4),
    inputs: str = "forces",
    **changes: Any,
) -> PairTraining:
    network = PairNetwork(features, (4, 4, 4), passes=(2, 1), seed=0, inputs=inputs)
    changes = {"dtype": "float32", "saved": 1, "kept": 2, "lr": 1e-2, **changes}
    return PairTraining(network, PairGenerator(0, SHAPES, kinds), folder, steps, **changes)


def weights(made: PairTraining) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.network.parameters()])


class Cut(Exception):
    """The run ends here."""


def cut_after(made: PairTraining, steps: int) -> None:
    take = made._take_step

    def taken() -> dict[str, float]:
        if made.step == steps:
            raise Cut
        return take()

    made._take_step = taken  # type: ignore[method-assign]
    with pytest.raises(Cut):
        made.run()


def test_a_cut_leaves_no_trace_and_curves_are_kept(tmp_path: Path) -> None:
    whole = training(tmp_path / "whole")
    start = weights(whole)
    whole.run()
    assert not torch.equal(weights(whole), start)
    cut_after(training(tmp_path / "cut"), 2)
    resumed = training(tmp_path / "cut")
    resumed.run()
    assert torch.equal(weights(resumed), weights(whole))
    curves = [json.loads((tmp_path / f / "curve.json").read_text()) for f in ("whole", "cut")]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 4
    assert set(curves[0][0]) >= {"loss", "error", "move", "similarity", "smoothness"}
    kept = sorted(path.name for path in (tmp_path / "cut").glob("network*.pt"))
    assert kept == ["network-000002.pt", "network-000004.pt", "network.pt"]


def test_a_run_does_not_continue_with_other_settings(tmp_path: Path) -> None:
    cut_after(training(tmp_path), 3)
    with pytest.raises(CheckpointError, match="other settings"):
        training(tmp_path, lr=2e-2).run()
    with pytest.raises(CheckpointError, match="a training of 4 steps, whose learning rate"):
        training(tmp_path, steps=6).run()


@pytest.mark.parametrize("other", [{"kinds": ["bundles"]}, {"inputs": "copies"}])
def test_a_run_does_not_continue_with_other_pairs_or_inputs(
    other: dict[str, Any], tmp_path: Path
) -> None:
    first = training(tmp_path / "a", 1)
    assert not set(other) & set(first.plan)  # so that earlier runs can still continue
    first.run()
    with pytest.raises(CheckpointError, match="other settings"):
        training(tmp_path / "a", 1, **other).run()
    training(tmp_path / "b", 1, **other).run()
    with pytest.raises(CheckpointError, match="other settings"):
        training(tmp_path / "b", 1).run()


def test_a_run_does_not_continue_with_other_features(tmp_path: Path) -> None:
    training(tmp_path, 1).run()
    with pytest.raises(CheckpointError, match="belongs to a network with other features"):
        training(tmp_path, 1, features=(4, 6)).run()


def test_a_variant_is_made_by_the_command_and_its_file_reports_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "train-registration", "--output_dir", tmp_path, "--steps", 2, "--trainer#lr", 1e-5,
        "--trainer#dtype", "float32", "--pairs#shapes", "[[16,18,14]]",
        "--network_def#enc_features", "[4,4]", "--network_def#dec_features", "[4,4,4]",
        "--network_def#inputs", "costs", "--pairs#kinds",
    )  # fmt: skip
    assert main([*map(str, words), "[bundles]"]) == 0
    described = load_pair_network(tmp_path / "registration" / "network.pt").description
    assert described["inputs"] == "costs"
    assert described["enc_features"] == [4, 4]
    assert described["training"]["kinds"] == ["bundles"]
    assert set(described["share_of_the_move_left"]) == {"bundles"}
    assert main([*map(str, words), "[stars]"]) == 2
    assert "one or both of bundles, images" in capsys.readouterr().err


def rate_after(folder: Path, steps: int, **changes: Any) -> list[float]:
    """Rates of a run whose first hundreds of steps had equal losses."""
    made = training(folder, 1000, **changes)
    result = []
    for made.step in range(steps):
        result.append(made._rate())
        made.curve.append({"loss": 1.0})
    return result


def test_rates_follow_the_schedule_named(tmp_path: Path) -> None:
    late = rate_after(tmp_path, 1000)
    assert late[200] == late[600] == 1e-2 > late[700] > late[999]
    dropped = rate_after(tmp_path, 501, schedule="plateau", schedule_epochs=2, schedule_factor=0.5)
    # The first epoch sets the loss to beat, the next two don't.
    assert [dropped[n] for n in (299, 300, 499, 500)] == [1e-2, 5e-3, 5e-3, 2.5e-3]
    stepped = rate_after(tmp_path, 301, schedule="step", schedule_epochs=3, schedule_factor=0.5)
    assert [stepped[n] for n in (99, 299, 300)] == [1e-2, 1e-2, 5e-3]


def test_a_run_does_not_continue_with_another_schedule_and_steps_count_where_they_matter(
    tmp_path: Path,
) -> None:
    cut_after(training(tmp_path, 100, schedule="constant"), 2)
    with pytest.raises(CheckpointError, match="other settings"):
        training(tmp_path, 100).run()
    assert training(tmp_path, 3, schedule="constant").run() is not None
    cut_after(training(tmp_path / "cosine", 100, schedule="cosine"), 1)
    with pytest.raises(CheckpointError, match="whose learning rate"):
        training(tmp_path / "cosine", 3, schedule="cosine").run()


def test_before_the_rate_falls_the_number_of_steps_may_change(tmp_path: Path) -> None:
    cut_after(training(tmp_path / "a", steps=100), 2)
    changed = training(tmp_path / "a", steps=4)
    changed.run()
    whole = training(tmp_path / "b", steps=4)
    whole.run()
    assert torch.equal(weights(changed), weights(whole))


def test_a_loss_that_isnt_finite_ends_the_run(tmp_path: Path) -> None:
    made = training(tmp_path)
    with torch.no_grad():
        made.network.unet.field.bias.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match="step 0 is not finite"):
        made.run()
    assert not (tmp_path / "network.pt").exists()


def test_the_true_velocity_has_no_error_and_none_has_the_whole_move() -> None:
    pair = PairGenerator(0, SHAPES)[0]

    class Known(PairNetwork):
        def forward(self, moving: Any, fixed: Any, passes: Any = None) -> list[torch.Tensor]:
            return [self.velocity]

    network = Known((4, 4), (4, 4, 4), passes=(1,))
    network.velocity = pair.velocity
    right = pair_loss(network, pair, 0.1, 0.0, "float32")
    network.velocity = torch.zeros_like(pair.velocity)
    none = pair_loss(network, pair, 0.1, 0.0, "float32")
    assert float(right["error"]) < 0.05 < 0.5 < float(none["error"])
    torch.testing.assert_close(none["error"], none["move"])
    assert float(right["similarity"]) < float(none["similarity"])
