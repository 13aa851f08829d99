"""What a run needs on disk, against what it really writes; and disks that are too small."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.atlas import components
from scripts.atlas.building import build_network
from scripts.atlas.components import open_cohort
from scripts.atlas.resources import checkpoint_bytes, output_bytes
from scripts.cohort import Cohort
from scripts.errors import StorageError
from scripts.runtime.storage import check_space, write_whole
from scripts.settings.atlas import LearnedAtlasConfig


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow above 100 kB, as with a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(
    "changes",
    [{}, {"model": {"field_resolution": 1}}, {"model": {"enc_features": [8, 16, 24]}}],
)
def test_the_weights_are_not_underrated(
    changes: dict[str, Any],
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
) -> None:
    cohort, settings = make_cohort(), make_settings(**changes)
    state = build_network(cohort, settings).state_dict()
    real = sum(x.numel() * x.element_size() for k, x in state.items() if k != "described")
    assumed = checkpoint_bytes(cohort, settings)["checkpoints"] / 12
    assert real <= assumed < 4 * real


def test_the_formula(
    make_cohort: Callable[..., Cohort], make_settings: Callable[..., LearnedAtlasConfig]
) -> None:
    cohort = make_cohort()  # 4 subjects, box 12 x 10 x 11, reduced 6 x 5 x 6
    settings = make_settings(refine={"rounds": 3})
    assert output_bytes(cohort, settings)["fields"] == 4 * 2 * 3 * 12 * 10 * 11 * 4
    assert output_bytes(cohort, settings)["maps"] == 5 * 12 * 10 * 11 * 4
    result = checkpoint_bytes(cohort, settings)
    assert result["velocities"] == 2 * 4 * 3 * 6 * 5 * 6 * 4
    assert result["cache"] == 0
    without = make_settings(save_fields=False, cohort={"cache": "disk"}, refine={"rounds": 0})
    assert output_bytes(cohort, without)["fields"] == 0
    assert checkpoint_bytes(cohort, without)["velocities"] == 0
    assert checkpoint_bytes(cohort, without)["cache"] == 4 * 12 * 10 * 11 * 4


def test_too_little_room_is_reported_with_the_arithmetic(
    tmp_path: Path, disk: Callable[[int], None]
) -> None:
    disk(1_000_000_000)
    needs = {
        tmp_path / "out" / "a": {"fields": 700_000_000, "maps": 0},
        tmp_path / "models": {"velocities": 400_000_000},
    }
    with pytest.raises(StorageError) as refused:
        check_space(needs)  # one file system: either alone would fit
    assert str(refused.value) == (
        f"{tmp_path}/out/a and {tmp_path}/models: up to 1.1 GB are needed "
        "(fields 700.0 MB + velocities 400.0 MB), 1.0 GB are free"
    )
    disk(1_100_000_000)
    check_space(needs)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_refused_before_it_begins_and_leaves_nothing(
    tmp_path: Path,
    disk: Callable[[int], None],
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort, settings = make_cohort(), make_settings()
    monkeypatch.setattr(components, "read_cohort", lambda *_, **_more: cohort)
    written = (tmp_path / "out", tmp_path / "models")
    disk(4_000_000)
    with pytest.raises(StorageError, match=r"up to \d\.\d MB are needed \(fields 0\.1 MB \+ maps"):
        open_cohort(tmp_path, settings, written)
    assert not any(folder.exists() for folder in written)
    # What an unfinished run has written already needn't be free.
    needed = sum(output_bytes(cohort, settings).values())
    disk(needed + 1000)
    with pytest.raises(StorageError):
        open_cohort(tmp_path, settings, written)
    (tmp_path / "models" / "run_state").mkdir(parents=True)
    kept = checkpoint_bytes(cohort, settings)["checkpoints"]
    (tmp_path / "models" / "run_state" / "training.pt").write_bytes(bytes(kept))
    (tmp_path / "models" / "run_state" / "run.json").write_text('{"cleared": true}')
    disk(needed + checkpoint_bytes(cohort, settings)["velocities"])
    open_cohort(tmp_path, settings, written)


@pytest.mark.usefixtures("small_files")
def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"earlier")
    with pytest.raises(StorageError, match=r"model\.pt: can't be written.* are free"):  # noqa: SIM117
        with write_whole(path) as staged:
            torch.save({"x": torch.zeros(100_000)}, staged)
    assert path.read_bytes() == b"earlier"
    assert [one.name for one in tmp_path.iterdir()] == ["model.pt"]


def test_other_runtime_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a defect"), write_whole(tmp_path / "x"):
        raise RuntimeError("a defect")
