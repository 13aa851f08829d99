"""The verbs that read a configuration: which one, and what MONAI runs in it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["JOBS", "TRAININGS", "Job"]


@dataclass(frozen=True)
class Job:
    """A verb that reads a configuration.

    Args:
        config: default configuration, relative to the root.
        run_id: what MONAI runs in it; None for a job without MONAI.
        summary: one line for the help.
        over: a configuration that is merged over it unless others are given, likewise.
    """

    config: str
    run_id: str | None
    summary: str
    over: str | None = None

    @property
    def files(self) -> list[str]:
        """The configuration files, in order."""
        return [self.config, *([] if self.over is None else [self.over])]


JOBS = {
    "train": Job("configs/train.yaml", "training", "learn an atlas from a cohort and publish it"),
    "build": Job(
        "configs/train.yaml",
        "training",
        "make an atlas without training, with the pretrained network",
        over="configs/build.yaml",
    ),
    "export": Job("configs/export.yaml", "exporting", "publish an atlas again from its checkpoint"),
    "register": Job("configs/inference.yaml", "registering", "register new subjects to an atlas"),
    "average": Job("configs/average.yaml", "averaging", "average a cohort without registration"),
    "barycentre": Job(
        "configs/barycentre.yaml", "transporting", "average a cohort by optimal transport"
    ),
    "carry": Job(
        "configs/atlas_to_patient.yaml", "carrying", "warp an atlas's maps into patients' space"
    ),
    "compare": Job(
        "configs/tract_similarity.yaml",
        "comparing",
        "compare subjects' maps with the atlas in their space",
    ),
    "train-affine": Job(
        "configs/train_affine.yaml",
        "training",
        "train a network for affine registration on single images",
    ),
    "train-elastic": Job(
        "configs/train_elastic.yaml",
        "training",
        "train a network for registration across contrasts on label maps",
    ),
    "train-registration": Job(
        "configs/train_registration.yaml",
        "training",
        "train the pretrained registration network again, on generated pairs",
    ),
    "train-registration-affine": Job(
        "configs/train_registration_affine.yaml",
        "training",
        "train the pretrained affine network again, on generated pairs",
    ),
    "estimate-affine": Job(
        "configs/estimate_affine.yaml",
        "estimating",
        "align images to a fixed image with an affine network",
    ),
    "register-elastic": Job(
        "configs/register_elastic.yaml",
        "registering",
        "register images to a fixed image across contrasts",
    ),
    "make-pairs": Job(
        "configs/make_pairs.yaml", "making", "make pairs of images with known displacement"
    ),
    "train-fields": Job(
        "configs/train_fields.yaml", "training", "train a network on pairs with known displacement"
    ),
    "predict-fields": Job(
        "configs/predict_fields.yaml",
        "predicting",
        "predict displacements with a network of train-fields",
    ),
    "align": Job(
        "configs/align.yaml", "aligning", "align the native images of a cohort to one space"
    ),
    "refine": Job(
        "configs/refine.yaml", "refining", "register images to a fixed image by optimisation"
    ),
    "warp": Job(
        "configs/warp.yaml",
        "warping",
        "resample images through several transforms in one interpolation",
    ),
    "tract-stats": Job(
        "configs/tract_stats.yaml",
        "measuring",
        "measure images under each tract of the atlas in subjects' space",
    ),
    "warp-streamlines": Job(
        "configs/warp_streamlines.yaml",
        "warping_streamlines",
        "move streamlines into template space or back",
    ),
    "evaluate": Job(
        "configs/evaluate.yaml",
        "evaluating",
        "evaluate an atlas on subjects that were not used in training",
    ),
    "cross-validate": Job(
        "configs/evaluate.yaml", "cross_validating", "train and evaluate fold by fold"
    ),
    "register-stack": Job(
        "configs/register_stack.yaml", "registering", "register serial sections to one frame"
    ),
    "apply-stack": Job(
        "configs/apply_stack.yaml",
        "applying",
        "warp other images of the same sections to that frame",
    ),
    "labels": Job(
        "configs/transfer_labels.yaml", "labelling", "label streamlines from a segmented atlas"
    ),
    "check": Job(
        "configs/train.yaml",
        None,
        "check settings and dataset, and list the subjects; trains nothing",
    ),
}
TRAININGS = frozenset({"training", "cross_validating"})
"""Run ids of the jobs that write into ckpt_dir."""
