"""An atlas that is tampered with, one thing at a time, and what is reported."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle import cli
from scripts.atlas.building import build_network
from scripts.atlas.network import AtlasNetwork
from scripts.baselines.averaging import AveragingAtlas
from scripts.baselines.barycentre import BarycentreAtlas
from scripts.cohort import Cohort, DensityMap, Subject, read_cohort
from scripts.errors import VerificationError
from scripts.publishing import recomputed_maps
from scripts.publishing.provenance import code_identity, description_hash
from scripts.publishing.publisher import AtlasPublisher
from scripts.publishing.verification import verify_atlas
from scripts.runtime.storage import file_hash
from scripts.settings.applications import BarycentreConfig
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.spatial.fields import field_names
from scripts.spatial.jacobian import jacobian_summary

WAY = "from-subject_to-template"


class Smooth:
    """Velocities that differ from voxel to voxel and from subject to subject."""

    def __init__(self, network: AtlasNetwork, assignment: list[list[float]]) -> None:
        self.network = network
        self.assignment = torch.tensor(assignment)

    def velocity(self, index: int, template: int = 0) -> torch.Tensor:
        rng = torch.Generator().manual_seed(index)
        shape = (1, self.network.spatial_dims, *self.network.reduced)
        coarse = torch.randn(shape[:2] + (3,) * len(self.network.reduced), generator=rng)
        mode = "trilinear" if len(shape) == 5 else "bilinear"
        return torch.nn.functional.interpolate(0.5 * coarse, shape[2:], mode=mode)


@pytest.fixture
def publish(
    make_cohort: Callable[..., Cohort],
    make_settings: Callable[..., LearnedAtlasConfig],
    tmp_path: Path,
) -> Callable[..., Path]:
    """Publish a small atlas whose inputs are real files with real hashes and divisors."""

    def make(
        made_of: dict[str, Any] | None = None,
        assignment: list[list[float]] | None = None,
        **changes: Any,
    ) -> Path:
        cohort = make_cohort(**(made_of or {}))
        densities, subjects = [], []
        for subject in cohort.subjects:
            data = [np.asarray(nib.load(one.path).dataobj) for one in subject.maps]
            divisors = [float(x.max()) for x in data]
            densities.append(np.stack([x / d for x, d in zip(data, divisors, strict=True)]))
            maps = (
                DensityMap(one.path, one.channel, divisor, file_hash(one.path))
                for one, divisor in zip(subject.maps, divisors, strict=True)
            )
            subjects.append(Subject(subject.name, tuple(maps)))
        settings = make_settings(
            presence_value=0.05, **{"cohort": {"normalisation": "max"}, **changes}
        )
        mean = cohort.crop.crop(np.mean(densities, axis=0)).astype(np.float32)
        cohort = replace(cohort, subjects=tuple(subjects), normalisation="max", mean_density=mean)
        dataset = [
            {"image": torch.tensor(cohort.crop.crop(x), dtype=torch.float32)} for x in densities
        ]
        network = build_network(cohort, settings, dataset)
        shares = assignment or [[1.0]] * len(subjects)
        publisher = AtlasPublisher(
            network, dataset, cohort, settings, Smooth(network, shares), tmp_path / "output"
        )
        return publisher.publish()

    return make


@pytest.fixture
def atlas(publish: Callable[..., Path]) -> Path:
    return publish()


def failures(atlas: Path) -> set[tuple[str, str, str]]:
    """Kind, name and outcome of all that fails."""
    return {(one.kind, one.name, one.outcome) for one in verify_atlas(atlas).failures}


def described(atlas: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((atlas / "atlas.json").read_text())
    return about


def describe(atlas: Path, about: dict[str, Any]) -> None:
    """Write a description with true hashes, as somebody who knows the format can."""
    about["files"] = {name: file_hash(atlas / name) for name in about["files"]}
    about["description_sha256"] = description_hash(about)
    (atlas / "atlas.json").write_text(json.dumps(about))


def flip(path: Path, voxel: tuple[int, ...], change: float) -> None:
    """Change one voxel of an image."""
    image = nib.load(path)
    values = np.array(image.dataobj)
    values[voxel] += change
    nib.save(nib.Nifti1Image(values, None, image.header), path)


@pytest.mark.parametrize(
    ("made_of", "changes"),
    [
        ({}, {}),
        ({"shape": (14, 12)}, {}),
        (
            {"channels": 2},
            {
                "model": {"channels": 2},
                "cohort": {"normalisation": "max", "tracts": ["tract-0", "tract-1"]},
            },
        ),
        ({}, {"emit_baseline_maps": ["mean", "std"]}),
    ],
    ids=["volumes", "planes", "channels", "fewer maps"],
)
def test_what_was_published_agrees(
    made_of: dict[str, Any], changes: dict[str, Any], publish: Callable[..., Path]
) -> None:
    verification = verify_atlas(publish(made_of, **changes))
    assert {one.outcome for one in verification.checks} == {"agrees"}
    verification.require()
    kinds = {one.kind for one in verification.checks}
    assert kinds == {
        "description", "code", "library", "file", "input", "divisor", "field", "map",
    }  # fmt: skip


def test_a_voxel_of_a_map_is_detected_by_hash_and_by_number(atlas: Path) -> None:
    flip(atlas / "atlas_mean.nii.gz", (6, 6, 6), 0.01)
    assert failures(atlas) == {("file", "atlas_mean.nii.gz", "differs")}
    flip(atlas / "atlas_std.nii.gz", (6, 5, 6), 1e-3)
    result = {one.kind: one for one in verify_atlas(atlas).failures if "std" in one.name}
    assert set(result) == {"file", "map"}
    assert result["map"].detail.startswith("1 voxels differ")
    assert result["map"].detail.endswith("(6, 5, 6)")


@pytest.mark.parametrize("name", ["std", "std_error"])
@pytest.mark.parametrize("change", [1e-3, np.nan])
def test_a_voxel_is_detected_even_with_its_hash_rewritten(
    name: str, change: float, atlas: Path
) -> None:
    file = f"atlas_{name}.nii.gz"
    flip(atlas / file, (6, 6, 6), change)
    describe(atlas, described(atlas))
    assert failures(atlas) == {("map", file, "differs")}


@pytest.mark.parametrize("name", ["cov", "prob_threshold"])
def test_a_map_that_steps_at_a_threshold_is_detected_by_its_hash(name: str, atlas: Path) -> None:
    flip(atlas / f"atlas_{name}.nii.gz", (6, 6, 6), 0.1)
    assert failures(atlas) == {("file", f"atlas_{name}.nii.gz", "differs")}


def test_a_changed_field_is_detected_and_so_is_what_follows_from_it(atlas: Path) -> None:
    file = f"fields/{field_names('sub-2')[0]}"
    flip(atlas / file, (6, 6, 6, 0, 0), 1.5)
    result = failures(atlas)
    assert {("file", file, "differs"), ("field", f"sub-2 {WAY}", "differs")} <= result
    assert ("map", "atlas_std.nii.gz", "differs") in result
    assert not any("sub-1" in name or "sub-3" in name for _, name, _ in result)
    describe(atlas, described(atlas))
    assert ("field", f"sub-2 {WAY}", "differs") in failures(atlas)


def test_an_edited_jacobian_is_detected(atlas: Path) -> None:
    path = atlas / "jacobian.json"
    content = json.loads(path.read_text())
    content["sub-3"][WAY]["corner_min"] += 0.01
    del content["sub-1"]
    content["sub-9"] = {}
    path.write_text(json.dumps(content))
    describe(atlas, described(atlas))
    assert failures(atlas) == {
        ("field", f"sub-3 {WAY}", "differs"),
        ("field", f"sub-1 {WAY}", "missing"),
        ("field", "sub-1 from-template_to-subject", "missing"),
        ("field", "jacobian.json: sub-9", "unexpected"),
    }


def test_an_edited_description_is_detected(atlas: Path) -> None:
    about = described(atlas)
    about["settings"]["optimizer"]["lr"] = 0.5
    (atlas / "atlas.json").write_text(json.dumps(about))
    assert failures(atlas) == {("description", "atlas.json", "differs")}


def test_a_changed_input_is_detected(atlas: Path) -> None:
    path = Path(described(atlas)["cohort"]["subjects"][1]["maps"][0]["path"])
    flip(path, (7, 6, 6), 0.1)
    result = failures(atlas)
    assert ("input", f"sub-2 {path}", "differs") in result
    assert ("divisor", f"max of sub-2 {path.name}", "differs") in result
    assert ("map", "atlas_std.nii.gz", "differs") in result


def test_an_input_stored_anew_differs_in_its_hash_alone(atlas: Path) -> None:
    path = Path(described(atlas)["cohort"]["subjects"][0]["maps"][0]["path"])
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=7))
    assert failures(atlas) == {("input", f"sub-1 {path}", "differs")}


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_missing_or_damaged_input_is_named_and_maps_count_as_not_checked(
    damage: str, atlas: Path
) -> None:
    path = Path(described(atlas)["cohort"]["subjects"][1]["maps"][0]["path"])
    if damage == "removed":
        path.unlink()
        expected = {("input", f"sub-2 {path}", "missing")}
    else:
        path.write_bytes(path.read_bytes()[:-30])
        expected = {
            ("input", f"sub-2 {path}", "differs"),
            ("divisor", f"max of sub-2 {path.name}", "missing"),
        }
    assert failures(atlas) == expected
    maps = [one for one in verify_atlas(atlas).checks if one.kind == "map"]
    assert len(maps) == 2
    for one in maps:
        assert (one.outcome, "sub-2" in one.detail) == ("not checked", True)


def test_missing_and_added_files_are_named(atlas: Path) -> None:
    field = field_names("sub-1")[1]
    (atlas / "fields" / field).unlink()
    (atlas / "atlas_std.nii.gz").unlink()
    (atlas / "atlas_max.nii.gz").write_bytes(b"")
    assert failures(atlas) == {
        ("file", f"fields/{field}", "missing"),
        ("file", "atlas_std.nii.gz", "missing"),
        ("file", "atlas_max.nii.gz", "unexpected"),
        ("field", "sub-1 from-template_to-subject", "missing"),
        ("map", "atlas_std.nii.gz", "missing"),
    }


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"no image"])
def test_files_that_are_no_images_are_named(content: bytes, atlas: Path) -> None:
    field = field_names("sub-1")[0]
    for name in ("atlas_std.nii.gz", f"fields/{field}"):
        (atlas / name).write_bytes(content)
    result = failures(atlas)
    assert ("field", f"sub-1 {WAY}", "missing") in result
    assert ("file", "atlas_std.nii.gz", "differs" if content else "missing") in result


def test_without_fields_numbers_count_as_not_checked(publish: Callable[..., Path]) -> None:
    verification = verify_atlas(publish(save_fields=False))
    verification.require()
    assert {one.kind for one in verification.checks if one.outcome == "not checked"} == {
        "field", "map",
    }  # fmt: skip


def test_a_mixture_is_checked_where_its_fields_allow(publish: Callable[..., Path]) -> None:
    model = {"n_templates": 2}
    apart = [[1.0, 0.0], [0.996, 0.004], [0.002, 0.998], [0.0, 1.0]]
    verification = verify_atlas(publish(assignment=apart, model=model))
    assert {one.outcome for one in verification.checks} == {"agrees"}
    shared = [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0], [0.0, 1.0]]
    verification = verify_atlas(publish(assignment=shared, model=model))
    verification.require()
    outcomes = {one.name: one.outcome for one in verification.checks if one.kind == "map"}
    assert outcomes["template-1/atlas_std.nii.gz"] == "agrees"
    assert outcomes["template-2/atlas_std.nii.gz"] == "not checked"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "atlas.json: can't be read: No such file or directory; give the folder of"),
        ("{", "atlas.json: damaged"),
        ("[]", "atlas.json: damaged"),
        ('{"cohort": 3}', "not the description of an atlas"),
        ("{}", "not the description of an atlas"),
    ],
)
def test_what_is_no_atlas_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "atlas.json").write_text(text)
    with pytest.raises(VerificationError, match=message):
        verify_atlas(tmp_path)


def test_other_code_and_libraries_are_reported_and_are_no_failure(atlas: Path) -> None:
    about = described(atlas)
    assert about["code"] == code_identity()
    assert {"python", "torch", "monai", "numpy", "scipy"} <= set(about["versions"])
    about["code"] = {"version": "0.0.9", "sha256": "0" * 64}
    about["versions"] |= {"torch": "1.0", "nothing-of-that-name": "3"}
    describe(atlas, about)
    verification = verify_atlas(atlas)
    assert not verification.failures
    details = {(one.kind, one.name): one.detail for one in verification.checks if one.detail}
    assert details["code", ""].startswith("made by version 0.0.9 (000000000000...), recomputed by")
    assert details["library", "torch"] == f"1.0 when it was made, {version('torch')} here"
    assert details["library", "nothing-of-that-name"] == "3 when it was made, not installed here"
    del about["code"]
    describe(atlas, about)
    assert ("not checked", "code") in {(c.outcome, c.kind) for c in verify_atlas(atlas).checks}


@pytest.mark.parametrize("kind", ["averaged", "barycentre"])
def test_atlases_that_were_not_learned_agree_too(
    kind: str, make_cohort: Callable[..., Cohort], tmp_path: Path
) -> None:
    data = Path(make_cohort().subjects[0].maps[0].path).parent
    block = {
        "cohort": {"layout": "flat", "normalisation": "max"}, "min_subjects": 1, "device": "cpu",
        "presence_value": 0.05,
    }  # fmt: skip
    settings = LearnedAtlasConfig.load(block)
    cohort = read_cohort(data, settings.cohort_request())
    if kind == "averaged":
        folder = AveragingAtlas(cohort, settings, tmp_path).publish()
    else:
        transport = BarycentreConfig.load({"iterations": 2})
        folder = BarycentreAtlas(cohort, settings, transport, tmp_path).publish()
    checks = verify_atlas(folder).checks
    assert {one.outcome for one in checks} == {"agrees"}
    maps = {one.name for one in checks if one.kind == "map"}
    assert ("atlas_mean.nii.gz" in maps) == (kind == "averaged")
    assert "atlas_std.nii.gz" in maps
    flip(folder / "atlas_std.nii.gz", (6, 6, 6), 0.1)
    wrong = {(one.kind, one.name) for one in verify_atlas(folder).failures}
    assert wrong == {("file", "atlas_std.nii.gz"), ("map", "atlas_std.nii.gz")}


def test_the_verb_prints_a_table_and_ends_with_its_code(
    atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(atlas)]) == 0
    shown = capsys.readouterr()
    assert "agrees  input        4 of them" in shown.out
    assert shown.err == ""
    flip(atlas / "atlas_std.nii.gz", (6, 6, 6), 0.1)
    (atlas / "quality.html").unlink()
    assert cli.main(["verify", str(atlas)]) == 8
    shown = capsys.readouterr()
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["missing", "file", "quality.html"] in rows
    assert any(row[:3] == ["differs", "map", "atlas_std.nii.gz:"] for row in rows)
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: {atlas}: 3 of ")
    assert "file quality.html missing" in line


@pytest.mark.parametrize("what", ["the atlas", "a field", "an input"])
def test_a_change_while_it_is_checked_is_detected(
    what: str, atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = described(atlas)["cohort"]["subjects"][0]["maps"][0]["path"]
    path = {
        "the atlas": atlas / "atlas.json",
        "a field": min((atlas / "fields").glob("*.nii.gz")),
        "an input": Path(one),
    }[what]

    def publish_meanwhile(*_: object) -> dict[str, float]:
        again = path.with_name("again")
        again.write_bytes(path.read_bytes())
        again.replace(path)
        return jacobian_summary(torch.zeros(3, 2, 2, 2))

    monkeypatch.setattr(recomputed_maps, "jacobian_summary", publish_meanwhile)
    with pytest.raises(VerificationError) as caught:
        verify_atlas(atlas)
    assert str(caught.value).startswith(f"{path}: changed while it was checked")
