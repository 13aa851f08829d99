"""A folder of maps and nothing else: how it is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from scripts.cohort import Candidate, Inspection, inspect_subject
from scripts.cohort import first_look as look_module
from scripts.cohort.first_look import first_look
from scripts.cohort.usual_densities import FAINT
from scripts.errors import CohortError, ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.atlas_model import LearnedAtlasModelConfig
from scripts.settings.cohort import CohortRequest

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (6, 7, 8)


@pytest.fixture
def request_of_all() -> CohortRequest:
    return LearnedAtlasConfig.load({}).cohort_request()


def write_map(path: Path, high: float = 40.0, seed: int = 0) -> np.ndarray:
    """A map whose few voxels of density are known."""
    density = np.zeros(SHAPE)
    drawn = np.random.default_rng(seed).lognormal(0, 1, (3, 3, 3))
    density[1:4, 2:5, 3:6] = drawn / drawn.max() * high
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(density.astype(np.float32), np.eye(4)), path)
    return density.astype(np.float32).astype(float)


def write_image(path: Path, seed: int) -> None:
    """A head as T1 shows it: tissue of about the same brightness, and faint noise around it."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 20, SHAPE)
    image[1:5, 1:6, 1:7] = rng.uniform(300, 900, (4, 5, 6))
    nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.eye(4)), path)


def found(root: Path, request: CohortRequest, given: tuple[str, ...] = ()) -> dict[str, object]:
    return {guess.name: guess.value for guess in first_look(root, request, given)}


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("probtrackx2", "{}/tractography/probtrackx2/all/warped_streamlines/fdt_paths.nii.gz"),
        ("mrtrix3", "{}/tractography/mrtrix3/all/warped_streamlines/tdi.nii.gz"),
        ("xtract", "{}/tracts/cst_l/density.nii.gz"),
        ("tractseg", "{}/tractseg_output/bundle_segmentations/CST.nii.gz"),
        ("bids", "{}/ses-1/dwi/x_tdi.nii.gz"),
        ("flat", "{}.nii.gz"),
    ],
)
def test_the_layout_is_recognised(
    tmp_path: Path, request_of_all: CohortRequest, layout: str, path: str
) -> None:
    for seed, name in enumerate(("p1", "p2", "p3")):
        write_map(tmp_path / path.format(name), seed=seed)
    # A picture beside the subjects' folders must not turn them into a flat folder.
    write_map(tmp_path / "mean.nii.gz")
    expected = {"layout": layout}
    assert expected.items() <= found(tmp_path, request_of_all).items()


@pytest.mark.parametrize(("high", "how"), [(1.0, "none"), (40.0, "streamline_density")])
def test_each_map_is_read_once(
    high: float, how: str, tmp_path: Path, request_of_all: CohortRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("p1", "p2", "p3"):
        write_map(tmp_path / f"{name}.nii.gz", high=high)
    read: list[str] = []

    def counted(candidate: Candidate, *rest: Any) -> Inspection:
        read.append(candidate.name)
        return inspect_subject(candidate, *rest)

    monkeypatch.setattr(look_module, "inspect_subject", counted)
    guesses = found(tmp_path, request_of_all)
    assert guesses["normalisation"] == how
    assert sorted(read) == ["p1", "p2", "p3"]
    read.clear()
    given = replace(
        request_of_all,
        cohort=request_of_all.cohort.model_copy(update={"normalisation": how}),
    )
    alone = found(tmp_path, given, ("normalisation",))
    assert alone["log_offset"] == guesses["log_offset"]


def test_densities_are_a_tenth_of_what_a_streamline_meets(
    tmp_path: Path, request_of_all: CohortRequest
) -> None:
    density = write_map(tmp_path / "p1.nii.gz", high=1.0)
    guesses = found(tmp_path, request_of_all)
    assert guesses["normalisation"] == "none"
    expected = FAINT * (density**2).sum() / density.sum()
    assert guesses["log_offset"] == guesses["presence_value"]
    assert expected / 1.6 < guesses["log_offset"] < expected * 1.6  # type: ignore[operator]


def test_images_are_hardly_compressed(tmp_path: Path, request_of_all: CohortRequest) -> None:
    for seed, name in enumerate(("p1", "p2", "p3")):
        write_image(tmp_path / f"{name}.nii.gz", seed)
    guesses = found(tmp_path, request_of_all)
    assert guesses["normalisation"] == "max"
    # About .7 of the largest value is what the tissue has on average.
    assert guesses["log_offset"] in (1.0, 2.0)
    assert guesses["presence_value"] in (0.05, 0.1)


def test_deformations_of_images_are_less_smooth(
    tmp_path: Path, request_of_all: CohortRequest
) -> None:
    for seed, name in enumerate(("p1", "p2", "p3")):
        write_image(tmp_path / f"{name}.nii.gz", seed)
    densities = ("log_offset", "presence_value")
    guesses = found(tmp_path, request_of_all, densities)
    usual = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text())["learned_atlas"]["loss"]
    smoothness = {"velocity_smoothing", "smoothness_weight"}
    assert guesses.keys() == {"layout", "normalisation"} | smoothness
    assert 0 < guesses["velocity_smoothing"] < LearnedAtlasModelConfig().velocity_smoothing  # type: ignore[operator]
    assert 0 < guesses["smoothness_weight"] < usual["smoothness_weight"]  # type: ignore[operator]
    guesses = found(tmp_path, request_of_all, (*densities, *smoothness))
    assert guesses.keys() == {"layout", "normalisation"}


def test_deformations_of_densities_stay_as_smooth_as_usual(
    tmp_path: Path, request_of_all: CohortRequest
) -> None:
    write_map(tmp_path / "p1.nii.gz")
    assert not {"velocity_smoothing", "smoothness_weight"} & set(found(tmp_path, request_of_all))


def test_a_mask_is_no_image(tmp_path: Path, request_of_all: CohortRequest) -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[1:4, 2:5, 3:6] = 1
    for name in ("p1", "p2", "p3"):
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / f"{name}.nii.gz")
    guesses = found(tmp_path, request_of_all)
    assert (guesses["normalisation"], guesses["log_offset"]) == ("none", FAINT)


def test_a_unit_is_no_matter(tmp_path: Path, request_of_all: CohortRequest) -> None:
    """Maps of counts and the same divided by a thousand differ in the densities alone."""
    offsets = []
    for folder, high in (("counts", 40.0), ("parts", 0.04)):
        write_map(tmp_path / folder / "p1.nii.gz", high=high)
        given = ("normalisation",)  # streamline_density below
        request = replace(
            request_of_all,
            cohort=request_of_all.cohort.model_copy(update={"normalisation": "none"}),
        )
        offsets.append(found(tmp_path / folder, request, given)["log_offset"])
    assert offsets[0] == pytest.approx(1000 * offsets[1])  # type: ignore[operator]


def test_the_normalisation_follows_from_the_files(
    tmp_path: Path, request_of_all: CohortRequest
) -> None:
    write_map(tmp_path / "p1" / "fdt_paths.nii.gz")
    assert found(tmp_path, request_of_all)["normalisation"] == "streamline_density"
    (tmp_path / "p1" / "waytotal").write_text("1000\n")
    assert found(tmp_path, request_of_all)["normalisation"] == "waytotal"
    write_map(tmp_path / "p2" / "fdt_paths.nii.gz")  # has none
    assert found(tmp_path, request_of_all)["normalisation"] == "streamline_density"


def test_what_is_given_stays(tmp_path: Path, request_of_all: CohortRequest) -> None:
    write_map(tmp_path / "p1.nii.gz")
    search = replace(request_of_all.search, layout="flat")
    request = replace(request_of_all, search=search)
    every = ("layout", "normalisation", "log_offset", "presence_value")
    cohort = request.cohort.model_copy(update={"normalisation": "max"})
    request = replace(request, cohort=cohort)
    assert found(tmp_path, request, every) == {}
    assert set(found(tmp_path, request, every[:3])) == {"presence_value"}


def test_an_image_that_all_folders_have(tmp_path: Path, request_of_all: CohortRequest) -> None:
    for name in ("s_1", "s_2"):
        write_map(tmp_path / name / "maps" / f"{name}_tdi.nii.gz")
        write_map(tmp_path / name / "t1.nii.gz")
    (tmp_path / "output").mkdir()
    with pytest.raises(CohortError, match=r"no known layout|no image in common"):
        found(tmp_path, request_of_all)  # 2 of 3 folders are too few
    (tmp_path / "output").rmdir()
    assert found(tmp_path, request_of_all)["pattern"] == "{subject}/maps/{subject}_tdi.nii.gz"


def test_several_images_are_asked_about(tmp_path: Path, request_of_all: CohortRequest) -> None:
    for name in ("a", "b"):
        write_map(tmp_path / name / "t1.nii.gz")
        write_map(tmp_path / name / "fa.nii.gz")
    with pytest.raises(CohortError, match=r"\{subject\}/fa.nii.gz, \{subject\}/t1.nii.gz.*pattern"):
        first_look(tmp_path, request_of_all, ())


def test_an_unknown_folder_is_reported(tmp_path: Path, request_of_all: CohortRequest) -> None:
    with pytest.raises(CohortError, match="no subject found by any known layout"):
        first_look(tmp_path, request_of_all, ())
    with pytest.raises(CohortError, match="does not exist"):
        first_look(tmp_path / "none", request_of_all, ())
    write_map(tmp_path / "derivatives" / "tracula" / "p1" / "dwi" / "p1_density.nii.gz")
    with pytest.raises(CohortError, match=r"give --dataset_dir .*tracula"):
        first_look(tmp_path, request_of_all, ())


def test_tractograms_need_a_reference(tmp_path: Path, request_of_all: CohortRequest) -> None:
    points = np.array([[1, 1, 1], [4, 5, 6]], np.float32)
    tractogram = nibabel.streamlines.Tractogram([points], affine_to_rasmm=np.eye(4))
    for name in ("p1", "p2"):
        nibabel.streamlines.save(tractogram, tmp_path / f"{name}.tck")
    with pytest.raises(ConfigurationError, match="reference"):
        first_look(tmp_path, request_of_all, ())
    write_map(tmp_path / ".reference.nii.gz")
    cohort = request_of_all.cohort.model_copy(update={"reference": ".reference.nii.gz"})
    guesses = found(tmp_path, replace(request_of_all, cohort=cohort))
    assert guesses["layout"] == "streamlines"
    assert guesses["normalisation"] == "waytotal"
    assert guesses["log_offset"] == 0.1  # one streamline, once in a voxel
