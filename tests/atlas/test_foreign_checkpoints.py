"""Checkpoints of other runs, each refused for its own reason; caches that don't fit."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.atlas import resources as space
from scripts.atlas.building import build_network
from scripts.atlas.resources import cache_bytes, check_cache, registration_bytes
from scripts.cohort import Cohort
from scripts.engines.run_state import RunState
from scripts.errors import CheckpointError, ConfigurationError
from scripts.networks.checkpoint import load_checkpoint, load_weights
from scripts.settings.atlas import LearnedAtlasConfig


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"n_templates": 2}}, "2 templates"),
        ({"channels": 2}, "2 channels"),
        ({"shape": (14, 12, 15)}, "grid of 12 x 10 x 13 voxels, this run's box has 12 x 10 x 11"),
        ({"model": {"enc_features": [8, 4]}}, "network with other settings"),
    ],
)
def test_weights_of_another_network(
    change: dict[str, Any],
    reason: str,
    tmp_path: Path,
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
) -> None:
    own = build_network(make_cohort(), make_settings())
    before = {name: value.clone() for name, value in own.state_dict().items()}
    state = dict(before)
    model = dict(change.get("model", {}))
    if "n_templates" in model:
        state["template"] = state["template"].repeat(2, 1, 1, 1, 1)
    elif "channels" in change:
        state["template"] = state["template"].repeat(1, 2, 1, 1, 1)
    elif "shape" in change:
        state["template"] = torch.zeros(1, 1, 12, 10, 13)
    else:
        state = build_network(make_cohort(), make_settings(model=model)).state_dict()
    path = tmp_path / "training.pt"
    with pytest.raises(CheckpointError) as caught:
        load_weights(own, {"network": state}, path)
    assert reason in str(caught.value) and str(path) in str(caught.value)
    # Refused before anything is taken over, but for torch's own part of a network of equal size.
    if "enc_features" not in model:
        assert all(torch.equal(before[n], v) for n, v in own.state_dict().items())


@pytest.mark.parametrize("found", [{}, {"network": 1}, {"network": {"template": "x"}}])
def test_no_weights_at_all(
    found: dict[str, Any],
    tmp_path: Path,
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
) -> None:
    own = build_network(make_cohort(), make_settings())
    with pytest.raises(CheckpointError, match="contains no weights"):
        load_weights(own, found, tmp_path / "training.pt")


@pytest.mark.parametrize(
    "text", ["[]", "3", "{", '{"signature": 1, "finished": false}', "\x00", "[" * 100_000]
)
def test_a_run_state_that_makes_no_sense(
    text: str,
    tmp_path: Path,
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    try:
        RunState(tmp_path / "run", make_settings(), make_cohort())
    except CheckpointError as error:
        assert "delete" in str(error)


def test_an_unknown_format_is_reported(
    tmp_path: Path,
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
) -> None:
    RunState(tmp_path / "run", make_settings(), make_cohort())
    file = tmp_path / "run" / "run.json"
    run = json.loads(file.read_text())
    run["signature"]["format"] = 77
    del run["checksum"]  # another version may make it otherwise, or not at all
    file.write_text(json.dumps(run))
    (tmp_path / "run" / "training.pt").touch()  # a run that saved nothing gives way
    with pytest.raises(CheckpointError, match="format 77, this version reads 1"):
        RunState(tmp_path / "run", make_settings(), make_cohort())


@pytest.mark.parametrize("cache", ["ram", "device"])
def test_a_cache_that_does_not_fit_is_refused_with_the_arithmetic(
    cache: str,
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort, settings = make_cohort(), make_settings(cohort={"cache": cache})
    needed = 4 * 12 * 10 * 11 * 4
    assert cache_bytes(cohort, settings) == needed
    monkeypatch.setattr(space, "available_memory", lambda: 3 * needed - 1)
    check_cache(cohort, settings, processes=2)
    with pytest.raises(ConfigurationError) as caught:
        check_cache(cohort, settings, processes=3)
    for part in ("4 subjects x 1 channels x 1320 voxels x 4 bytes x 3 processes", "disk"):
        assert part in str(caught.value)
    check_cache(cohort, make_settings(cohort={"cache": "disk"}), processes=3)


def test_the_formula_of_registering(
    make_cohort: Callable[..., Cohort], make_settings: Callable[..., LearnedAtlasConfig]
) -> None:
    crop = make_cohort().crop
    floats = 7 * 12 * 10 * 11 * 4
    assert registration_bytes(7, crop, make_settings()) == {
        "fields": 6 * floats, "maps": 2 * floats,
    }  # fmt: skip
    assert registration_bytes(7, crop, make_settings(save_fields=False))["fields"] == 0


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    """Torch would unpack 200 kB to 200 MB, and does not write such files."""
    written = io.BytesIO()
    torch.save({"x": torch.zeros(5_000_000)}, written)
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(written) as plain, zipfile.ZipFile(path, "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 50_000
    with pytest.raises(CheckpointError, match="are compressed"):
        load_checkpoint(path)
    path.write_bytes(written.getvalue())
    assert len(load_checkpoint(path)["x"]) == 5_000_000


def test_a_pipe_in_the_place_of_a_checkpoint_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nothing.pt")
