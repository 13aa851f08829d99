"""What is published, from velocities that the tests choose; and when nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from chosen_fields import Bench

from scripts.atlas.published_model import published_network
from scripts.errors import FoldingError, StorageError, TrainingError
from scripts.networks.described import weights_identity
from scripts.spatial.fields import field_names, read_field
from scripts.spatial.warp import warp

MAPS = ["mean", "std", "std_error", "cov", "prob_threshold"]
BESIDE = {"atlas.json", "dataset_description.json", "jacobian.json", "quality.html"}


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def with_sidecars(images: Iterable[str]) -> set[str]:
    """Names of images and of the JSON files beside them."""
    names = set(images)
    return names | {name.removesuffix(".nii.gz") + ".json" for name in names}


def test_everything_that_was_promised_is_there(bench: Callable[..., Bench]) -> None:
    made = bench()
    assert made.publisher.publish() == made.atlas
    fields = [name for s in made.cohort.subjects for name in field_names(s.name)]
    images = [f"atlas_{name}.nii.gz" for name in MAPS] + [f"fields/{name}" for name in fields]
    assert set(content(made.atlas)) == with_sidecars(images) | BESIDE
    assert (made.folder / "models" / "model.pt").exists()
    leftovers = [p.name for p in (made.folder / "output").iterdir()]
    assert leftovers == ["learned_atlas"]


def test_several_subjects_at_once_publish_the_bits_of_one_after_the_other(
    bench: Callable[..., Bench],
) -> None:
    made, threads, published = bench(), torch.get_num_threads(), []
    for workers in (1, 2):
        torch.set_num_threads(workers)
        try:
            made.publisher.publish()
        finally:
            torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        files = content(made.atlas)
        images = {name: made.read(name).tobytes() for name in files if name.endswith(".nii.gz")}
        published.append((images, files["jacobian.json"]))
    assert published[0] == published[1]


def test_without_moves_the_maps_are_the_plain_statistics(bench: Callable[..., Bench]) -> None:
    """On the whole grid, and the mean is the template."""
    made = bench()
    made.publisher.publish()
    x = np.stack(made.densities)[:, 0].astype(np.float64)
    template = made.cohort.crop.paste(
        made.network.template_density()[0].numpy(), made.cohort.grid.shape
    )[0]
    np.testing.assert_array_equal(made.read("atlas_mean.nii.gz"), template)
    np.testing.assert_allclose(made.read("atlas_mean.nii.gz"), x.mean(0), atol=1e-7)
    np.testing.assert_allclose(made.read("atlas_std.nii.gz"), x.std(0), atol=1e-7)
    np.testing.assert_allclose(made.read("atlas_std_error.nii.gz"), x.std(0) / 2, atol=1e-7)
    presence = 100 * (x > made.settings.presence_value).mean(0)
    np.testing.assert_allclose(made.read("atlas_prob_threshold.nii.gz"), presence)
    firm = x.mean(0) > 0.011 * x.mean(0).max()
    cov = made.read("atlas_cov.nii.gz")
    np.testing.assert_allclose(cov[firm], x.std(0)[firm] / x.mean(0)[firm], rtol=1e-3)
    assert (cov[x.mean(0) < 0.009 * x.mean(0).max()] == 0).all()


def test_subjects_are_warped_into_template_space_before_they_are_counted(
    bench: Callable[..., Bench],
) -> None:
    """Moves that undo the subjects' shifts leave no spread where there was one."""
    still = bench()
    still.publisher.publish()
    before = still.read("atlas_std.nii.gz").max()
    # Bump i lies at c + s_i; the inverse field maps the template's c to it: -v = s_i.
    shifts = [-0.75, -0.25, 0.25, 0.75]
    moved = bench(moves=[-s for s in shifts])
    moved.publisher.publish()
    assert moved.read("atlas_std.nii.gz").max() < 0.35 * before
    wrong = bench(moves=shifts)
    wrong.publisher.publish()
    assert wrong.read("atlas_std.nii.gz").max() > 1.2 * before


def test_fields_on_disk_reproduce_the_maps(bench: Callable[..., Bench]) -> None:
    made = bench(moves=[1.0, -0.5, 0.25, 0.0])
    made.publisher.publish()
    warped = []
    for subject, density in zip(made.cohort.subjects, made.densities, strict=True):
        to_template, to_subject = field_names(subject.name)
        inverse = read_field(made.atlas / "fields" / to_template)
        forward = read_field(made.atlas / "fields" / to_subject)
        np.testing.assert_allclose(forward, -inverse, atol=1e-5)  # constant velocities
        field = torch.tensor(inverse, dtype=torch.float32)[None]
        warped.append(warp(torch.tensor(density)[None], field)[0, 0].numpy())
    np.testing.assert_allclose(made.read("atlas_std.nii.gz"), np.std(warped, axis=0), atol=1e-6)


def test_the_description_reports_moves_folds_and_provenance(bench: Callable[..., Bench]) -> None:
    made = bench(moves=[2.0, -1.0, 0.0, 3.0])
    made.publisher.publish()
    content = json.loads((made.atlas / "atlas.json").read_text())
    assert content["fields"]["mean_displacement_rms_voxels"] == pytest.approx(1.0, rel=1e-4)
    assert content["fields"]["displacement_rms_voxels"] == pytest.approx(np.sqrt(14 / 4), rel=1e-4)
    assert content["fields"]["folded"] == 0
    assert content["fields"]["smallest_jacobian"] == pytest.approx(1, abs=1e-4)
    assert content["n_subjects"] == 4
    assert content["presence_value"] == made.settings.presence_value
    assert content["settings"] == made.settings.as_dict()
    assert content["cohort"]["identity"] == made.cohort.identity()
    assert content["weights"] == weights_identity(made.network)
    assert torch.__version__.startswith(content["versions"]["torch"].split("+")[0])
    jacobians = json.loads((made.atlas / "jacobian.json").read_text())
    assert set(jacobians) == {s.name for s in made.cohort.subjects}
    for subject in jacobians.values():
        assert set(subject) == {"from-subject_to-template", "from-template_to-subject"}
        for summary in subject.values():
            assert summary["share_folded"] == summary["corner_share_folded"] == 0


def test_the_published_model_is_the_network(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.publisher.publish()
    again = published_network(made.folder / "models" / "model.pt")
    assert weights_identity(again) == weights_identity(made.network)
    with torch.no_grad():
        again.template[0, 0, 3, 3, 3] += 1e-3
    assert weights_identity(again) != weights_identity(made.network)


def test_a_fold_publishes_nothing_and_leaves_the_earlier_atlas(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    made.publisher.publish()
    atlas, models = content(made.atlas), content(made.folder / "models")
    made.velocities.folded = {2}
    with torch.no_grad():
        made.network.template += 1
    with pytest.raises(FoldingError, match=r"subject sub-3 folds .*nothing is published"):
        made.publisher.publish()
    assert content(made.atlas) == atlas
    assert content(made.folder / "models") == models
    assert [p.name for p in (made.folder / "output").iterdir()] == ["learned_atlas"]


def test_a_first_run_that_folds_leaves_no_folder(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.velocities.folded = {0}
    with pytest.raises(FoldingError):
        made.publisher.publish()
    assert not made.atlas.exists()
    assert not (made.folder / "models" / "model.pt").exists()
    assert list((made.folder / "output").iterdir()) == []


def test_without_verification_a_fold_is_published_and_reported(bench: Callable[..., Bench]) -> None:
    made = bench(verify_jacobian=False)
    made.velocities.folded = {2}
    made.publisher.publish()
    content = json.loads((made.atlas / "atlas.json").read_text())
    assert content["fields"]["folded"] == 2  # both directions of one subject
    assert content["fields"]["smallest_jacobian"] < 0
    jacobian = json.loads((made.atlas / "jacobian.json").read_text())
    assert jacobian["sub-3"]["from-template_to-subject"]["corner_share_folded"] > 0
    assert jacobian["sub-1"]["from-template_to-subject"]["corner_min"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("verify", [True, False])
def test_a_field_that_is_not_finite_is_never_published(
    verify: bool, bench: Callable[..., Bench]
) -> None:
    made = bench(moves=[0.0, float("nan"), 0.0, 0.0], verify_jacobian=verify)
    with pytest.raises(TrainingError, match="sub-2 is not finite"):
        made.publisher.publish()
    assert not made.atlas.exists()


def test_only_what_was_asked_for_is_emitted_and_nothing_earlier_stays(
    bench: Callable[..., Bench],
) -> None:
    bench().publisher.publish()
    made = bench(emit_baseline_maps=["std", "mean"], save_fields=False)
    made.publisher.publish()
    assert set(content(made.atlas)) == {
        *with_sidecars(["atlas_mean.nii.gz", "atlas_std.nii.gz"]), *BESIDE,
    }  # fmt: skip


def test_channels_become_a_fourth_axis(bench: Callable[..., Bench]) -> None:
    made = bench(
        made_of={"channels": 2},
        model={"channels": 2},
        cohort={"tracts": ["tract-0", "tract-1"]},
    )
    made.publisher.publish()
    x = np.stack(made.densities)
    result = made.read("atlas_std.nii.gz")
    assert result.shape == (*made.cohort.grid.shape, 2)
    np.testing.assert_allclose(np.moveaxis(result, -1, 0), x.std(0), atol=1e-7)
    assert np.abs(result[..., 0] - result[..., 1]).max() > 1e-3


def test_a_mixture_has_a_folder_a_template_with_each_subject_at_its_share(
    bench: Callable[..., Bench],
) -> None:
    assignment = [[1.0, 0.0], [0.75, 0.25], [0.004, 0.996], [0.0, 1.0]]
    made = bench(assignment=assignment, model={"n_templates": 2})
    made.publisher.publish()
    names = [f"atlas_{name}.nii.gz" for name in MAPS]
    for k in (1, 2):
        folder = made.atlas / f"template-{k}"
        assert {p.name for p in folder.iterdir()} == with_sidecars(names)
    assert not (made.atlas / "atlas_mean.nii.gz").exists()
    shares = np.array([[1.0, 0.75, 0, 0], [0, 0.25, 0.996, 1.0]])  # below 1 % isn't seen
    x = np.stack(made.densities)[:, 0].astype(np.float64)
    for k, share in enumerate(shares / shares.sum(1, keepdims=True)):
        mean = np.tensordot(share, x, axes=1)
        std = np.sqrt(np.tensordot(share, (x - mean) ** 2, axes=1))
        result = made.read(f"template-{k + 1}/atlas_std.nii.gz")
        np.testing.assert_allclose(result, std, atol=1e-6)
    content = json.loads((made.atlas / "atlas.json").read_text())
    assert content["mixture"]["sub-2"] == pytest.approx([0.75, 0.25])
    assert (
        len(list((made.atlas / "fields").glob("*.nii.gz"))) == 8
    )  # to each subject's own template


def test_a_template_of_no_subject_is_not_published(bench: Callable[..., Bench]) -> None:
    made = bench(assignment=[[1.0, 0.0]] * 4, model={"n_templates": 2})
    made.publisher.publish()
    assert (made.atlas / "template-1" / "atlas_mean.nii.gz").exists()
    assert not (made.atlas / "template-2" / "atlas_mean.nii.gz").exists()


def test_planes_work_as_volumes_do(bench: Callable[..., Bench]) -> None:
    made = bench(made_of={"shape": (14, 12)})
    made.publisher.publish()
    assert made.read("atlas_mean.nii.gz").shape == (14, 12)
    field = next((made.atlas / "fields").glob("*.nii.gz"))
    assert nib.load(field).shape == (14, 12, 1, 1, 3)  # type: ignore[attr-defined]


def test_the_run_is_informed_of_the_weights_that_are_out(bench: Callable[..., Bench]) -> None:
    made, identities = bench(), []

    class Told:
        def finish(self, network_identity: str) -> None:
            assert made.atlas.exists()
            identities.append(network_identity)

    made.publisher.state = Told()
    made.publisher.publish()
    assert identities == [weights_identity(made.network)]
    made.velocities.folded = {1}
    with pytest.raises(FoldingError):
        made.publisher.publish()
    assert len(identities) == 1


def test_an_output_folder_that_is_a_file_is_a_storage_error(bench: Callable[..., Bench]) -> None:
    made = bench()
    (made.folder / "output").write_text("in the way")
    with pytest.raises(StorageError, match="can't be written"):
        made.publisher.publish()
