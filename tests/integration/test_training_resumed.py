"""A training that did not finish, or was killed, and is started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from training_runs import (
    ROOT,
    SUBJECTS,
    assert_one_error,
    assert_same_atlas,
    workflow,
)
from warm_process import run_module, started_module

from scripts.errors import CheckpointError
from scripts.runtime.error_report import find_user_error

# ---------------------------------------------------------------------------------------------
# An unfinished run
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(trained, run_bundle, tmp_path_factory) -> tuple[Path, str]:
    """Folder of a run that ended in a non-finite loss after one good epoch, and its message."""
    base = tmp_path_factory.mktemp("unfinished")
    result = run_bundle(
        "training", "train", f"--dataset_dir={trained.dataset_dir}",
        f"--output_dir={base / 'output'}", f"--ckpt_dir={base / 'models'}", *trained.overrides,
        "--learned_atlas#optimizer#lr=1e30", "--learned_atlas#optimizer#batch_size=5",
    )  # fmt: skip
    return base, assert_one_error(result, 4)


def test_non_finite_loss_is_located(unfinished):
    base, message = unfinished
    assert "not finite in epoch 2, iteration 2, subjects " in message
    for name in SUBJECTS:
        assert name in message
    assert not (base / "output" / "learned_atlas").exists()
    assert not (base / "models" / "model.pt").exists()


def test_non_finite_loss_keeps_the_last_good_checkpoint(unfinished):
    base, _ = unfinished
    kept = torch.load(base / "models" / "run_state" / "training.pt", weights_only=True)
    assert kept["epoch"] == 1
    assert np.isfinite(kept["history"][0]["loss"])
    assert all(torch.isfinite(tensor).all() for tensor in kept["network"].values())


def test_network_that_is_not_finite_is_never_saved(trained, tmp_path):
    # The gradient of a finite loss isn't finite, and no further loss is looked at.
    made = workflow(trained.dataset_dir, tmp_path, **{"learned_atlas#optimizer#batch_size": 5})
    network = made.parser.get_parsed_content("network")
    network.unet.field.bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "is not finite after epoch 1, iteration 1" in str(find_user_error(caught.value))
    assert not (tmp_path / "models" / "run_state" / "training.pt").exists()
    assert not (tmp_path / "output" / "learned_atlas").exists()


def test_fields_that_are_not_finite_are_never_published(trained, tmp_path):
    made = workflow(
        trained.dataset_dir, tmp_path,
        **{"learned_atlas#optimizer#lr": 1e30, "learned_atlas#optimizer#batch_size": 5,
           "learned_atlas#verify_jacobian": False, "learned_atlas#refine#network_epochs": 0},
    )  # fmt: skip
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "field of subject sub-01 is not finite" in str(find_user_error(caught.value))
    assert not (tmp_path / "output" / "learned_atlas").exists()


def state_error(made: ConfigWorkflow) -> CheckpointError:
    with pytest.raises(RuntimeError) as caught:
        made.parser.get_parsed_content("state")
    error = find_user_error(caught.value)
    assert isinstance(error, CheckpointError)
    return error


def test_resuming_with_other_settings_names_them(trained, unfinished):
    pairs = [word.removeprefix("--").split("=") for word in trained.overrides]
    words = {key: json.loads(text) if text[0] == "[" else text for key, text in pairs}
    made = workflow(trained.dataset_dir, unfinished[0], **words)
    message = str(state_error(made))
    assert "learned_atlas.optimizer.lr was 1e+30, now 0.001" in message
    assert "learned_atlas.optimizer.batch_size was 5, now 1" in message
    assert "epochs" not in message
    assert "--learned_atlas#resume false" in message


def test_resuming_with_another_cohort_is_refused(trained, unfinished, tmp_path):
    for name, copy in zip(SUBJECTS, [*SUBJECTS[:4], "sub-09"], strict=True):
        shutil.copytree(trained.dataset_dir / name, tmp_path / copy)
    assert "another cohort" in str(state_error(workflow(tmp_path, unfinished[0])))


def test_resume_false_starts_afresh(trained, unfinished, run_bundle, tmp_path):
    base, _ = unfinished
    models = shutil.copytree(base / "models", tmp_path / "models")
    result = run_bundle(
        "training", "train", f"--dataset_dir={trained.dataset_dir}",
        f"--output_dir={tmp_path / 'output'}", f"--ckpt_dir={models}", *trained.overrides,
        "--learned_atlas#resume", "false",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert_same_atlas(tmp_path / "output" / "learned_atlas", trained.atlas)


# ---------------------------------------------------------------------------------------------
# Killed, and started again
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(trained, tmp_path) -> list[str]:
    """The command that made `trained`, with other folders."""
    return [
        "run", "training", "--config_file", "configs/train.yaml",
        f"--dataset_dir={trained.dataset_dir}", f"--output_dir={tmp_path / 'output'}",
        f"--ckpt_dir={tmp_path / 'models'}", *trained.overrides,
    ]  # fmt: skip


def killed(
    command: list[str], signum: signal.Signals, ripe: Callable[[], bool]
) -> subprocess.CompletedProcess[str]:
    """Start a command, and send it a signal as soon as something is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with started_module("monai.bundle", command, ROOT, environment) as process:
        end = time.monotonic() + 120
        while not ripe():
            assert process.poll() is None, process.output()
            assert time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(signum)
        return process.wait(60)


def started_again(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = run_module("monai.bundle", command, ROOT, environment)
    assert result.returncode == 0, result.stderr
    return result


def test_killed_in_every_phase_ends_like_an_unbroken_run(command, trained, tmp_path):
    state = tmp_path / "models" / "run_state"
    for landmark in ("run.json", "training.pt", "refinement/round-000/000001.pt"):
        result = killed(command, signal.SIGKILL, (state / landmark).exists)
        assert result.returncode == -signal.SIGKILL
        assert not (tmp_path / "output" / "learned_atlas").exists()
    epochs = torch.load(state / "training.pt", weights_only=True)["epoch"]
    output = started_again(command).stdout
    assert "continuing the unfinished run" in output
    assert f"training continues after epoch {epochs}" in output
    assert_same_atlas(tmp_path / "output" / "learned_atlas", trained.atlas)
    assert json.loads((state / "run.json").read_text())["finished"] is True


def test_interrupted_terminated_and_killed_while_publishing(command, trained, tmp_path):
    state, output = tmp_path / "models" / "run_state", tmp_path / "output"
    result = killed(command, signal.SIGINT, (state / "training.pt").exists)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert " ERROR " not in result.stdout
    assert result.stderr.splitlines()[-1] == (
        "interrupted: start the same command again to continue a training or an alignment"
    )

    refined = state / "refinement" / "round-000" / "000002.pt"
    result = killed(command, signal.SIGTERM, refined.exists)
    assert result.returncode == -signal.SIGTERM
    assert "training continues after epoch" in result.stdout

    result = killed(command, signal.SIGKILL, lambda: any(output.glob(".learned_atlas.staging-*")))
    assert result.returncode == -signal.SIGKILL
    assert not (output / "learned_atlas").exists()
    assert any(output.glob(".learned_atlas.staging-*"))

    started_again(command)
    assert_same_atlas(output / "learned_atlas", trained.atlas)
    assert [path.name for path in output.iterdir() if path.name[0] == "."] == []
    first, second = (torch.load(f / "model.pt", weights_only=True)
                     for f in (tmp_path / "models", trained.ckpt_dir))  # fmt: skip
    different = [n for n in first if n != "described" and not torch.equal(first[n], second[n])]
    assert different == []
