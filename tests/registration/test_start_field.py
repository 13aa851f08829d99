"""Fields that a velocity starts from: read, composed both ways, never made worse."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import CohortError
from scripts.networks.integration import VelocityIntegration
from scripts.registration.deformable import ElasticRefinement
from scripts.registration.images import ReadImage, WorldImage
from scripts.registration.start_field import StartField, read_start_field, vectors_on_grid
from scripts.spatial.fields import write_field
from scripts.spatial.warp import warp


@pytest.fixture(scope="module")
def bent(bumps, fixed_grid) -> tuple[WorldImage, WorldImage, StartField]:
    """The object, the object bent, and the bend that brings the second to the first."""
    image = bumps(*fixed_grid)
    mesh = torch.meshgrid(*[torch.linspace(0, np.pi, n) for n in image.shape], indexing="ij")
    bend = torch.stack([1.5 * torch.sin(mesh[1]), -1.2 * torch.sin(mesh[0]), 0 * mesh[2]])[None]
    moving = WorldImage(warp(image.values, bend), image.affine)
    back = -bend
    for _ in range(20):
        back = -warp(bend, back, padding_mode="border")
    return image, moving, StartField(back, bend)


def test_a_start_is_kept_where_no_step_is_taken_and_improved_by_some(bent) -> None:
    fixed, moving, field = bent
    still = ElasticRefinement((2,), iterations=1, smoothness_weight=1e6)(fixed, moving, None, field)
    assert torch.allclose(still.displacement, field.forward, atol=1e-3)
    assert torch.allclose(still.inverse, field.inverse, atol=1e-3)
    half = StartField(field.forward / 2, field.inverse / 2)
    refine = ElasticRefinement((2, 1), iterations=20, similarity="correlation")
    result = refine(fixed, moving, None, half)
    assert result.loss < result.start_loss < refine(fixed, moving).start_loss
    away = (result.displacement - field.forward)[:, :2, 4:-4, 4:-4, 3:-3].square().mean()
    assert float(away) < 0.5 * float((field.forward / 2)[:, :2, 4:-4, 4:-4, 3:-3].square().mean())


def test_a_start_whose_velocity_is_known_is_where_the_velocity_begins(bent) -> None:
    """A good one is better after a few steps than none, and what no step improves is kept."""
    fixed, moving, field = bent
    integration = VelocityIntegration(7)
    velocity = field.forward  # about that of its flow, for so smooth a field
    known = StartField(*integration.both(velocity, fixed.shape), velocity)
    refine = ElasticRefinement((2, 1), iterations=8, similarity="correlation")
    result, plain = refine(fixed, moving, None, known), refine(fixed, moving)
    assert result.loss <= result.start_loss < plain.start_loss
    assert result.loss < plain.loss
    left = (result.displacement - field.forward)[:, :2, 4:-4, 4:-4, 3:-3].square().mean()
    assert float(left) < 0.2 * float(field.forward[:, :2, 4:-4, 4:-4, 3:-3].square().mean())
    still = torch.zeros_like(velocity)
    same = refine(fixed, fixed, None, StartField(still, still, still))
    assert same.loss == same.start_loss
    assert float(same.displacement.abs().max()) == 0


def test_composed_directions_are_inverse_to_each_other(bent) -> None:
    fixed, _, field = bent
    shift = torch.zeros_like(field.forward)
    shift[:, 0], shift[:, 1] = 0.8, -0.5
    forward, inverse = field.after(shift), field.inverse_before(-shift)
    there = forward + warp(inverse, forward, padding_mode="border")
    assert float(there[:, :, 4:-4, 4:-4, 4:-4].abs().max()) < 0.1
    same = vectors_on_grid(field.forward, fixed, fixed)
    assert torch.allclose(same, field.forward, atol=1e-5)


def written(folder: Path, fixed: WorldImage) -> ReadImage:
    path = folder / "fixed.nii.gz"
    nib.save(nib.Nifti1Image(fixed.values[0, 0].numpy(), fixed.affine), path)
    return ReadImage(path)


def test_a_written_field_is_read_as_it_was_on_any_grid(bent, tmp_path: Path) -> None:
    fixed, _, field = bent
    read = written(tmp_path, fixed)
    write_field(tmp_path / "field.nii.gz", field.forward[0].numpy(), read.grid)
    again = read_start_field(tmp_path / "field.nii.gz", "displacement", read)
    assert torch.allclose(again.forward, field.forward, atol=1e-4)
    inner = (again.inverse - field.inverse)[:, :, 4:-4, 4:-4, 4:-4]
    assert float(inner.abs().max()) < 0.1


def test_vectors_of_a_velocity_are_its_flow(bent, tmp_path: Path) -> None:
    fixed, _, _ = bent
    read = written(tmp_path, fixed)
    still = np.zeros((3, *fixed.shape), np.float32)
    still[0] = 1.5  # a constant velocity moves by itself
    write_field(tmp_path / "v.nii.gz", still, read.grid)
    result = read_start_field(tmp_path / "v.nii.gz", "velocity", read)
    assert result.velocity is not None
    assert torch.allclose(result.velocity[:, 0], torch.tensor(1.5), atol=1e-4)
    assert torch.allclose(result.forward[:, 0], torch.tensor(1.5), atol=1e-4)
    assert torch.allclose(result.inverse[:, 0], torch.tensor(-1.5), atol=1e-4)


def test_files_that_are_no_field_or_lie_elsewhere_are_refused(bent, tmp_path: Path) -> None:
    fixed, _, field = bent
    read = written(tmp_path, fixed)
    (tmp_path / "a.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(CohortError, match="no displacement field"):
        read_start_field(tmp_path / "a.txt", "displacement", read)
    with pytest.raises(CohortError, match="must have shape"):
        read_start_field(tmp_path / "fixed.nii.gz", "displacement", read)
    far = fixed.affine.copy()
    far[:3, 3] += 1000
    write_field(tmp_path / "far.nii.gz", field.forward[0].numpy(), read.grid)
    image = nib.load(tmp_path / "far.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), far), tmp_path / "far.nii.gz")
    with pytest.raises(CohortError, match="no point of"):
        read_start_field(tmp_path / "far.nii.gz", "displacement", read)


def test_a_mask_of_most_of_an_image_may_be_inverted(bent, tmp_path: Path, caplog) -> None:
    fixed, _, _ = bent
    written(tmp_path, fixed)
    mask = np.zeros(fixed.shape, np.uint8)
    mask[tuple(np.array(fixed.shape) // 2)] = 1
    for values in (mask, 1 - mask):
        nib.save(nib.Nifti1Image(values, fixed.affine), tmp_path / "mask.nii.gz")
        assert "inverted" not in caplog.text
        ReadImage(tmp_path / "fixed.nii.gz", mask=tmp_path / "mask.nii.gz")
    assert "is the mask inverted?" in caplog.text


def test_a_mask_of_fractions_is_refused(bent, tmp_path: Path) -> None:
    fixed, _, _ = bent
    written(tmp_path, fixed)
    half = np.zeros(fixed.shape, np.float32)
    half[3:6, 3:6, 3:6] = 0.5
    nib.save(nib.Nifti1Image(half, fixed.affine), tmp_path / "mask.nii.gz")
    with pytest.raises(CohortError, match=r"mask.nii.gz: contains the value 0.5; .* whole numbers"):
        ReadImage(tmp_path / "fixed.nii.gz", mask=tmp_path / "mask.nii.gz")
