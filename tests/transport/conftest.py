"""Small bundles with a known answer, as arrays and as files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scripts.tractograms import Streamlines, write_tractogram

SHAPE, AFFINE = (20, 24, 18), np.diag([10.0, 10.0, 10.0, 1.0])
AFFINE[:3, 3] = (-95, -115, -85)


def make_bundles(
    per_bundle: int, bundles: int = 5, seed: int = 0, noise: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Fibres ``(n, 15, 3)`` of bundles at least 30 mm apart, half of them reversed, and classes."""
    rng = np.random.default_rng(seed)
    along = np.linspace(-1, 1, 15)
    classes = np.repeat(np.arange(bundles), per_bundle)
    centre = np.stack([30 * along, 12 * along**2, np.zeros(15)], 1)
    fibres = np.repeat(centre[None], len(classes), 0)
    fibres[..., 2] += 30.0 * (classes - bundles / 2)[:, None]
    fibres += rng.normal(0, noise, (len(classes), 1, 3)) + rng.normal(0, 0.3, fibres.shape)
    turned = rng.random(len(classes)) < 0.5
    fibres[turned] = fibres[turned, ::-1]
    return fibres.astype(np.float32), classes


@dataclass(frozen=True)
class Case:
    """Files of an atlas and of a subject.

    Attributes:
        atlas: TRK with the classes 3, 5, 8, ... as ``label``.
        subject: TRK, 12 fibres of each class and then 6 outliers.
        truth: class numbers of the subject's fibres, -1 for outliers.
    """

    atlas: Path
    subject: Path
    truth: np.ndarray


@pytest.fixture
def bundles() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`make_bundles`."""
    return make_bundles


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An atlas whose class numbers have gaps and whose sampling is another; read only."""
    folder = tmp_path_factory.mktemp("transfer")
    ids = np.array([3, 5, 8, 13, 21])
    atlas, classes = make_bundles(20, seed=1)
    lines = Streamlines.of(list(atlas[:, ::2]))
    lines = lines.with_data(label=ids[classes].astype(np.float32))
    write_tractogram(folder / "atlas.trk", lines, SHAPE, AFFINE)
    subject, truth = make_bundles(12, seed=2)
    far = np.random.default_rng(3).uniform(-1, 1, (6, 15, 3))
    far[..., 1] += 100
    far[..., 2] += np.linspace(0, 40, 15)
    write_tractogram(
        folder / "subject.trk", Streamlines.of([*subject, *far.astype(np.float32)]), SHAPE, AFFINE
    )
    return Case(
        folder / "atlas.trk", folder / "subject.trk", np.concatenate([ids[truth], np.full(6, -1)])
    )
