"""The functions for a notebook: their examples, and what they refuse."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts import api
from scripts.errors import ConfigurationError, TractAtlasError

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [name for name in api.__all__ if name[0].islower()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples write; `register` reads what `learn_atlas` wrote."""
    return tmp_path_factory.mktemp("a path with $ and @output_dir")


def run_example(name: str, folder: Path) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(api, name), name, module=api, extraglobs={"folder": folder}
    )
    assert example.examples
    report: list[str] = []
    failures = doctest.DocTestRunner().run(example, out=report.append).failed
    assert failures == 0, "".join(report)


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    """The folder after the example of `learn_atlas`."""
    run_example("learn_atlas", folder)
    return folder


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "learn_atlas"])
def test_example(name: str, learned: Path):
    run_example(name, learned)


def test_import_is_light():
    program = (
        "import sys, scripts.api; print([m for m in ('torch', 'monai', 'scipy', 'nibabel') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_deformation_brings_moving_to_fixed():
    x = np.linspace(-1, 1, 24)
    across = np.diag([2.0, 2.0, -2.0, 1.0])  # an axis that runs the other way
    fixed = np.exp(-8 * (x[:, None, None] ** 2 + x[:, None] ** 2 + 2 * x**2))
    moving = np.exp(-8 * ((1.2 * x[:, None, None] + 0.1) ** 2 + x[:, None] ** 2 + 2 * x**2))
    no_symmetry = (1.5 + x[:, None, None]) * (1.5 + x[:, None]) * (1.5 + x)
    fixed, moving = fixed * no_symmetry, moving * no_symmetry
    matrix = api.affine_registration(
        fixed, moving, across, across, settings={"family": "rigid", "levels": [2, 1]}
    )
    correlation = {"similarity": "correlation", "levels": [2, 1]}
    result = api.deformable_registration(
        fixed, moving, across, across, start=matrix, settings=correlation
    )

    def likeness(image: np.ndarray) -> float:  # correlation leaves the gain free
        return float(np.corrcoef(image.ravel(), fixed.ravel())[0, 1])

    assert likeness(moving) < 0.95
    assert likeness(api.warp(moving, fixed, [matrix], across, across)) < 0.993
    assert likeness(api.warp(moving, fixed, [result], across, across)) > 0.999


def test_arrays_need_an_affine(tmp_path: Path):
    image = np.random.default_rng(0).random((6, 6, 6))
    with pytest.raises(ValueError, match=r"affine of image = None: must be \(4, 4\)"):
        api.warp(image, image, [])
    with pytest.raises(ValueError, match="affine"):
        api.average([image] * 5, tmp_path)


def test_user_errors_come_unwrapped_and_the_hook_stays(tmp_path: Path):
    hook = sys.excepthook
    with pytest.raises(ConfigurationError, match=r"learned_atlas.optimizer.epochs"):
        api.learn_atlas(
            [np.ones((4, 4, 4))] * 5, tmp_path, np.eye(4), settings={"optimizer": {"epochs": -1}}
        )
    with pytest.raises(TractAtlasError):
        api.average(tmp_path / "nothing", tmp_path / "out")
    assert sys.excepthook is hook


def test_a_text_like_an_expression_is_no_expression(tmp_path: Path):
    ran = tmp_path / "ran"
    with pytest.raises(TractAtlasError):
        api.average(f"$open({str(ran)!r}, 'w')", tmp_path / "out")
    assert not ran.exists()


def test_labels_must_fit_the_atlas():
    line = np.array([[0.0, 0, 0], [9, 0, 0]])
    with pytest.raises(ValueError, match="whole number"):
        api.transfer_labels([line], [line], np.array([1, 2]))
    with pytest.raises(ValueError, match="labels = None"):
        api.transfer_labels([line], [line])


def test_weights_must_fit_the_streamlines():
    line = np.array([[0.0, 0, 0], [3, 0, 0]])
    result = api.density_map([line, line], (4, 1, 1), np.eye(4), weights=np.array([1, 2.5]))
    assert result.max() == 3.5
    with pytest.raises(ValueError, match="one for each of 2"):
        api.density_map([line, line], (4, 1, 1), np.eye(4), weights=np.ones(3))
