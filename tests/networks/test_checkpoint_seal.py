"""Checkpoints carry a checksum of every byte, and stay what torch.load reads."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from scripts.errors import CheckpointError, StorageError
from scripts.networks.checkpoint import (
    check_earlier_model,
    load_checkpoint,
    load_latest,
    previous_of,
    save_checkpoint,
)

OLD = Path(__file__).resolve().parents[1] / "data" / "before_the_rebuild" / "models" / "model.pt"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    save_checkpoint({"weight": torch.arange(12.0), "epoch": 3}, path)
    return path


def test_any_program_loads_it(saved: Path) -> None:
    for options in ({}, {"mmap": True}):
        result = torch.load(saved, weights_only=True, **options)
        assert torch.equal(result["weight"], torch.arange(12.0))
        assert result["epoch"] == 3
    assert load_checkpoint(saved)["epoch"] == 3


def test_every_flipped_bit_is_refused_with_the_files_name(saved: Path) -> None:
    raw = saved.read_bytes()
    for bit in range(0, 8 * len(raw), 5):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"model\.pt: "):
            load_checkpoint(saved)


def test_every_cut_is_refused(saved: Path) -> None:
    raw = saved.read_bytes()
    for size in range(0, len(raw), 7):
        saved.write_bytes(raw[:size])
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "foreign.pt")
    torch.save({"epoch": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("foreign.pt", "old.pt"):
        assert load_checkpoint(tmp_path / name) == {"epoch": 1}
    assert "described" in load_checkpoint(OLD)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "training.pt"
    assert load_latest(path) is None
    for epoch in (1, 2, 3):
        save_checkpoint({"epoch": epoch}, path, keep_previous=True)
    result = load_latest(path)
    assert result is not None
    assert result["epoch"] == 3
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert load_latest(path) == {"epoch": 2}
    assert str(path) in caplog.text
    path.unlink()  # a kill between the two renames
    assert load_latest(path) == {"epoch": 2}
    path.write_bytes(raw)
    previous_of(path).unlink()
    with pytest.raises(CheckpointError, match=r"training\.pt"):
        load_latest(path)


def test_a_failed_write_leaves_both(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    for epoch in (1, 2):
        save_checkpoint({"epoch": epoch}, path, keep_previous=True)
    with pytest.raises(AttributeError):
        save_checkpoint({"epoch": lambda: 3}, path, keep_previous=True)
    assert load_latest(path) == {"epoch": 2}
    assert load_checkpoint(previous_of(path)) == {"epoch": 1}


def test_only_models_of_this_bundle_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    check_earlier_model(path)
    path.write_bytes(OLD.read_bytes())
    check_earlier_model(path)
    path.write_bytes(OLD.read_bytes()[:-100])  # damaged, and ours
    check_earlier_model(path)
    torch.save({"state_dict": {}}, path)
    for change in (lambda: None, lambda: path.write_text("other"), lambda: path.write_text("")):
        change()
        with pytest.raises(StorageError, match=r"model\.pt: would be replaced"):
            check_earlier_model(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"model\.pt: would be replaced"):
        check_earlier_model(path)
