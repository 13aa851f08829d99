"""`registering`: new subjects registered to a published atlas."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from scipy.ndimage import affine_transform
from training_runs import resampled_by
from warm_process import run_path

from scripts.metrics import log_density_correlation
from scripts.runtime.ownership import MARK
from scripts.spatial.density_resampling import visits_ratio
from scripts.spatial.fields import field_names

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
REFINED = ("--learned_atlas#refine#new_subject_iterations=10", "--learned_atlas#refine#lr=0.2")


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def density(folder: Path) -> np.ndarray:
    """A subject's normalised density, by hand."""
    return values(folder / RUN / "fdt_paths.nii.gz") / float(
        (folder / RUN / "waytotal").read_text()
    )


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal within a thousandth of the range."""
    return float(np.abs(one - other).max()) <= 1e-3 * float(np.ptp(one))


def published(folder: Path) -> set[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARK]
    return {str(path.relative_to(folder)) for path in files}


def images(name: str) -> set[str]:
    return {
        *field_names(name),
        f"{name}_space-template_density.nii.gz",
        f"{name}_misfit.nii.gz",
        "atlas_in_patient_space/atlas_mean.nii.gz",
    }


def expected_files(name: str) -> set[str]:
    sidecars = {image.removesuffix(".nii.gz") + ".json" for image in images(name)}
    return images(name) | sidecars | {"quality.html", "registration.json"}


@pytest.fixture(scope="module")
def registered(trained, run_bundle, tmp_path_factory) -> Path:
    """The held-out subject registered from another working directory, refined."""
    here = tmp_path_factory.mktemp("elsewhere")
    result = run_bundle(
        "registering",
        "inference",
        *(f"--dataset_dir={trained.held_out}", f"--ckpt_dir={trained.ckpt_dir}"),
        *("--output_dir=out", "--learned_atlas#device=cpu", *REFINED),
        cwd=here,
    )
    assert result.returncode == 0, result.stderr
    return here / "out" / "registered" / "sub-06"


def test_the_subject_gets_its_folder(registered):
    assert published(registered) == expected_files("sub-06")
    assert sorted(path.name for path in registered.parent.iterdir()) == [
        "dataset_description.json", "sub-06",
    ]  # fmt: skip


def test_fields_reproduce_the_warped_maps_outside_the_bundle(trained, registered):
    to_template, to_subject = (registered / name for name in field_names("sub-06"))
    atlas = values(trained.atlas / "atlas_mean.nii.gz")
    subject = density(trained.held_out / "sub-06")
    in_subject = values(registered / "atlas_in_patient_space" / "atlas_mean.nii.gz")
    in_template = values(registered / "sub-06_space-template_density.nii.gz")
    assert not close(in_subject, atlas)  # something moved
    assert close(in_subject, resampled_by(atlas, to_subject))
    assert close(in_template, resampled_by(subject, to_template))


def test_maps_lie_on_the_grid(trained, registered):
    grid = nib.load(trained.held_out / "sub-06" / RUN / "fdt_paths.nii.gz")
    for name in images("sub-06"):
        image = nib.load(registered / name)
        assert image.shape[:3] == grid.shape
        assert np.allclose(image.affine, grid.affine)


def test_the_report_says_how_well_the_atlas_fits(trained, registered):
    report = json.loads((registered / "registration.json").read_text())
    subject = density(trained.held_out / "sub-06")
    atlas = values(trained.atlas / "atlas_mean.nii.gz")
    in_subject = values(registered / "atlas_in_patient_space" / "atlas_mean.nii.gz")
    correlation = report["log_density_correlation"]
    for when, image in (("before", atlas), ("after", in_subject)):
        by_hand = log_density_correlation(image, subject, 1e-3, subject > 0)
        assert correlation[when] == pytest.approx(by_hand, abs=1e-4)
    assert correlation["after"] > correlation["before"] + 0.1
    assert report["loss"]["after"]["loss"] < report["loss"]["before"]["loss"]
    assert report["presence_dice"]["after"] > report["presence_dice"]["before"]
    assert all(field["corner_min"] > 0 for field in report["jacobian"].values())
    assert len(report["jacobian"]) == 2
    assert report["template"] == 1
    assert report["refinement_iterations"] == 10
    assert report["seconds"] > 0
    described = json.loads((trained.atlas / "atlas.json").read_text())
    assert report["weights"] == described["weights"]


def test_the_page_shows_patient_atlas_and_fit(trained, registered, open_page):
    report = json.loads((registered / "registration.json").read_text())
    page = registered / "quality.html"
    where = "document.getElementById('viewer-where').textContent"
    with open_page(page) as opened:
        opened.until("document.getElementById('viewer-frame').dataset.ready")
        rows = opened.value(
            "[...document.querySelectorAll('tr')].map(r => [...r.cells].map(c => c.innerText))"
        )
        for row, key in ((rows[1], "log_density_correlation"), (rows[2], "presence_dice")):
            assert [float(one) for one in row[1:]] == pytest.approx(
                [report[key]["before"], report[key]["after"]], abs=6e-4
            )
        opened.click("[data-view=axial]", 0.45, 0.45)
        place, patient, atlas = opened.value(where).split(" · ")
        world = [float(one) for one in re.findall(r"-?[\d.]+", place)]
        image = nib.load(registered / "atlas_in_patient_space" / "atlas_mean.nii.gz")
        cell = np.rint(np.linalg.solve(image.affine, [*world, 1])[:3]).astype(int)
        for read, expected in (
            (patient, density(trained.held_out / "sub-06")),
            (atlas, values(registered / "atlas_in_patient_space" / "atlas_mean.nii.gz")),
        ):
            value = expected[tuple(cell)]
            assert float(read.split(": ")[1]) == pytest.approx(value, rel=0.03, abs=2e-5)
        for overlay in ("deformed grid", "displacement", "local growth"):
            opened.choose("#viewer-overlay", overlay)
            opened.until(f"!{where}.includes('atlas in the')")
        assert opened.events.errors == []
        assert opened.events.requests == [page.as_uri()]


def test_several_files_by_name(trained, run_bundle, tmp_path):
    """Named one by one; no fields are asked for."""
    maps = [
        str(trained.dataset_dir / name / RUN / "fdt_paths.nii.gz") for name in ("sub-02", "sub-04")
    ]
    result = run_bundle(
        "registering",
        "inference",
        *(f"--input={maps}", f"--ckpt_dir={trained.ckpt_dir}", f"--output_dir={tmp_path}"),
        *("--learned_atlas#device=cpu", "--learned_atlas#save_fields=false"),
    )
    assert result.returncode == 0, result.stderr
    for name in ("sub-02", "sub-04"):
        fields = {one.removesuffix(".nii.gz") for one in field_names(name)}
        wanted = {one for one in expected_files(name) if one.split(".")[0] not in fields}
        assert published(tmp_path / "registered" / name) == wanted


def on_another_grid(source: Path, target: Path) -> Path:
    """The same map in voxels 1.25 times as large along an axis that runs the other way."""
    image = nib.load(source)
    change = np.diag([-1.25, 1.0, 1.0, 1.0])
    change[0, 3] = image.shape[0] - 1
    shape = (round(image.shape[0] / 1.25), *image.shape[1:])
    data = affine_transform(
        np.asarray(image.dataobj, float), change[:3, :3], change[:3, 3], shape, order=1
    )
    nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine @ change), target)
    shutil.copy(source.parent / "waytotal", target.with_name("new_waytotal"))
    return target


def test_another_grid_is_refused_or_resampled_when_asked(trained, run_bundle, refused, tmp_path):
    source = trained.held_out / "sub-06" / RUN / "fdt_paths.nii.gz"
    new = on_another_grid(source, tmp_path / "new.nii.gz")
    words = [f"--input={new}", f"--ckpt_dir={trained.ckpt_dir}", "--learned_atlas#device=cpu"]
    output = tmp_path / "output"
    result = run_bundle("registering", "inference", *words, f"--output_dir={output}")
    refused(
        result,
        3,
        "subject new",
        "is not on the atlas's grid: shape 26 x 36 x 32 against 32 x 36 x 32",
        "--learned_atlas#cohort#resample true",
    )
    assert not output.exists()

    words += ["--learned_atlas#cohort#resample=true", f"--output_dir={output}"]
    result = run_bundle("registering", "inference", *words)
    assert result.returncode == 0, result.stderr
    folder = output / "registered" / "new"
    assert published(folder) == expected_files("new")
    moved = values(folder / "new_space-template_density.nii.gz")
    to_template = folder / field_names("new")[0]
    image = nib.load(source)
    there = np.linalg.solve(nib.load(new).affine, image.affine)
    by_hand = affine_transform(
        values(new) / float((source.parent / "waytotal").read_text()),
        there[:3, :3], there[:3, 3], image.shape, order=1, mode="grid-constant",
    )  # fmt: skip
    by_hand *= visits_ratio(nib.load(new).affine, image.affine)
    assert close(moved, resampled_by(by_hand, to_template))


@pytest.fixture
def folding(trained, tmp_path) -> Path:
    """A model whose fields fold whatever the subject: its mean velocity is noise."""
    folder = tmp_path / "folding"
    folder.mkdir()
    state = torch.load(trained.ckpt_dir / "model.pt", weights_only=True)
    noise = torch.randn(state["mean_velocity"].shape, generator=torch.Generator().manual_seed(0))
    state["mean_velocity"] = 20 * noise
    torch.save(state, folder / "model.pt")
    return folder


def test_a_fold_is_an_error_unless_it_is_to_be_looked_at(
    trained, folding, run_bundle, refused, tmp_path
):
    words = [f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={folding}"]
    words += ["--learned_atlas#device=cpu", "--learned_atlas#cohort#exclude=['sub-01','sub-02']"]
    strict = tmp_path / "strict"
    result = run_bundle("registering", "inference", *words, f"--output_dir={strict}")
    names = ("sub-03", "sub-04", "sub-05")
    refused(result, 5, "3 of 3 subjects", "smallest det J -", *names)
    assert not strict.exists()
    lax = tmp_path / "lax"
    words += ["--learned_atlas#verify_jacobian=false", f"--output_dir={lax}"]
    result = run_bundle("registering", "inference", *words)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (lax / "registered").glob("sub-*")) == list(names)
    report = json.loads((lax / "registered" / "sub-03" / "registration.json").read_text())
    assert all(field["corner_share_folded"] > 0 for field in report["jacobian"].values())


def test_a_subject_that_cant_be_used_doesnt_stop_the_others(trained, run_bundle, refused, tmp_path):
    cohort = tmp_path / "cohort"
    shutil.copytree(trained.held_out, cohort)
    shutil.copytree(cohort / "sub-06", cohort / "sub-07")
    (cohort / "sub-07" / RUN / "waytotal").write_text("0\n")
    output = tmp_path / "output"
    result = run_bundle(
        "registering",
        "inference",
        *(f"--dataset_dir={cohort}", f"--ckpt_dir={trained.ckpt_dir}", f"--output_dir={output}"),
        "--learned_atlas#device=cpu",
    )
    refused(result, 3, "sub-07", "waytotal: is zero", "--learned_atlas#cohort#exclude")
    assert published(output / "registered") == {
        "dataset_description.json",
        *(f"sub-06/{name}" for name in expected_files("sub-06")),
    }


@pytest.mark.parametrize(
    ("case", "code", "messages"),
    [
        ("no model", 6, ["model.pt: no such model", "--ckpt_dir"]),
        ("foreign model", 6, ["model.pt: contains no atlas model of this bundle"]),
        ("no file", 3, ["no usable subject", "none.nii.gz", "No such file"]),
        ("empty file", 3, ["no usable subject", "is empty: no voxel has density > 0"]),
        ("empty list", 3, ["input names no map"]),
        ("empty dataset", 3, ["no usable subject"]),
        ("unknown subject", 3, ["no usable subject", "sub-99"]),
        ("other model", 6, ["learned_atlas.cohort.normalisation = 'max'", "with 'waytotal'"]),
        ("bad setting", 2, ["learned_atlas.refine.new_subject_iterations = -1"]),
        ("no folder", 7, ["can't be written", "is not a folder"]),
    ],
)
def test_what_cant_be_registered_is_one_message_and_no_file(
    case, code, messages, trained, run_bundle, refused, tmp_path
):
    settings = ["--learned_atlas#device=cpu"]
    source = f"--dataset_dir={trained.held_out}"
    ckpt_dir, output = trained.ckpt_dir, tmp_path / "output"
    other = tmp_path / "other"
    other.mkdir()
    if case == "no model":
        ckpt_dir = other
    elif case == "foreign model":
        ckpt_dir = other
        torch.save({"weight": torch.zeros(2)}, other / "model.pt")
    elif case == "no file":
        source = f"--input={other / 'none.nii.gz'}"
    elif case == "empty file":
        image = nib.load(trained.held_out / "sub-06" / RUN / "fdt_paths.nii.gz")
        empty = nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine)
        nib.save(empty, other / "zero.nii.gz")
        (other / "zero_waytotal").write_text("10\n")
        source = f"--input={other / 'zero.nii.gz'}"
    elif case == "empty list":
        source = "--input=[]"
    elif case == "empty dataset":
        source = f"--dataset_dir={other}"
    elif case == "unknown subject":
        settings.append("--learned_atlas#cohort#subjects=['sub-99']")
    elif case == "other model":
        settings.append("--learned_atlas#cohort#normalisation=max")
    elif case == "bad setting":
        settings.append("--learned_atlas#refine#new_subject_iterations=-1")
    else:
        output = other / "file"
        output.touch()
    before = published(tmp_path)
    words = [source, f"--ckpt_dir={ckpt_dir}", f"--output_dir={output}", *settings]
    result = run_bundle("registering", "inference", *words)
    refused(result, code, *messages)
    assert published(tmp_path) == before
    assert not output.is_dir()


def test_the_verbs_do_the_same(trained, tmp_path):
    """`python -m bundle export` and `register`, the package named by its path."""
    where = ["--ckpt_dir", str(trained.ckpt_dir), "--output_dir", "out"]
    for verb, dataset, file in (
        ("export", trained.dataset_dir, "learned_atlas/atlas_mean.nii.gz"),
        ("register", trained.held_out, "registered/sub-06/registration.json"),
    ):
        words = [verb, *where, "--dataset_dir", str(dataset), "--learned_atlas#device", "cpu"]
        result = run_path(ROOT / "bundle", words, tmp_path, os.environ)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "out" / file).is_file()


@pytest.mark.parametrize(("config", "kind"), [("train.yaml", "train"), ("inference.yaml", "infer")])
def test_monai_finds_every_property_of_a_workflow(config, kind, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copy(trained.ckpt_dir / "model.pt", tmp_path)
    workflow = ConfigWorkflow(
        config_file=f"configs/{config}",
        meta_file="configs/metadata.json",
        logging_file=None,
        workflow_type=kind,
        bundle_root=str(ROOT),
        dataset_dir=str(trained.dataset_dir),
        output_dir=str(tmp_path / "output"),
        ckpt_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_an_annotation_tool_reads_the_config_alone(trained, registered, run_bundle, tmp_path):
    """As MONAI Label does: transforms, network and inferer taken out of the config one by one."""
    config = ConfigParser()
    config.read_config(ROOT / "configs" / "inference.yaml")
    config.config.update(
        {"bundle_root": str(ROOT), "ckpt_dir": str(trained.ckpt_dir), "device": "cpu"}
    )
    path = str(trained.held_out / "sub-06" / RUN / "fdt_paths.nii.gz")
    network = config.get_parsed_content("network_def")
    item = config.get_parsed_content("preprocessing")({"image": path, "image_path": path})
    with torch.no_grad():
        pred = config.get_parsed_content("inferer")(item["image"][None], network)
    item["pred"] = pred[0]
    done = config.get_parsed_content("postprocessing")(item)

    result = run_bundle(
        "registering",
        "inference",
        *(f"--input={path}", f"--ckpt_dir={trained.ckpt_dir}", f"--output_dir={tmp_path}"),
        "--learned_atlas#device=cpu",
    )
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "registered" / "sub-06" / "atlas_in_patient_space"
    written = nib.load(folder / "atlas_mean.nii.gz")
    atlas = np.asarray(written.dataobj)
    assert done["pred"].shape == (1, *atlas.shape)
    assert (np.asarray(done["pred"][0]) == (atlas > 1e-3)).all()
    assert np.allclose(done["pred"].affine, written.affine)
    assert np.allclose(np.asarray(done["density"][0]), atlas, atol=1e-6)
    assert atlas.max() > 0
