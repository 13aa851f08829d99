"""Files made as other programs make them, and the commands that read them, in one process.

What each program writes was read in its source: FSL (probtrackx2, XTRACT), MRtrix (``tckgen``,
``tcksift2``, ``transformconvert``), FreeSurfer (``VOL_GEOM::write``), DSI Studio (``TrackVis``),
TractSeg (``img_utils``, nibabel's TRK), pyAFQ (``export_bundles``) and QSIRecon (``io_spec.json``).
ITK's files are written by ITK itself (SimpleITK).

Run with a folder as argument; it writes ``seen.json`` there: status and output of each command.
"""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from files_of_people import AFFINE, SHAPE, blob, lines, save
from many_commands import run_commands
from nibabel.streamlines import Field, TrkFile

LAS = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def make_fsl(folder: Path) -> None:
    """LAS grids of MNI's codes, densities with their waytotal."""
    for index in range(3):
        density = np.ascontiguousarray(blob(index)[::-1])
        path = save(folder / f"s{index + 1}" / "fdt_paths.nii.gz", density, LAS, 4, 4)
        (path.parent / "waytotal").write_text(f"{5000 + index}\n")
        for tract in ("cst_l", "cst_r"):
            place = folder / f"s{index + 1}" / "tracts" / tract
            save(place / "densityNorm.nii.gz", density / 5000, LAS, 4, 4)
            (place / "waytotal").write_text("5000  \n")


def make_mrtrix(folder: Path) -> None:
    """A TCK with MRtrix's header, weights of SIFT2, a transform."""
    folder.mkdir()
    entries = (
        "mrtrix tracks\ninit_threshold: 0.1\nmax_angle: 45\nmethod: iFOD2\n"
        "mrtrix_version: 3.0.4\ntimestamp: 1732885200.1234\ncommand_history: "
        "/usr/bin/tckgen fod.mif t.tck -select 5  (version=3.0.4)\ndatatype: Float32LE\n"
    )
    start = len(entries) + len("file: . 000\ncount: 0000000005\ntotal_count: 0000000005\nEND\n")
    text = f"{entries}file: . {start}\ncount: 0000000005\ntotal_count: 0000000005\nEND\n"
    points = [np.concatenate([one, np.full((1, 3), np.nan)]) for one in lines()]
    body = np.concatenate([*points, np.full((1, 3), np.inf)]).astype("<f4").tobytes()
    (folder / "t.tck").write_bytes(text.encode() + body)
    history = "# command_history: /usr/bin/tcksift2 t.tck fod.mif w.txt  (version=3.0.4)\n"
    (folder / "weights.txt").write_text(f"{history}0.5 1 1.5 2 0.25 \n")
    history = "# command_history: /usr/bin/transformconvert a.mat itk_import b.txt  (version=3)\n"
    (folder / "linear.txt").write_text(f"{history}1 0 0 2\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")


def make_itk(folder: Path) -> None:
    """A turn about a centre, a field, their composite, and what ITK makes of them."""
    inner = np.zeros(SHAPE, np.float32)  # ITK holds the outermost voxels' values half a voxel on
    inner[1:-1, 1:-1, 1:-1] = blob()[1:-1, 1:-1, 1:-1]
    image = sitk.ReadImage(str(save(folder / "image.nii.gz", inner)))
    turn = sitk.Euler3DTransform((1.0, -2.0, 0.5), 0.1, -0.05, 0.2, (1.0, 0.5, -0.5))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(turn.GetMatrix())
    affine.SetCenter(turn.GetCenter())
    affine.SetTranslation(turn.GetTranslation())
    sitk.WriteTransform(affine, str(folder / "0GenericAffine.mat"))
    sitk.WriteTransform(turn, str(folder / "rigid.tfm"))
    places = np.indices(SHAPE[::-1])
    bend = np.stack([np.sin(places[0] / 3), np.cos(places[1] / 4), np.sin(places[2] / 5)], -1)
    field = sitk.GetImageFromArray(bend.astype(np.float64), isVector=True)
    field.CopyInformation(image)
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), str(folder / "1Warp.nii.gz"))
    warp = sitk.DisplacementFieldTransform(sitk.Image(field))
    both = sitk.CompositeTransform([turn, warp])
    sitk.WriteTransform(both, str(folder / "both.h5"))
    for name, transform in (("affine", affine), ("both", both)):
        moved = sitk.Resample(image, image, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        sitk.WriteImage(moved, str(folder / f"by_itk_{name}.nii.gz"))


def make_freesurfer(folder: Path) -> None:
    """A conformed volume (LIA), linear transforms as ``mri_robust_register`` writes them."""
    folder.mkdir()
    turned = np.array([[-2.0, 0, 0, 11], [0, 0, 2, -13], [0, -2, 0, 9], [0, 0, 0, 1]])
    data = np.ascontiguousarray(blob().transpose(0, 2, 1)[::-1, ::-1])
    nib.save(nib.MGHImage(data, turned), folder / "orig.mgz")
    image = nib.Nifti1Image(blob(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(14, bytes(range(256)) * 20))
    nib.save(image, folder / "norm.nii.gz")
    shapes = {"src": (turned, data.shape), "dst": (AFFINE, SHAPE)}
    move = np.eye(4)
    move[0, 3] = -2  # of points of src
    for kind, name in ((0, "vox"), (1, "ras")):
        matrix = move if kind else np.linalg.inv(AFFINE) @ move @ turned
        text = (
            "# transform file reg.lta\n# created by someone on Fri Nov 29 12:00:00 2026\n\n"
            f"type      = {kind} # {('LINEAR_VOX_TO_VOX', 'LINEAR_RAS_TO_RAS')[kind]}\n"
            "nxforms   = 1\nmean      = 0.0000 0.0000 0.0000\nsigma     = 1.0000\n1 4 4\n"
        )
        text += "".join(" ".join(f"{value:18.15e}" for value in row) + " \n" for row in matrix)
        for end, (affine, shape) in shapes.items():
            sizes = np.linalg.norm(affine[:3, :3], axis=0)
            centre = affine @ [*(n / 2 for n in shape), 1]
            text += (
                f"{end} volume info\nvalid = 1  # volume info valid\nfilename = /s/mri/a b.mgz\n"
            )
            text += f"volume = {shape[0]} {shape[1]} {shape[2]}\n"
            rows = [("voxelsize", sizes), *zip(("xras", "yras", "zras"),
                    (affine[:3, :3] / sizes).T, strict=True), ("cras", centre[:3])]  # fmt: skip
            for key, values in rows:
                text += f"{key:6} = {' '.join(f'{value:.15e}' for value in values)}\n"
        (folder / f"{name}.lta").write_text(f"{text}subject fsaverage\nfscale 0.150000\n")


def make_dsi(folder: Path) -> None:
    """Packed TRK, LPS, points counted from the centre of the first voxel."""
    folder.mkdir()
    header = np.zeros((), nib.streamlines.trk.header_2_dtype)
    affine = np.diag([-2.0, -2, 2, 1])
    affine[:3, 3] = (11, 13, -9)
    header["magic_number"], header["version"], header["hdr_size"] = b"TRACK", 2, 1000
    header["dimensions"], header["voxel_sizes"] = SHAPE, (2, 2, 2)
    header["voxel_to_rasmm"], header["voxel_order"], header["nb_streamlines"] = affine, b"LPS", 5
    raw = bytearray(header.tobytes())
    raw[952:956] = b"LPS\0"
    raw[956:980] = np.array([1, 0, 0, 0, 1, 0], "<f4").tobytes()
    for one in lines():
        voxels = nib.affines.apply_affine(np.linalg.inv(affine), one)
        raw += np.int32(len(one)).tobytes() + (voxels * 2).astype("<f4").tobytes()
    (folder / "cst.trk.gz").write_bytes(gzip.compress(bytes(raw)))
    (folder / "cst.tt.gz").write_bytes(gzip.compress(b"dimension"))


def save_trk(path: Path, shift: float = 0.0) -> None:
    """By nibabel, as TractSeg and dipy do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        Field.VOXEL_TO_RASMM: AFFINE, Field.DIMENSIONS: SHAPE,
        Field.VOXEL_SIZES: (2, 2, 2), Field.VOXEL_ORDER: "RAS",
    }  # fmt: skip
    tracts = nib.streamlines.Tractogram(lines(shift), affine_to_rasmm=np.eye(4))
    nib.streamlines.save(TrkFile(tracts, header), str(path))


def save_trx(path: Path, shift: float = 0.0) -> None:
    """By trx-python, with pyAFQ's types."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tracts = lines(shift)
    with zipfile.ZipFile(path, "w") as archive:
        about = {
            "DIMENSIONS": list(SHAPE), "VOXEL_TO_RASMM": AFFINE.tolist(),
            "NB_VERTICES": sum(map(len, tracts)), "NB_STREAMLINES": len(tracts),
        }  # fmt: skip
        archive.writestr("header.json", json.dumps(about))
        points = np.concatenate(tracts).astype("<f2")
        archive.writestr("positions.3.float16", points.tobytes())
        offsets = np.cumsum([0, *map(len, tracts)]).astype("<u4")
        archive.writestr("offsets.uint32", offsets.tobytes())


def make_tractseg(folder: Path) -> None:
    """Masks and tracts, the affine as nibabel writes it: sform 2, no qform."""
    for index in range(3):
        output = folder / f"s{index + 1}" / "tractseg_output"
        for tract in ("AF_left", "CST_right"):
            mask = (blob(index) > 20).astype(np.uint8)
            (output / "bundle_segmentations").mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(mask, AFFINE)
            nib.save(image, output / "bundle_segmentations" / f"{tract}.nii.gz")
            save_trk(output / "TOM_trackings" / f"{tract}.trk", 2 * index)


def make_pyafq(folder: Path) -> None:
    """A derivative's folder of bundles."""
    for index in range(3):
        who = f"sub-0{index + 1}"
        for tract in ("LeftArcuate", "RightCorticospinal"):
            name = f"{who}_ses-01_desc-{tract}_tractography"
            bundles = folder / who / "ses-01" / "bundles"
            (save_trk if index else save_trx)(
                bundles / f"{name}{'.trk' if index else '.trx'}", 2 * index
            )
            (bundles / f"{name}.json").write_text("{}")


def make_qsirecon(folder: Path) -> None:
    """Bundles of autotrack in BIDS' folders of a pipeline."""
    for index in range(3):
        who = f"sub-{index + 1}"
        for tract in ("ArcuateFasciculusL", "CorticospinalTractR"):
            name = f"{who}_ses-a_space-ACPC_model-gqi_bundle-{tract}_streamlines.tck.gz"
            place = folder / "derivatives" / "qsirecon-DSIAutoTrack" / who / "ses-a" / "dwi"
            place.mkdir(parents=True, exist_ok=True)
            text = "mrtrix tracks\ndatatype: Float32LE\ncount: 5\nfile: . 67\nEND\n".ljust(67)
            points = [np.concatenate([p, np.full((1, 3), np.nan)]) for p in lines(2 * index)]
            body = np.concatenate([*points, np.full((1, 3), np.inf)]).astype("<f4").tobytes()
            (place / name).write_bytes(gzip.compress(text.encode() + body))
    (folder / "sub-1" / "anat").mkdir(parents=True)


def commands(folder: Path) -> dict[str, list[str]]:
    """Each command by its name."""
    few = "--learned_atlas#min_subjects=1"
    grid = str(save(folder / "grid.nii.gz", blob()))

    def check(where: str, layout: str, *more: str) -> list[str]:
        settings = (f"--learned_atlas#cohort#layout={layout}", few)
        return ["check", f"--dataset_dir={folder / where}", *settings, *more]

    def tracts(where: str, *more: str) -> list[str]:
        reference = f"--learned_atlas#cohort#reference={grid}"
        return check(where, "streamlines", reference, *more)

    def warp(image: str, *transforms: str) -> list[str]:
        chain = ", ".join(f"'{folder / one}'" for one in transforms)
        return [
            "warp", "--warp#subjects=x", f"--warp#image={folder / image}",
            f"--warp#reference={grid}", f"--warp#transforms=[{chain}]",
        ]  # fmt: skip

    def density(name: str, *more: str) -> list[str]:
        return ["density", str(folder / name), f"--reference={grid}", *more]

    two = "--learned_atlas#cohort#tracts={}"
    return {
        "fsl": check("fsl", "probtrackx2"),
        "xtract": check("fsl", "xtract", two.format("[cst_l, cst_r]"),
                        "--learned_atlas#model#channels=2"),
        "mrtrix": density("mrtrix/t.tck"),
        "mrtrix weights": density("mrtrix/t.tck", "--weights", str(folder / "mrtrix/weights.txt")),
        "mrtrix linear": warp("grid.nii.gz", "mrtrix/linear.txt"),
        "itk affine": warp("itk/image.nii.gz", "itk/0GenericAffine.mat"),
        "itk rigid": warp("itk/image.nii.gz", "itk/rigid.tfm"),
        "itk chain": warp("itk/image.nii.gz", "itk/1Warp.nii.gz", "itk/rigid.tfm"),
        "itk both": warp("itk/image.nii.gz", "itk/both.h5"),
        "freesurfer vox": warp("freesurfer/orig.mgz", "freesurfer/vox.lta"),
        "freesurfer ras": warp("freesurfer/norm.nii.gz", "freesurfer/ras.lta"),
        "dsi": density("dsi/cst.trk.gz"),
        "dsi own": density("dsi/cst.tt.gz"),
        "tractseg": check("tractseg", "tractseg", "--learned_atlas#cohort#normalisation=none",
                          two.format("[AF_left]")),
        "tractseg tracts": tracts("tractseg", two.format("[AF_left, CST_right]"),
                                  "--learned_atlas#model#channels=2"),
        "pyafq": tracts("pyafq", two.format("[LeftArcuate]")),
        "qsirecon": tracts("qsirecon/derivatives/qsirecon-DSIAutoTrack",
                           two.format("[ArcuateFasciculusL]")),
        "qsirecon root": tracts("qsirecon", two.format("[ArcuateFasciculusL]")),
    }  # fmt: skip


def main(folder: Path) -> None:
    """Make the files, run each command, write what is seen."""
    makers: dict[str, Callable[[Path], None]] = {
        name.removeprefix("make_"): maker
        for name, maker in globals().items()
        if name.startswith("make_")
    }
    for name, make in makers.items():
        make(folder / name)
    run_commands(folder, commands(folder), with_output)


def with_output(words: list[str], output: Path) -> list[str]:
    """A command with the place of its output."""
    if words[0] == "density":
        return [*words, f"--output={output}.nii.gz"]
    return [*words, f"--output_dir={output}"] if words[0] == "warp" else words


if __name__ == "__main__":
    main(Path(sys.argv[1]))
