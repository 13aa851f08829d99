"""The shipped networks as starts: any rotation, any contrast, never worse, no training."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.errors import CohortError
from scripts.registration.affine import AffineRefinement
from scripts.registration.dense_affine import DenseAffine
from scripts.registration.images import WorldImage
from scripts.registration.network_field import NetworkField, pair_network
from scripts.registration.network_start import shipped_start
from scripts.shipped.pairs import PairGenerator
from scripts.shipped.shapes import RandomShapes
from scripts.spatial.affine_parameters import Frame, matrix_of, parameters_of
from scripts.spatial.resampling import resample_by_matrix
from scripts.spatial.warp import warp


def brain(shape=(40, 44, 36)) -> WorldImage:
    """Random shapes in a rough ellipsoid, of 2 mm voxels off the world's origin."""
    rng = np.random.default_rng(5)
    while True:
        shapes = RandomShapes(rng, shape, np.ones(3))
        if float(shapes.clean[0].abs().max()) == 0:  # not cut out of a larger image
            break
    values = shapes.acquired(shapes.clean, rng, np.ones(3))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-30, -50, 10)
    return WorldImage(values[None, None], affine)


def turned(image: WorldImage, degrees: float, family: str = "affine") -> torch.Tensor:
    frame = Frame.of_grid(image.affine, image.shape)
    count = {"affine": 12, "rigid": 6}[family]
    parameters = torch.zeros(1, count, dtype=torch.float64)
    parameters[0, :6] = torch.tensor([0.2, 0.1, np.radians(degrees), 0.1, -0.1, 0.05])
    if family == "affine":
        parameters[0, 6:] = torch.tensor([0.1, -0.08, 0.05, 0.05, -0.05, 0.03])
    return matrix_of(parameters, family, frame)[0]


def moved(image: WorldImage, matrix: torch.Tensor) -> WorldImage:
    values = resample_by_matrix(
        image.values, image.affine, torch.linalg.inv(matrix)[None], image.affine, image.shape
    )
    return WorldImage(values, image.affine)


def distance(found: torch.Tensor, truth: torch.Tensor, image: WorldImage) -> float:
    """R.m.s. mm over the corners of half the volume."""
    frame = Frame.of_grid(image.affine, image.shape)
    signs = torch.tensor(np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, -1))
    points = frame.axes @ (signs * frame.half_width[:, None]) + frame.centre[:, None]
    away = (found - truth)[:3, :3] @ points + (found - truth)[:3, 3:]
    return float(away.square().sum(0).mean().sqrt())


@pytest.mark.parametrize("degrees", [25.0, 80.0, 170.0])
def test_the_affine_network_finds_a_transform_from_any_rotation(degrees: float) -> None:
    image = brain()
    truth = turned(image, degrees)
    result, loss = shipped_start()(image, moved(image, truth))
    assert distance(result, truth, image) < 6.0  # mm; the volume is 80 mm wide
    assert 0 <= loss < 0.35


def test_its_result_is_in_the_transform_model_and_a_start_of_refinement() -> None:
    image = brain((28, 30, 28))
    truth = turned(image, 40.0, "rigid")
    moving = moved(image, truth)
    frame = Frame.of_grid(image.affine, image.shape)
    for family in ("rigid", "rigid_isotropic", "rigid_anisotropic"):
        result, _ = shipped_start(family)(image, moving)
        parameters_of(result[None], family, frame)  # raises if it isn't
    refine = AffineRefinement("rigid", ("network",), levels=(4, 2), iterations=25)
    assert distance(refine(image, moving).matrix, truth, image) < 2.0


def test_fits_to_the_dense_field_remove_half_of_a_small_transform() -> None:
    image = brain((32, 36, 32))
    still = torch.eye(4, dtype=torch.float64)
    frame = Frame.of_grid(image.affine, image.shape)
    values = [0.08, -0.06, 0.1, 0.04, -0.03, 0.02, 0.05, -0.04, 0.03, 0.04, -0.03, 0.02]
    for family, count in (("affine", 12), ("rigid", 6)):
        parameters = torch.tensor([values[:count]], dtype=torch.float64)
        truth = matrix_of(parameters, family, frame)[0]
        result, loss = DenseAffine(pair_network(), family)(image, moved(image, truth), still)
        assert distance(result, truth, image) < 0.6 * distance(still, truth, image)
        assert 0 <= loss < 0.35
        parameters_of(result[None], family, frame)  # raises if it isn't in the model
    same, loss = DenseAffine(pair_network())(image, image, still)
    assert torch.equal(same, still)  # no step improves it
    assert loss == pytest.approx(0, abs=1e-5)


def test_refinement_descends_from_the_network_alone_where_no_other_start_is_named() -> None:
    image = brain((28, 30, 28))
    moving = moved(image, turned(image, 20.0))
    refine = AffineRefinement("affine", ("network",), levels=(4,), iterations=2)
    assert refine(image, moving).levels[0]["candidates"] == 1
    still = torch.eye(4, dtype=torch.float64)
    assert refine(image, moving, still).levels[0]["candidates"] == 2


def test_in_a_plane_the_best_rotation_is_the_start(bumps) -> None:
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:2, 3] = -22.5
    image = bumps(affine, (31, 31))
    frame = Frame.of_grid(affine, (31, 31))
    truth = matrix_of(torch.tensor([[1.6, 0.0, 0.0]], dtype=torch.float64), "rigid", frame)[0]
    result, _ = shipped_start("rigid")(image, moved(image, truth))
    cosine = (truth[:2, :2].T @ result[:2, :2]).trace() / 2
    assert float(cosine) > np.cos(np.radians(25))


def bent(image: WorldImage) -> tuple[WorldImage, torch.Tensor]:
    mesh = torch.meshgrid(*[torch.linspace(0, np.pi, n) for n in image.shape], indexing="ij")
    u = torch.stack([1.8 * torch.sin(mesh[1]), -1.5 * torch.sin(mesh[2]), torch.sin(mesh[0])])
    return WorldImage(warp(image.values, u[None]), image.affine), u[None]


@pytest.mark.parametrize("inverted", [False, True], ids=["same contrast", "inverted"])
def test_the_registration_network_straightens_a_bend_in_any_contrast(inverted: bool) -> None:
    moving = brain()
    fixed, bend = bent(moving)
    if inverted:
        moving = WorldImage(1.2 - moving.values, moving.affine)
    field, result = NetworkField(pair_network())(fixed, moving)
    assert result.matched is inverted
    assert result.loss < result.start_loss
    inside = fixed.values[0, 0] > 0.1
    left = (field.forward - bend)[0].square().sum(0)[inside].mean().sqrt()
    assert float(left) < 0.65 * float(bend[0].square().sum(0)[inside].mean().sqrt())
    back = field.forward + warp(field.inverse, field.forward, padding_mode="border")
    assert float(back[:, :, 5:-5, 5:-5, 5:-5].abs().max()) < 0.3


def test_a_bright_background_is_as_good_as_a_dark_one() -> None:
    """The image continues beyond its edge: zeros would be the brightest tissue of an inverse."""
    pair = PairGenerator(3, ((40, 44, 40),))[7]
    assert pair.kind == "images"
    fixed, moving = (torch.expm1(image) for image in (pair.fixed, pair.moving))
    losses = []
    for shown in (moving, moving.amax() - moving):
        images = (WorldImage(image / image.amax(), np.eye(4)) for image in (shown, fixed))
        result = NetworkField(pair_network()).velocity(*images)
        assert result.loss < 0.7 * result.start_loss
        losses.append(result.loss)
    assert losses[1] == pytest.approx(losses[0], abs=0.03)


def test_a_pair_that_it_would_make_worse_stays_as_it_is() -> None:
    image = brain((28, 32, 28))
    field, result = NetworkField(pair_network())(image, image)
    assert result.loss == result.start_loss
    assert float(field.forward.abs().max()) == 0
    plane = WorldImage(image.values[..., 10], image.affine)
    with pytest.raises(CohortError, match="these images are planes"):
        NetworkField(pair_network())(plane, plane)


# ---------------------------------------------------------------------------------------------
# By the documented commands, in a folder without any training
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    moving = brain((32, 36, 32))
    fixed, _ = bent(moving)
    for name, image in (("fixed", fixed), ("moving", moving)):
        nib.save(
            nib.Nifti1Image(image.values[0, 0].numpy(), image.affine), folder / f"{name}.nii.gz"
        )
    return folder


def run(*words: object) -> int:
    from bundle.cli import main

    return main([str(word) for word in words])


def test_register_elastic_needs_no_training(files: Path, tmp_path: Path) -> None:
    pair = ("--fixed", files / "fixed.nii.gz", "--moving", f"['{files / 'moving.nii.gz'}']")
    where = ("--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models")
    assert run("register-elastic", *pair, *where) == 0
    folder = tmp_path / "out" / "registered_elastic" / "moving"
    fixed, before, after = (
        np.asarray(nib.load(path).dataobj).ravel()
        for path in (
            files / "fixed.nii.gz", files / "moving.nii.gz", folder / "moving_in_fixed.nii.gz"
        )
    )  # fmt: skip
    assert np.corrcoef(fixed, after)[0, 1] > np.corrcoef(fixed, before)[0, 1] + 0.02
    about = json.loads((folder / "registered.json").read_text())
    assert about["displacement_rms_mm"] > 0.5
    assert run("register-elastic", *pair, *where, "--register_elastic#network", "trained") != 0
    # A published field as the start: the second network adds to it.
    start = folder / "moving_forward_field.nii.gz"
    again = ("--register_elastic#elastic_start", start, "--output_dir", tmp_path / "again")
    assert run("register-elastic", *pair, *where[2:], *again) == 0
    second = np.asarray(
        nib.load(
            tmp_path / "again" / "registered_elastic" / "moving" / "moving_in_fixed.nii.gz"
        ).dataobj
    ).ravel()
    assert np.corrcoef(fixed, second)[0, 1] > np.corrcoef(fixed, after)[0, 1] - 0.005


def test_refine_starts_from_a_field_or_the_network(files: Path, tmp_path: Path) -> None:
    pair = (
        "--refine#fixed", files / "fixed.nii.gz", "--refine#moving",
        f"['{files / 'moving.nii.gz'}']", "--refine#mode", "elastic", "--refine#levels", "[4]",
        "--refine#iterations", "3",
    )  # fmt: skip
    losses = {}
    for name, more in (
        ("plain", ()),
        ("network", ("--refine#elastic_start", "network")),
        (
            "field",
            (
                "--refine#elastic_start",
                tmp_path / "network" / "refined" / "{name}" / "{name}_forward_field.nii.gz",
            ),
        ),
    ):
        assert run("refine", *pair, *more, "--output_dir", tmp_path / name) == 0
        about = json.loads((tmp_path / name / "refined" / "moving" / "refined.json").read_text())
        losses[name] = about["steps"]["elastic"]
        assert losses[name]["loss"] <= losses[name]["start_loss"]
    assert losses["network"]["start_loss"] < losses["plain"]["start_loss"]
    # A published result continues where it ended, without the smoothness of the first velocity.
    assert losses["field"]["start_loss"] <= losses["network"]["loss"] + 1e-3


def test_a_start_of_the_elastic_part_needs_an_elastic_part(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(
        "refine", "--refine#fixed", files / "fixed.nii.gz", "--refine#moving",
        f"['{files / 'moving.nii.gz'}']", "--refine#elastic_start", "network", "--output_dir",
        tmp_path,
    ) != 0  # fmt: skip
    assert "elastic_start needs mode elastic or joint" in capsys.readouterr().err
