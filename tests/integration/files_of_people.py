"""Files as people have them, and each command that reads them, in one process: what is seen.

Run with a folder as argument: ``python tests/integration/files_of_people.py FOLDER``; it writes
``seen.json`` there: status and output of each command by name.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from many_commands import run_commands

from scripts.tractograms import Streamlines, write_tractogram

OLD = Path(__file__).resolve().parents[1] / "data" / "before_the_rebuild"
ODD = "c #1,2 [x] @y ~"  # a folder's name that shells, Python and MONAI may take for something else
IMAGE = f"{ODD}/image.nii.gz"
SHAPE = (12, 14, 10)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-11, -13, -9)
FLAT = ("--learned_atlas#cohort#layout=flat", "--learned_atlas#cohort#normalisation=max")
TINY = (
    *FLAT, "--learned_atlas#min_subjects=1", "--learned_atlas#device=cpu",
    "--learned_atlas#model#enc_features=[4,8]", "--learned_atlas#model#dec_features=[8,8,4]",
    "--learned_atlas#optimizer#epochs=1", "--learned_atlas#optimizer#batch_size=2",
    "--learned_atlas#refine#rounds=1", "--learned_atlas#refine#iterations=1",
    "--learned_atlas#refine#network_epochs=1", "--learned_atlas#cohort#margin=2",
)  # fmt: skip
LABELS = [0, 997, 312782546, 614454277]


def blob(index: int = 0) -> np.ndarray:
    places = np.indices(SHAPE)
    centre = np.array(SHAPE)[:, None, None, None] / 2 + np.array(
        [np.cos(index), np.sin(index), 0]
    ).reshape(3, 1, 1, 1)
    away = (((places - centre) / np.array([2.0, 3, 2]).reshape(3, 1, 1, 1)) ** 2).sum(0)
    return np.round(100 * np.exp(-away)).astype(np.float32)


def save(
    path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, s: int = 1, q: int = 1,
    units: str = "mm",
) -> Path:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.set_sform(affine, s)
    image.set_qform(affine, q)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def cohort(folder: Path, count: int = 3, name: str = "sub-{}.nii.gz", **how: Any) -> Path:
    for index in range(count):
        save(folder / name.format(index + 1), blob(index), **how)
    return folder


def lines(shift: float = 0.0) -> list[np.ndarray]:
    along = np.linspace(-8, 8, 9, dtype=np.float32)
    return [
        np.stack([along, np.full(9, y + shift, np.float32), np.zeros(9, np.float32)], 1)
        for y in (-4, -2, 0, 2, 4)
    ]


def make_images(folder: Path) -> None:
    """Cohorts and images whose headers, storage or company are the matter."""
    cohort(folder / "noforms", s=0, q=0)
    cohort(folder / "micro", affine=np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE, units="micron")
    moved = AFFINE.copy()
    moved[:3, 3] += 7
    for path in sorted(cohort(folder / "disputed").iterdir()):
        image = nib.load(path)
        image.set_sform(moved, 2)
        nib.save(image, path)
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    save(cohort(folder / "sheared") / "sub-2.nii.gz", blob(1), sheared, q=0)
    save(folder / "metre.nii.gz", blob(), units="meter")
    save(folder / ODD / "image.nii.gz", blob())
    save(folder / ODD / "far.nii.gz", blob(), AFFINE + far())
    away(OLD / "pairs" / "sub-2.nii.gz", folder / "away" / "sub-2.nii.gz")
    away(OLD / "cohort" / "sub-1.nii.gz", folder / "cohort_away" / "sub-1.nii.gz")
    shutil.copytree(OLD / "learned_atlas", folder / "learned_atlas")
    image = nib.load(OLD / "cohort" / "sub-1.nii.gz")
    corner = np.zeros(image.shape, np.float32)
    corner[0, 0, 0] = 1
    save(folder / "corner" / "sub-1.nii.gz", corner, image.affine)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    other_order = np.ascontiguousarray(np.asarray(image.dataobj)[::-1])
    save(folder / "other_order" / "sub-1.nii.gz", other_order, image.affine @ flip)
    offset = save(cohort(folder / "offset") / "sub-2.nii", blob(1))
    (folder / "offset" / "sub-2.nii.gz").unlink()
    raw = bytearray(offset.read_bytes())
    raw[108:112] = bytes(4)
    offset.write_bytes(bytes(raw))
    las = cohort(folder / "las") / "sub-2.nii.gz"
    image = nib.load(las)
    flipped = AFFINE @ np.array(
        [[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    save(las, np.ascontiguousarray(image.get_fdata(dtype=np.float32)[::-1]), flipped)
    near = AFFINE.copy()
    near[:3, 3] += 0.001
    save(folder / "las" / "sub-3.nii.gz", blob(2), near)
    bad = blob()
    bad[0] = np.nan
    save(cohort(folder / "holes") / "sub-1.nii.gz", bad)
    bad = blob(1)
    bad[0, 0, 0] = -1e-12
    save(folder / "holes" / "sub-2.nii.gz", bad)
    other = cohort(folder / "kinds", 1)
    nib.save(nib.Nifti1Pair(blob(1), AFFINE), other / "sub-2.img")
    (other / "sub-3.NII.GZ").write_bytes((other / "sub-1.nii.gz").read_bytes())
    nib.save(nib.MGHImage(blob(3), AFFINE), other / "sub-4.mgz")
    (other / "sub-5.mif").write_bytes(b"mrtrix image\n")
    save(other / "brain_mask.nii.gz", (blob() > 20).astype(np.uint8))
    (other / "aligned").mkdir()
    bids = folder / "bids"
    for index in (1, 2):
        name = f"derivatives/qsirecon/sub-{index}/dwi/sub-{index}_space-MNI_density.nii.gz"
        save(bids / name, blob(index))
    for name in ("100301", "100310", "100402"):
        save(folder / "numbers" / f"{name}.nii.gz", blob(int(name[-2:])))
    (folder / "numbers" / "list.txt").write_bytes(b"\xef\xbb\xbf100301\r\n100402\r\n")
    fsl = cohort(folder / "unpacked", 2, "s{}/fdt_paths.nii")
    assert fsl.is_dir()
    ages = ["20,5", "31,25", "42"]
    rows = "".join(f"sub-{i + 1}\t{age}\n" for i, age in enumerate(ages))
    (cohort(folder / "ages") / "participants.tsv").write_text(f"participant_id\tage\n{rows}")
    people = "".join(f"sub-{i + 1}\t{20 + i * i}\t{'ABC'[i % 3]}\n" for i in range(7))
    table = f"participant_id\tage\tsite\n{people}"
    (cohort(folder / "sites", 7) / "participants.tsv").write_text(table)
    for name in ("study#2", "20240115", "pilot,2", "@home", "-dash", "[x] y"):
        cohort(folder / name)
    config = (OLD.parents[2] / "configs" / "average.yaml").read_text()
    own = config.replace("output_dir: $@bundle_root + '/output'", "output_dir: 'file#out'")
    assert own != config
    (folder / "-own #1, x.yaml").write_text(own)
    ids = np.take(LABELS, np.indices(SHAPE).sum(0) % 4).astype(np.uint32)
    save(folder / "l" / "labels.nii.gz", ids)
    save(folder / "l" / "wide.nii.gz", ids.astype(np.uint64) * (1 << 24) + 1)


def away(source: Path, path: Path) -> None:
    """The same image in another corner of the world."""
    image = nib.load(source)
    save(path, np.asarray(image.dataobj), image.affine + far())


def far() -> np.ndarray:
    """A move by 900 mm, beside the identity."""
    move = np.zeros((4, 4))
    move[:3, 3] = 900
    return move


def make_transforms(folder: Path) -> None:
    """Transforms of other programs."""
    matrix = np.eye(4)
    matrix[0, 3] = 2
    for name in ("flirt.txt", f"{ODD}.mat"):
        rows = ("".join(f"{value:.10f}  " for value in row) for row in matrix)
        (folder / name).write_text("\n".join(rows) + "\n")
    np.savetxt(folder / "fixed_decimals.txt", matrix, fmt="%.6f")
    np.savetxt(folder / "shift_ras.txt", matrix)
    with h5py.File(folder / "both.h5", "w") as file:
        fixed = [*SHAPE, *(AFFINE[:3, 3] * [-1, -1, 1]), 2, 2, 2, -1, 0, 0, 0, -1, 0, 0, 0, 1]
        parts = (
            ("CompositeTransform_double_3_3", None, None),
            ("Euler3DTransform_double_3_3", [0, 0, 0, -1, 0, 0], [0, 0, 0, 0]),
            ("DisplacementFieldTransform_double_3_3", np.tile([-1.0, 0, 0], np.prod(SHAPE)), fixed),
        )
        for number, (kind, parameters, more) in enumerate(parts):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = np.array([kind], dtype=h5py.string_dtype("ascii"))
            if parameters is not None:
                group["TransformParameters"] = np.asarray(parameters, dtype=np.float64)
                group["TransformFixedParameters"] = np.asarray(more, dtype=np.float64)
    field = np.zeros((4, 4, 4, 1, 3), np.float32)
    image = nib.Nifti1Image(field, np.eye(4) + far())
    image.header.set_intent(1007)
    nib.save(image, folder / "away_field.nii.gz")


def make_tractograms(folder: Path) -> None:
    """Tractograms packed, of other worlds, and with values of their own."""
    save(folder / "ref.nii.gz", blob())
    save(folder / "ref_noforms.nii.gz", blob(), s=0, q=0)
    save(folder / "ref_far.nii.gz", blob(), AFFINE + far())
    tracts = Streamlines.of(lines())
    write_tractogram(folder / "t.tck", tracts)
    write_tractogram(folder / "far.tck", Streamlines.of(lines(500)))
    (folder / "t.tck.gz").write_bytes(gzip.compress((folder / "t.tck").read_bytes()))
    write_tractogram(folder / "t.trk", tracts, SHAPE, AFFINE)
    raw = bytearray((folder / "t.trk").read_bytes())
    raw[988:992] = np.int32(2).tobytes()
    (folder / "less.trk").write_bytes(bytes(raw))
    raw = bytearray((folder / "t.trk").read_bytes())
    raw[948:952] = bytes(4)
    (folder / "order.trk").write_bytes(bytes(raw))
    lps = Streamlines.of([one * np.array([-1, -1, 1], np.float32) for one in lines(1)])
    write_tractogram(folder / "slicer.vtk", lps)
    text = (folder / "slicer.vtk").read_bytes().replace(b"streamlines SPACE=RAS", b"vtk output")
    for name in ("dipy.vtk", "dipy.fib"):
        (folder / name).write_bytes(text)
    atlas = tracts.with_data(label=np.array([1, 1, 2, 2, 2], np.float32))
    write_tractogram(folder / "atlas.trk", atlas, SHAPE, AFFINE)
    own = Streamlines(
        tracts.points, tracts.offsets, {"label": np.arange(5, dtype=np.float32)[:, None]},
        {"fa": np.arange(45, dtype=np.float32)[:, None]},
    )  # fmt: skip
    write_tractogram(folder / "own.trx", own, SHAPE, AFFINE)
    groups = {"left": np.array([0, 1, 2]), "right": np.array([2, 3, 4])}
    write_tractogram(folder / "overlap.trx", tracts, SHAPE, AFFINE, groups=groups)


def commands(folder: Path) -> dict[str, list[str]]:
    """Each command by the name of what it shows."""

    def check(where: str, *more: str) -> list[str]:
        few = "--learned_atlas#min_subjects=1"
        return ["check", "--dataset_dir", str(folder / where), *FLAT, few, *more]

    def warp(image: str, *transforms: str, reference: str = f"{ODD}/image.nii.gz", **more: str):
        chain = ", ".join(one if one[0] in "[{" else f"'{folder / one}'" for one in transforms)
        return [
            "warp", "--warp#subjects=x", f"--warp#image={folder / image}",
            f"--warp#reference={folder / reference}", f"--warp#transforms=[{chain}]",
            *(f"--warp#{key}={value}" for key, value in more.items()),
        ]  # fmt: skip

    def density(*names: str, reference: str = "ref.nii.gz", more: tuple[str, ...] = ()):
        return [
            "density", *(str(folder / name) for name in names),
            f"--reference={folder / reference}", *more,
        ]  # fmt: skip

    def labels(subject: str, *more: str, atlas: str = "atlas.trk") -> list[str]:
        return ["labels", f"--atlas={folder / atlas}", f"--subject={folder / subject}", *more]

    def refine(*more: str, moving: str = f"{ODD}/image.nii.gz") -> list[str]:
        return [
            "refine", f"--refine#fixed={folder / 'l/labels.nii.gz'}",
            f"--refine#moving={folder / moving}", "--refine#family=rigid",
            "--refine#levels=[4]", "--refine#iterations=1", *more,
        ]  # fmt: skip

    def pair(verb: str) -> list[str]:
        return [
            verb, f"--fixed={OLD / 'pairs' / 'sub-1.nii.gz'}",
            f"--moving={folder / 'away' / 'sub-2.nii.gz'}", f"--ckpt_dir={OLD / 'models'}",
        ]  # fmt: skip

    def carry(*more: str) -> list[str]:
        atlas = f"--atlas_dir={folder / 'learned_atlas'}"
        return ["carry", atlas, "--atlas_to_patient#patients=[sub-1]", *more]

    def register(where: str) -> list[str]:
        return [
            "register", f"--dataset_dir={folder / where}", f"--ckpt_dir={OLD / 'models'}",
            "--learned_atlas#device=cpu", "--learned_atlas#cohort#resample=true",
        ]  # fmt: skip

    def average(where: str, output: str) -> list[str]:
        few = "--learned_atlas#min_subjects=1"
        return ["average", "--dataset_dir", where, "--output_dir", output, *FLAT, few]

    fsl = "{'path': '%s', 'kind': 'fsl', 'moving': '%s', 'fixed': '%s'}"
    named = fsl % (folder / f"{ODD}.mat", *[folder / ODD / "image.nii.gz"] * 2)
    covariates = "--learned_atlas#model#covariates=['age', 'site']"
    return {
        "noforms": check("noforms"),
        "micro": check("micro"),
        "disputed": check("disputed"),
        "sheared": check("sheared"),
        "offset": check("offset"),
        "las": check("las"),
        "holes": check("holes"),
        "holes zeroed": check(
            "holes", "--learned_atlas#cohort#nan=zero", "--learned_atlas#cohort#negative=zero"
        ),
        "kinds": check("kinds"),
        "bids": check("bids", "--learned_atlas#cohort#layout=bids"),
        "exclude": check("numbers", "--learned_atlas#cohort#exclude", "100310"),
        "subjects": check("numbers", "--learned_atlas#cohort#subjects", "[100301, 100402]"),
        "list": check("numbers", "--learned_atlas#cohort#subjects", "list.txt"),
        "unpacked": check("unpacked", "--learned_atlas#cohort#layout=probtrackx2"),
        "ages": check("ages", "--learned_atlas#model#covariates=['age']"),
        "labels kept": warp("l/labels.nii.gz", "shift_ras.txt", interpolation="nearest"),
        "wide labels kept": warp("l/wide.nii.gz", "shift_ras.txt", interpolation="nearest"),
        "flirt": warp(IMAGE, "flirt.txt"),
        "fixed decimals": warp(IMAGE, "fixed_decimals.txt"),
        "flirt named": warp(IMAGE, named),
        "text mat": warp(IMAGE, f"{ODD}.mat"),
        "composite": warp(IMAGE, "both.h5"),
        "metre": warp("metre.nii.gz", "shift_ras.txt"),
        "field apart": warp(IMAGE, "away_field.nii.gz"),
        "sheared reference": warp(
            IMAGE, "shift_ras.txt", reference="sheared/sub-2.nii.gz"
        ),
        "density": density("t.tck"),
        "density packed": density("t.tck.gz"),
        "density count": density("less.trk"),
        "density order": density("order.trk"),
        "density noforms": density("t.tck", reference="ref_noforms.nii.gz"),
        "density vtk": density("dipy.vtk", more=("--vtk_space=lps",)),
        "density fib": density("dipy.fib"),
        "labels apart": labels("far.tck"),
        "labels reference apart": labels("t.trk", f"--reference={folder / 'ref_far.nii.gz'}"),
        "labels without a grid": labels("t.tck", "--label_transfer#format=trk"),
        "labels own": labels("own.trx"),
        "labels overlap": labels("t.trk", atlas="overlap.trx"),
        "refine apart": refine("--refine#starts=[identity]", moving=f"{ODD}/far.nii.gz"),
        "refine start": refine(f"--refine#start={named}"),
        "estimate apart": pair("estimate-affine"),
        "elastic apart": pair("register-elastic"),
        "carry": carry(),
        "carry apart": carry(
            f"--atlas_to_patient#reference={folder / 'cohort_away' / 'sub-1.nii.gz'}"
        ),
        "compare apart": [
            "compare", f"--dataset_dir={folder / 'cohort_away'}",
            f"--carried_dir={folder / 'out' / 'carry'}", *FLAT, "--learned_atlas#min_subjects=1",
        ],
        "compare order": [
            "compare", f"--dataset_dir={folder / 'other_order'}",
            f"--carried_dir={folder / 'out' / 'carry'}", *FLAT, "--learned_atlas#min_subjects=1",
            "--tract_similarity#leave_one_out=false",
        ],
        "compare corner": [
            "compare", f"--dataset_dir={folder / 'corner'}",
            f"--carried_dir={folder / 'out' / 'carry'}", *FLAT, "--learned_atlas#min_subjects=1",
            "--tract_similarity#leave_one_out=false",
        ],
        "register apart": register("cohort_away"),
        "register corner": register("corner"),
        "align apart": [
            "align", f"--dataset_dir={OLD / 'pairs'}", "--align#image={subject}.nii.gz",
            f"--align#target={folder / 'away' / 'sub-2.nii.gz'}", "--align#starts=[identity]",
        ],
        "streamlines apart": [
            "warp-streamlines", "--warp_streamlines#subjects=x",
            f"--warp_streamlines#tractogram={folder / 't.tck'}",
            f"--warp_streamlines#transforms=['{folder / 'shift_ras.txt'}']",
            f"--warp_streamlines#reference={folder / 'ref_far.nii.gz'}",
        ],
        "path #": average("study#2", "out#3"),
        "path digits": average("20240115", "20240116"),
        "path comma": average("pilot,2", "out,2"),
        "path at": average("@home", "@out"),
        "path dash": average("-dash", "-out"),
        "path brackets": average("[x] y", "[out] y"),
        "path home": average("study#2", "~/there"),
        "path file": [
            "average", "--config_file", "-own #1, x.yaml", "--dataset_dir", "study#2", *FLAT,
            "--learned_atlas#min_subjects=1",
        ],
        "two covariates": [
            "train", f"--dataset_dir={folder / 'sites'}", f"--ckpt_dir={folder / 'model'}", *TINY,
            "--learned_atlas#dtype=bfloat16", covariates,
        ],
    }  # fmt: skip


def main(folder: Path) -> None:
    """Make the files, run each command, write what is seen."""
    makers: tuple[Callable[[Path], None], ...] = (make_images, make_transforms, make_tractograms)
    for make in makers:
        make(folder)
    os.environ["HOME"] = str(folder / "home")
    run_commands(folder, commands(folder), with_output)


def with_output(words: list[str], output: Path) -> list[str]:
    """A command with the place of its output."""
    if words[0] == "density":
        return [*words, f"--output={output}.nii.gz"]
    return words if words[0] in ("check", "average") else [*words, f"--output_dir={output}"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
