"""What the refinement of pairs says about starts and results that can't be right."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.errors import FoldingError
from scripts.registration.refine_pairs import PairRefiner
from scripts.settings.refine import load_refine
from scripts.spatial.fields import write_field
from scripts.spatial.volumes import read_grid

SHAPE = (14, 12, 13)
CENTRED = np.eye(4)
CENTRED[:3, 3] = -(np.array(SHAPE) - 1) / 2


def image(path: Path, affine: np.ndarray = CENTRED, shift: float = 0.0) -> str:
    place = np.indices(SHAPE) + CENTRED[:3, 3].reshape(3, 1, 1, 1)
    place[0] -= shift
    bright = np.exp(-(place**2).sum(0) / 8) + (place[1] > 2) * np.exp(-np.abs(place).sum(0) / 3)
    nib.save(nib.Nifti1Image(bright.astype(np.float32), affine), path)
    return str(path)


def refine(folder: Path, moving: str, **changes: object) -> None:
    settings = load_refine({
        "fixed": image(folder / "fixed.nii.gz"), "moving": [moving], "levels": [1],
        "iterations": 2, **changes,
    })  # fmt: skip
    PairRefiner(settings, folder / "out").run()


def test_a_start_that_folds_is_named_and_not_the_weight_of_smoothness(tmp_path: Path) -> None:
    moving = image(tmp_path / "moving.nii.gz", shift=1)
    field = np.zeros((3, *SHAPE), np.float32)
    field[0, 5:] = -3  # a jump, as where a field's grid ends within the image
    write_field(tmp_path / "jump.nii.gz", field, read_grid(moving))
    start = str(tmp_path / "jump.nii.gz")
    with pytest.raises(FoldingError, match=r"its start refine#elastic_start = .* folds already"):
        refine(tmp_path, moving, mode="elastic", elastic_start=start)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_images_without_anything_in_common_are_reported(tmp_path: Path, caplog) -> None:
    refine(tmp_path, image(tmp_path / "alike.nii.gz", shift=1))
    assert "nothing in common" not in caplog.text
    tiny = np.diag([1e-3, 1e-3, 1e-3, 1]) @ CENTRED  # metres taken for millimetres
    refine(tmp_path, image(tmp_path / "tiny.nii.gz", tiny), starts=["identity"])
    assert "tiny.nii.gz: has nothing in common with" in caplog.text
