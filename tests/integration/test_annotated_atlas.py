"""Labels and maps in template space by command: `export`, `register`, `evaluate`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from scripts.metrics import dice
from scripts.spatial.fields import field_names, read_field

NAMES = [f"sub-0{number}" for number in range(1, 6)]
RUN = Path("tractography/probtrackx2/whole_brain/warped_streamlines")
WHERE = "document.getElementById('viewer-where').textContent"
PIXELS = "[...document.querySelectorAll('#viewer-frame canvas')].map(one => one.toDataURL()).join()"


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.fixture(scope="module")
def labels(trained, tmp_path_factory) -> Path:
    """Labels of all subjects but sub-05: the octants of their support, 101 to 108."""
    folder = tmp_path_factory.mktemp("labels")
    for name in NAMES[:-1]:
        image = nib.load(trained.dataset_dir / name / RUN / "fdt_paths.nii.gz")
        density = np.asarray(image.dataobj)
        support = density > 0.05 * density.max()
        middle = np.argwhere(support).mean(axis=0).reshape(3, 1, 1, 1)
        octant = ((np.indices(density.shape) > middle) * np.reshape([4, 2, 1], (3, 1, 1, 1))).sum(0)
        own = np.where(support, 101 + octant, 0).astype(np.int16)
        nib.save(nib.Nifti1Image(own, image.affine), folder / f"{name}.nii.gz")
    (folder / "names.tsv").write_text("index\tname\n101\tleft posterior inferior\n")
    return folder


def label_words(labels: Path) -> tuple[str, ...]:
    return (
        "--learned_atlas#device=cpu", f"--learned_atlas#cohort#labels={labels}/{{subject}}.nii.gz",
        f"--learned_atlas#cohort#label_names={labels}/names.tsv",
    )  # fmt: skip


@pytest.fixture(scope="module")
def annotated(trained, labels, run_verb, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("annotated")
    result = run_verb(
        "export", f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={trained.ckpt_dir}",
        f"--output_dir={output}", "--learned_atlas#save_warped=true",
        "--learned_atlas#save_jacobians=true", *label_words(labels),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "no file for sub-05" in result.stderr + result.stdout
    return output / "learned_atlas"


@pytest.fixture(scope="module")
def registered(trained, labels, run_verb, tmp_path_factory) -> Path:
    """The training's subjects, registered by the network as `evaluate` does."""
    output = tmp_path_factory.mktemp("registered")
    result = run_verb(
        "register", f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={trained.ckpt_dir}",
        f"--output_dir={output}", *label_words(labels),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return output / "registered"


def test_the_4d_files_hold_the_subjects_of_the_list(annotated):
    rows = rows_of(annotated / "group/subjects.tsv")
    assert [row["participant_id"] for row in rows] == NAMES
    assert [row["dseg"] for row in rows] == ["0", "1", "2", "3", "n/a"]
    grid = nib.load(annotated / "atlas_mean.nii.gz")
    for kind in ("density", "logjacobian", "dseg"):
        series = nib.load(annotated / f"group/space-template_{kind}.nii.gz")
        there = [row for row in rows if row[kind] != "n/a"]
        assert series.shape == (*grid.shape, len(there))
        assert np.array_equal(series.affine, grid.affine)
        content = json.loads((annotated / f"group/space-template_{kind}.json").read_text())
        assert content["Subjects"] == [row["participant_id"] for row in there]
        for row in there:
            name = f"warped/{row['participant_id']}_space-template_{kind}.nii.gz"
            alone = values(annotated / name)
            assert alone.any()
            assert np.array_equal(np.asarray(series.dataobj)[..., int(row[kind])], alone)
    files = json.loads((annotated / "atlas.json").read_text())["files"]
    assert "group/subjects.tsv" in files


def test_the_labels_are_fused(annotated, labels):
    majority = values(annotated / "atlas_dseg.nii.gz")
    assert majority.dtype == np.int16
    assert set(np.unique(majority)) == {0, *range(101, 109)}
    rows = rows_of(annotated / "atlas_dseg.tsv")
    assert [(row["index"], row["subjects"]) for row in rows] == [
        (str(label), "4") for label in range(101, 109)
    ]
    assert rows[0]["name"] == "left posterior inferior"
    shares = [values(annotated / f"labels/label-{n}_probseg.nii.gz") for n in range(101, 109)]
    best = np.max(shares, axis=0)
    certain = best > 0.6
    assert certain.any()
    assert np.array_equal(101 + np.argmax(shares, axis=0)[certain], majority[certain])


def by_hand(registered: Path, labels: Path, name: str) -> dict[int, float]:
    """Dice of a subject's labels with those of the others, from the files that `register` wrote."""
    others = [one for one in NAMES[:-1] if one != name]
    own = values(labels / f"{name}.nii.gz")
    index = np.indices(own.shape)
    shares = {}
    for label in range(101, 109):
        shares[label] = np.mean(
            [
                map_coordinates(
                    (values(labels / f"{one}.nii.gz") == label).astype(float),
                    index + read_field(registered / one / field_names(one)[0]),
                    order=1,
                    mode="grid-constant",
                )
                for one in others
            ],
            axis=0,
        )
    places = index + read_field(registered / name / field_names(name)[1])
    there = np.stack(
        [map_coordinates(one, places, order=1, mode="grid-constant") for one in shares.values()]
    )
    # Of equally probable ones the smallest, background first.
    most, background = there.max(axis=0), 1 - there.sum(axis=0)
    smallest = np.array(list(shares))[(there > most - 1e-4).argmax(axis=0)]
    result = np.where(most > background + 1e-4, smallest, 0)
    return {label: float(dice(result == label, own == label)) for label in np.unique(own) if label}


def test_evaluate_compares_each_subjects_labels_with_the_others(
    trained, labels, registered, run_verb, tmp_path
):
    result = run_verb(
        "evaluate", f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={trained.ckpt_dir}",
        f"--output_dir={tmp_path}", "--evaluate#allow_training_subjects=true", *label_words(labels),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = {row["subject"]: row for row in rows_of(tmp_path / "evaluation/evaluation.csv")}
    single = rows_of(tmp_path / "evaluation/labels.csv")
    assert sorted({row["subject"] for row in single}) == NAMES[:-1]
    for name in NAMES[:-1]:
        found = {int(r["label"]): float(r["dice"]) for r in single if r["subject"] == name}
        assert found == pytest.approx(by_hand(registered, labels, name), abs=0.02)
        mean = float(np.mean(list(found.values())))
        assert float(rows[name]["label_dice"]) == pytest.approx(mean)
        assert 0.3 < mean < 1
    assert rows["sub-05"]["label_dice"] == ""
    names = {row["label"]: row["name"] for row in single}
    assert names["101"] == "left posterior inferior"
    assert names["102"] == "102"


def label_at(browser, path: Path) -> int:
    """The label of a file where the viewer's cross is."""
    world = [float(n) for n in browser.value(WHERE).split(" mm")[0][3:].split(",")]
    image = nib.load(path)
    cell = np.linalg.solve(image.affine, [*world, 1])[:3]
    return int(np.asarray(image.dataobj)[tuple(np.rint(cell).astype(int))])


def choose(browser, overlay: str, words: str) -> str:
    """Choose an overlay and wait for it; what is drawn then."""
    browser.choose("#viewer-overlay", overlay)
    browser.until(f"{WHERE}.includes('{words}')")
    return browser.value(PIXELS)


def test_the_pages_show_labels_with_names_and_the_misfit(annotated, open_page):
    majority = annotated / "atlas_dseg.nii.gz"
    with open_page(annotated / "quality.html") as browser:
        browser.until("document.getElementById('viewer-frame').dataset.ready")
        hidden = "document.getElementById('viewer-label-label').offsetHeight === 0"
        assert browser.value(hidden)
        drawn = {choose(browser, "labels", "labels: ")}
        assert not browser.value(hidden)
        for right, down in ((0.5, 0.5), (0.4, 0.45), (0.55, 0.6), (0.02, 0.02)):
            browser.click("[data-view=axial]", right, down)
            label = label_at(browser, majority)
            text = browser.value(WHERE).rsplit("labels: ", 1)[1]
            named = {0: "no label", 101: "left posterior inferior"}
            assert text == named.get(label, str(label))
        browser.choose("#viewer-label", "left posterior inferior")
        browser.until(f"{WHERE}.endsWith('left posterior inferior')")
        assert label_at(browser, majority) == 101
        drawn.add(browser.value(PIXELS))
        browser.click("#viewer-outline")
        browser.until("document.getElementById('viewer-outline').checked")
        drawn.add(browser.value(PIXELS))
        browser.choose("#viewer-label", "all labels")
        drawn.add(browser.value(PIXELS))
        browser.click("#viewer-outline")
        browser.click("#subjects button")
        drawn.add(choose(browser, "local misfit", "local misfit of"))
        assert browser.value(hidden)
        assert len(drawn) == 5
        images = browser.value(
            "[...document.querySelectorAll('#viewer-image option')].map(o => o.text)"
        )
        assert "labels" not in images  # they have no picture
        assert browser.events.errors == []


def test_a_new_subjects_page_shows_its_labels_and_the_misfit(registered, labels, open_page):
    with open_page(registered / "sub-02/quality.html") as browser:
        browser.until("document.getElementById('viewer-frame').dataset.ready")
        choose(browser, "labels of sub-02", "labels of sub-02: ")
        browser.choose("#viewer-label", "left posterior inferior")
        browser.until(f"{WHERE}.endsWith('left posterior inferior')")
        assert label_at(browser, labels / "sub-02.nii.gz") == 101
        choose(browser, "local misfit", "local misfit of sub-02: ")
        assert browser.events.errors == []
    with open_page(registered / "sub-05/quality.html") as browser:  # has no labels
        browser.until("document.getElementById('viewer-frame').dataset.ready")
        options = browser.value(
            "[...document.querySelectorAll('#viewer-overlay option')].map(o => o.text)"
        )
        assert not any("labels" in one for one in options)
        assert "local misfit" in options


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("4-D", "has 2 volumes; must have one"),
        ("none", "no subject has such a file"),
        ("names", "must have the columns index and name"),
    ],
)
def test_labels_that_are_refused(case, message, trained, labels, run_verb, refused, tmp_path):
    image = nib.load(labels / "sub-01.nii.gz")
    own = np.asarray(image.dataobj).astype(np.float32)
    if case == "4-D":
        own = np.stack([own, own], -1)
    if case != "none":
        for name in NAMES:
            nib.save(nib.Nifti1Image(own, image.affine), tmp_path / f"{name}.nii.gz")
    (tmp_path / "names.tsv").write_text("number\tname\n" if case == "names" else "index\tname\n")
    result = run_verb(
        "evaluate", f"--dataset_dir={trained.dataset_dir}", f"--ckpt_dir={trained.ckpt_dir}",
        f"--output_dir={tmp_path / 'out'}", "--evaluate#allow_training_subjects=true",
        *label_words(tmp_path),
    )  # fmt: skip
    refused(result, 3, message)
    assert not (tmp_path / "out").exists()
