"""Training in this process, and what it published, read without the bundle's readers."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow
from scipy import ndimage

from scripts.settings.atlas import BASELINE_MAPS
from scripts.spatial.fields import field_names

ROOT = Path(__file__).resolve().parents[2]
COUNTS = "tractography/probtrackx2/whole_brain/warped_streamlines/fdt_paths.nii.gz"
SUBJECTS = [f"sub-{number:02d}" for number in range(1, 6)]
DIRECTIONS = ("from-subject_to-template", "from-template_to-subject")

# For what needs no command line: one process, one epoch, a small network.
QUICK: dict[str, Any] = {
    "learned_atlas#device": "cpu",
    "learned_atlas#dtype": "float32",
    "learned_atlas#model#enc_features": [4, 8],
    "learned_atlas#model#dec_features": [8, 8, 4],
    "learned_atlas#optimizer#epochs": 1,
    "learned_atlas#refine#rounds": 1,
    "learned_atlas#refine#iterations": 1,
    "learned_atlas#refine#network_epochs": 1,
}


def volume(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def density(dataset_dir: Path, subject: str) -> np.ndarray:
    """A subject's normalised density, straight from its files."""
    counts = dataset_dir / subject / COUNTS
    return volume(counts) / float((counts.parent / "waytotal").read_text())


def voxel_field(path: Path) -> np.ndarray:
    """A field file's displacement in voxels, (3, X, Y, Z)."""
    image = nib.load(path)
    lps = np.asarray(image.dataobj, dtype=np.float64)[:, :, :, 0]
    ras = lps * (-1, -1, 1)
    return np.moveaxis(ras @ np.linalg.inv(image.affine[:3, :3]).T, -1, 0)


def resampled(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """image(x + u(x)), linear, 0 outside."""
    points = np.indices(image.shape) + displacement
    return ndimage.map_coordinates(image, points, order=1, mode="grid-constant", cval=0)


def resampled_by(moving: np.ndarray, field: Path) -> np.ndarray:
    """ITK's result with a field file: each point moves by its displacement; 0 outside."""
    points = np.indices(moving.shape) + voxel_field(field)
    return ndimage.map_coordinates(moving, points, order=1)


def round_trip(fields: Path, subject: str) -> float:
    """What is left of the moves, root mean square, after going there and back."""
    forward, backward = (voxel_field(fields / name) for name in field_names(subject))
    again = np.stack([resampled(axis, forward) for axis in backward]) + forward
    inside = (slice(None), *[slice(4, -4)] * 3)  # where no point leaves the volume
    assert np.abs(forward[inside]).max() > 0.1
    return float(np.sqrt(np.mean(again[inside] ** 2) / np.mean(forward[inside] ** 2)))


def unpacked(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by name, compressed ones as what they hold."""
    return {
        str(path.relative_to(folder)): gzip.decompress(path.read_bytes())
        if path.suffix == ".gz"
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_atlas(one: Path, other: Path) -> None:
    """Maps, fields and Jacobians bit by bit; descriptions but for when they were written."""
    ours, theirs = unpacked(one), unpacked(other)
    descriptions, afresh = [], []
    for files in (ours, theirs):
        described = json.loads(files.pop("atlas.json"))
        created = described.pop("created").encode()
        del described["description_sha256"], described["files"]["quality.html"]
        afresh.append(not described["settings"].pop("resume"))
        files["quality.html"] = files["quality.html"].replace(created, b"")
        descriptions.append(described)
    assert ours.keys() == theirs.keys()
    if any(afresh):  # the page shows that setting
        del ours["quality.html"], theirs["quality.html"]
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert descriptions[0] == descriptions[1]


def assert_complete(
    atlas: Path, shape: tuple[int, ...], subjects: Iterable[str], templates: int = 1
) -> None:
    """Five sound maps a template, two fields a subject, and no fold."""
    for number in range(templates):
        folder = atlas / f"template-{number + 1}" if templates > 1 else atlas
        for name in BASELINE_MAPS:
            values = volume(folder / f"atlas_{name}.nii.gz")
            assert values.shape == shape
            assert np.isfinite(values).all()
            assert values.min() >= 0 < values.max()
    jacobian = json.loads((atlas / "jacobian.json").read_text())
    assert list(jacobian) == list(subjects)
    for subject in subjects:
        for name in field_names(subject):
            assert np.isfinite(volume(atlas / "fields" / name)).all()
        assert all(jacobian[subject][way]["corner_min"] > 0 for way in DIRECTIONS)


def assert_one_error(result: subprocess.CompletedProcess[str], status: int) -> str:
    """The message of a command that ended with one message and no traceback."""
    both = result.stdout + result.stderr
    assert result.returncode == status, both
    assert "Traceback" not in both
    assert " ERROR " not in both
    lines = result.stderr.splitlines()
    (start,) = (index for index, line in enumerate(lines) if line.startswith("error: "))
    return "\n".join(lines[start:])


def workflow(
    dataset_dir: Path, base: Path, settings: Mapping[str, Any] = QUICK, **overrides: Any
) -> ConfigWorkflow:
    """configs/train.yaml over a dataset, writing below ``base``."""
    values: dict[str, Any] = {
        "bundle_root": str(ROOT),
        "dataset_dir": str(dataset_dir),
        "output_dir": str(base / "output"),
        "ckpt_dir": str(base / "models"),
        **settings,
        **{key: str(one) if isinstance(one, Path) else one for key, one in overrides.items()},
    }
    config = str(ROOT / "configs" / "train.yaml")
    made = ConfigWorkflow(config_file=config, logging_file=False, workflow_type="train", **values)
    made.initialize()
    return made


def published(
    dataset_dir: Path, base: Path, settings: Mapping[str, Any] = QUICK, **overrides: Any
) -> Path:
    """The atlas of such a run."""
    workflow(dataset_dir, base, settings, **overrides).run()
    return base / "output" / "learned_atlas"
