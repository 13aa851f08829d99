"""Titles, commands and words of the gallery."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ENTRIES", "Entry"]


@dataclass(frozen=True)
class Entry:
    """A job in the gallery.

    Attributes:
        name: of its picture.
        title: heading.
        command: to type, few lines.
        text: what the picture shows, and the page that tells more.
        source: picture of the docs that is made smaller; None: drawn for the gallery.
    """

    name: str
    title: str
    command: str
    text: str
    source: str | None = None


ENTRIES = (
    Entry(
        "density",
        "A density map from streamlines",
        "python -m bundle density sub-01.trk --reference template.nii.gz --output tdi.nii.gz",
        "Every streamline counts once in each voxel that it passes through. The voxels are "
        "computed exactly. Formats: TRK, TCK, TRX and VTK. [Tractograms](tractograms.md).",
    ),
    Entry(
        "atlas",
        "An atlas of a cohort",
        "python -m bundle build --dataset_dir /data/cohort --output_dir output",
        "The plain average is blurred, because a tract runs in another place in each person. The "
        "template is sharp. `build` needs no training; `train` fits a network to the cohort. "
        "[Model card](README.md), [method](method.md).",
    ),
    Entry(
        "viewer",
        "A page for visual checks",
        "xdg-open output/learned_atlas/quality.html",
        "One file with template, average and subjects in slices that scroll, with fields, labels, "
        "misfit and probability over them. `register` writes one for each patient. "
        "[The pages](quality.md).",
    ),
    Entry(
        "carry",
        "The atlas in a person's space",
        "python -m bundle carry --output_dir output",
        "The outline of one tract of the atlas over three people's FA, each in that person's "
        "space. `carry` does this for the people of the cohort, `register` for new ones. "
        "[Using an atlas](consumers.md).",
    ),
    Entry(
        "streamlines",
        "Streamlines in template space",
        "python -m bundle warp-streamlines \\\n"
        "    --warp_streamlines#tractogram '/data/cohort/{subject}/arcuate_l.trk'",
        "One tract of twelve people, one colour each, seen from the left: before the move into "
        "template space and after it. [From atlas to results](results.md).",
    ),
    Entry(
        "statistics",
        "Numbers per tract",
        "python -m bundle tract-stats --output_dir output \\\n"
        "    --tract_stats#images \"{'FA': '/data/cohort/{subject}/fa.nii.gz'}\"",
        "Mean FA of each person under each tract. The data are made up: patients have 0.1 less in "
        "one tract, and the table shows it. Step by step: [tutorial](tutorial.md).",
    ),
    Entry(
        "similarity",
        "Similarity of each tract with the atlas",
        "python -m bundle compare --dataset_dir /data/cohort --carried_dir output "
        "--output_dir output",
        "Overlap, correlation and distances of each person's tracts with the atlas in that "
        "person's space, with and without the person in the average. "
        "[Using an atlas](consumers.md#similarity-of-subjects-and-atlas).",
    ),
    Entry(
        "pairs",
        "A pair of images",
        "python -m bundle align --dataset_dir /data/native --output_dir output\n"
        "python -m bundle refine --refine#fixed a.nii.gz --refine#moving \"['b.nii.gz']\"",
        "Two people's FA, affine and deformable, with the outline of the fixed image. Whole "
        "cohorts are aligned to their mean. [Native images](affine.md).",
    ),
    Entry(
        "barycentre",
        "An average by optimal transport",
        "python -m bundle barycentre --dataset_dir /data/cohort --output_dir output",
        "One subject, the average, and the Wasserstein barycentre, which is in the middle of "
        "the anatomy without any registration. [Tractograms](tractograms.md#the-barycentre-atlas).",
        source="average_and_barycentre.png",
    ),
    Entry(
        "conditional",
        "A template that depends on age",
        "python -m bundle train --dataset_dir /data/cohort "
        "--learned_atlas#model#covariates \"['age', 'sex']\"\n"
        "python -m bundle export --at age=30,sex=F",
        "True anatomy and conditional template, youngest and oldest. "
        "[Conditional templates](conditional.md).",
        source="conditional_ages.png",
    ),
    Entry(
        "labels",
        "Labels for streamlines",
        "python -m bundle labels --atlas atlas.trk --subject whole_brain.trk --output_dir output",
        "A whole-brain tractogram in 50 bundles, by optimal transport from a segmented atlas; "
        "outliers are grey. [Labels](label_transfer.md).",
        source="labelled_fibres.png",
    ),
    Entry(
        "stack",
        "A stack of serial sections",
        "python -m bundle register-stack --stack sections.zarr --output_dir output",
        "A cut across the sections before and after registration: the anatomy continues without "
        "steps. [Stacks](stack.md).",
        source="stack_demo.png",
    ),
    Entry(
        "supervised",
        "Fields learned from known pairs",
        "python -m bundle make-pairs --reference images.npz --output output/train\n"
        "python -m bundle train-fields --pairs output/train.h5",
        "A network predicts the displacement between two images in one pass. It learned from pairs "
        "whose displacement is known. [Supervised networks](supervised.md).",
        source="supervised.png",
    ),
)
