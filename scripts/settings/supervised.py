"""Typed settings of the jobs for fields learned from known pairs; torch-free."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from scripts.settings.image_pairs import check_distinct, image_name, to_paths
from scripts.settings.pairwise import AUGMENTATIONS
from scripts.settings.section import (
    Flag,
    Integer,
    Integers,
    Number,
    Section,
    Text,
    Texts,
    section,
    setting,
    to_int,
    to_list,
    to_section,
)

__all__ = [
    "FIELD_AUGMENTATIONS",
    "FIELD_LOSSES",
    "IMAGE_LOSSES",
    "NETWORKS",
    "MakePairsConfig",
    "PredictFieldsConfig",
    "TrainFieldsConfig",
    "load_make_pairs",
    "load_predict_fields",
    "load_train_fields",
    "mixture_of",
]

Numbers = Annotated[list[Number], BeforeValidator(to_list)]

NETWORKS = ("global", "local", "merged")
FIELD_AUGMENTATIONS = (*AUGMENTATIONS, "blur", "gain", "offset", "invert")
IMAGE_LOSSES = (
    "mae", "mse", "ncc_5", "ncc_9", "ncc_12", "ncc_20", "pearson", "psnr", "ssim",
    "perceptual_loss_net_alex", "perceptual_loss_net_vgg", "perceptual_loss_net-lin_alex",
    "perceptual_loss_net-lin_vgg",
)  # fmt: skip
"""Names of losses of an image; on a field they read its components as images."""
FIELD_LOSSES = (
    "vector_distance", "vdclip2", "vdclip3", "mse_po", "grad", "jacobian", "jacobian_distance",
    "mae", "mse",
)  # fmt: skip
"""Names of losses of a field; `mae` and `mse` are its own there."""

_CLIPPED = re.compile(r"vdclip([0-9]{1,2})(?::([0-9]{1,6}(?:\.[0-9]{1,6})?))?")
_DEFAULT_LOSSES = {
    ("global", False): ["ncc_9", "vector_distance"],
    ("local", True): ["ncc_9", "vector_distance&vdclip2", "vector_distance"],
    ("local", False): ["ncc_9", "vector_distance&vdclip2"],
    ("merged", False): ["ncc_9", "vector_distance"],
}


def mixture_of(text: str, field: bool) -> list[tuple[float, str]]:
    """The losses that an expression mixes, each with its share.

    ``a&b`` is the mean of both; ``0.2*a&0.8*b`` weighs them as written.

    Example:
        >>> mixture_of("ncc_9&mse", field=False)
        [(0.5, 'ncc_9'), (0.5, 'mse')]
        >>> mixture_of("0.2*vector_distance&0.8*jacobian", field=True)
        [(0.2, 'vector_distance'), (0.8, 'jacobian')]

    Args:
        text: names joined by ``&``, each maybe with a weight and ``*`` before it.
        field: whether the output is a field; an image has no field losses.

    Raises:
        ValueError: a name or a weight is unknown, or only some of the names have a weight.
    """
    parts = [part.strip() for part in text.split("&")]
    found: list[tuple[float | None, str]] = []
    for part in parts:
        weight, star, name = part.rpartition("*")
        share: float | None = None
        if star:
            if re.fullmatch(r"\s*[0-9]{0,6}\.?[0-9]{1,6}\s*", weight) is None:
                raise ValueError(f"has {weight.strip()!r} where a weight >= 0 belongs")
            share = float(weight)
        name = name.strip()
        known = (*FIELD_LOSSES, *IMAGE_LOSSES) if field else IMAGE_LOSSES
        clipped = _CLIPPED.fullmatch(name) if field else None
        wrong_clip = clipped is not None and (
            int(clipped[1]) < 1 or (clipped[2] is not None and float(clipped[2]) <= 0)
        )
        if wrong_clip or (name not in known and clipped is None):
            kind = "field" if field else "image"
            raise ValueError(f"names {name!r}, which is no loss of {'a' if field else 'an'} {kind}")
        found.append((share, name))
    given = [share for share, _ in found if share is not None]
    if given and len(given) < len(found):
        raise ValueError("has a weight for some of its losses and none for others")
    if given and sum(given) == 0:
        raise ValueError("has weights that are all 0")
    return [(1 / len(found) if share is None else share, name) for share, name in found]


def _to_optional_int(value: object) -> object:
    return None if value is None else to_int(value)


def _to_indexes(value: object) -> object:
    """Null, a path, or a list of whole numbers."""
    if value is None or isinstance(value, str):
        return value
    return [to_int(entry) for entry in to_list(value)]


def check_indexes(indexes: list[int] | str | None) -> list[int] | str | None:
    """Refuse an empty list, a negative number, and a file that is no ``.npy``."""
    if isinstance(indexes, str):
        if not indexes.lower().endswith(".npy"):
            raise ValueError("is no .npy file")
    elif indexes is not None:
        if not indexes:
            raise ValueError("is empty")
        if min(indexes) < 0:
            raise ValueError("has a negative number")
    return indexes


Indexes = Annotated[list[int] | str | None, BeforeValidator(_to_indexes)]
_INDEXES_RULE = "null, a non-empty list of integers >= 0, or the path of a .npy file"
_DEVICE = {"rule": "cpu, cuda or cuda:N", "pattern": r"^(?:cpu|cuda(?::[0-9]+)?)$"}


def _check_shape(shape: list[int] | None) -> list[int] | None:
    if shape is not None:
        if len(shape) not in (2, 3):
            raise ValueError(f"has {len(shape)} entries")
        if min(shape) < 16:
            raise ValueError(f"has an entry below 16: {min(shape)}")
    return shape


# ---------------------------------------------------------------------------------------------
# make-pairs
# ---------------------------------------------------------------------------------------------


class MakePairsAffineConfig(Section):
    """Random affine part of the displacements, about the image's centre."""

    key_path: ClassVar[str] = "make_pairs.affine"

    rotation: Number = setting(10.0, "Largest rotation, degrees.", ge=0, le=90)
    scale: Number = setting(0.1, "Largest deviation of a scale from 1.", ge=0, lt=1)
    shear: Number = setting(0.05, "Largest shear.", ge=0, lt=1)
    translation: Number = setting(20.0, "Largest translation along each axis, pixels.", ge=0)
    probability: Number = setting(1.0, "Share of the pairs that have an affine part.", ge=0, le=1)


class MakePairsElasticConfig(Section):
    """Random elastic part: the exponential of a smooth velocity."""

    key_path: ClassVar[str] = "make_pairs.elastic"

    kind: Literal["noise", "control_points", "edge_stretching", "none"] = setting(
        "noise",
        "Where the velocity comes from: smoothed noise; bumps at random points; bumps at points on "
        "the image's edges; none: affine pairs.",
        "noise, control_points, edge_stretching or none",
    )
    rms: Number = setting(
        4.0, "Largest root mean square of the displacement, pixels; a pair's is uniform below it.",
        gt=0,
    )  # fmt: skip
    width: Number = setting(
        32.0, "Standard deviation of the smoothing, or of the bumps, pixels.", gt=0
    )
    points: Integer = setting(12, "Bumps of control_points and edge_stretching.", ge=1, le=10000)
    anchor: Number = setting(
        0.15,
        "The velocity fades to 0 over this share of the image at each border; 0: it doesn't.",
        "a number >= 0 and <= 0.5",
        ge=0,
        le=0.5,
    )


class MakePairsConfig(Section):
    """The whole ``make_pairs:`` block."""

    key_path: ClassVar[str] = "make_pairs"
    less_memory: ClassVar[str] = "use a smaller make_pairs#shape or fewer make_pairs#num_workers"

    reference: Annotated[list[str], BeforeValidator(to_paths)] = setting(
        [],
        "Reference images: NIfTI files (2-D or 3-D), a folder of images, an OME-Zarr group, an "
        ".npz or .npy file, or an earlier store (.h5), whose pairs are deformed further. `*` "
        "stands for any part of a file's name.",
        "a path or a list of distinct paths",
    )
    atlas_dir: Text | None = setting(
        None,
        "A published atlas in place of reference images: its subjects and their fields become the "
        "pairs as they are.",
        "null or a path",
    )
    array: Text | None = setting(
        None, "Name of the array inside of an .npz file or an OME-Zarr group.", "null or a name"
    )
    dims: Annotated[int | None, BeforeValidator(_to_optional_int)] = setting(
        None,
        "2: each section of a volume is an image; 3: a volume is one image. Null: 3 for NIfTI "
        "volumes, 2 for everything else.",
        "null, 2 or 3",
    )
    axis: Integer = setting(0, "Axis along which the sections of a volume lie.", ge=0, le=2)
    section_step: Integer = setting(
        25, "Distance between the sections of a volume, micrometres; gives `p`.", ge=1
    )
    indexes: Indexes = setting(
        None, "Which of the reference images are used, counted from 0. Null: all.", _INDEXES_RULE
    )
    shape: Annotated[Integers | None, BeforeValidator(lambda v: v)] = setting(
        None,
        "Size that the images are resampled to. Null: as they are.",
        "null or a list of 2 or 3 integers, each >= 16",
    )
    count: Integer = setting(1000, "Pairs to make.", ge=1, le=10_000_000)
    start_registered: Number = setting(
        0.5,
        "Of an earlier store: how often a pair starts from the registered image instead of the "
        "moving one.",
        ge=0,
        le=1,
    )
    affine: Annotated[MakePairsAffineConfig, BeforeValidator(to_section)] = section(
        MakePairsAffineConfig, "Random affine part."
    )
    elastic: Annotated[MakePairsElasticConfig, BeforeValidator(to_section)] = section(
        MakePairsElasticConfig, "Random elastic part."
    )
    max_folds: Integer = setting(0, "Most voxels of a field that may fold.", ge=0)
    tolerance: Number = setting(0.05, "Largest error of the inverse in the interior, pixels.", gt=0)
    trials: Integer = setting(
        5, "Displacements that are tried before a pair is left as it was.", ge=1, le=1000
    )
    log_share: Number | None = setting(
        None,
        "For densities: log1p(x / (log_share * maximum)) takes the place of x.",
        gt=0,
    )
    seed: Integer = setting(0, "Seed of every random choice.", ge=0)
    num_workers: Integer = setting(0, "Processes beside the first; the store is the same.", ge=0)

    _shape = field_validator("shape")(_check_shape)
    _indexes = field_validator("indexes")(check_indexes)

    @field_validator("dims")
    @classmethod
    def _check_dims(cls, dims: int | None) -> int | None:
        if dims not in (None, 2, 3):
            raise ValueError("is no number of dimensions")
        return dims

    @field_validator("reference")
    @classmethod
    def _check_reference(cls, reference: list[str]) -> list[str]:
        return check_distinct(reference)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if bool(self.reference) == bool(self.atlas_dir):
            raise ValueError("needs either reference or atlas_dir")
        return self

    @model_validator(mode="after")
    def _check_difference(self) -> Self:
        still = self.affine.probability == 0 or not (
            self.affine.rotation
            or self.affine.scale
            or self.affine.shear
            or self.affine.translation
        )
        if self.elastic.kind == "none" and still and not self.atlas_dir:
            raise ValueError("elastic.kind is none and affine is all 0: nothing would move")
        return self


# ---------------------------------------------------------------------------------------------
# train-fields
# ---------------------------------------------------------------------------------------------


class PairSelection(Section):
    """A store of pairs, and which of them are used."""

    pairs: Text = setting("", "The store of pairs, HDF5.", "a path")
    reference: Text | None = setting(
        None,
        "Volume of reference sections for a store without `ref`: .npz, .npy or NIfTI. Null: the "
        "store's own `ref` or `reference`.",
        "null or a path",
    )
    reference_axis: Integer = setting(0, "Axis along which its sections lie.", ge=0, le=2)
    reference_step: Integer = setting(
        25, "Distance between its sections, micrometres: a pair's is `p // reference_step`.", ge=1
    )
    indexes: Indexes = setting(
        None, "Which pairs of the store are used, counted from 0. Null: all.", _INDEXES_RULE
    )

    _indexes = field_validator("indexes")(check_indexes)


class TrainFieldsModelConfig(Section):
    """The networks."""

    key_path: ClassVar[str] = "train_fields.model"

    inputs: Literal["images", "forces"] = setting(
        "images",
        "What a network sees: both images; or also their locally normalised copies and the forces "
        "of demons registration.",
        "images or forces",
    )
    global_filters: Integers = setting(
        [16, 16, 32, 32, 32],
        "Global network: channels of each pair of convolutions, which halves the size.",
        "a non-empty list of integers, each >= 1",
    )
    dense: Integer = setting(40, "Global network: size of its dense layer.", ge=1)
    start_filters: Integers = setting(
        [16], "Local network: channels at full size.", "a non-empty list of integers, each >= 1"
    )
    down_filters: Integers = setting(
        [16, 32, 32, 32],
        "Local network: channels after each halving.",
        "a non-empty list of integers, each >= 1",
    )
    middle_filters: Integers = setting(
        [32], "Local network: channels at the smallest size.",
        "a list of integers, each >= 1, or empty",
    )  # fmt: skip
    up_filters: Integers = setting(
        [32, 32, 32, 32],
        "Local network: channels after each doubling.",
        "a list of integers, each >= 1, as many as down_filters",
    )
    end_filters: Integers = setting(
        [64, 64], "Local network: channels before the field, at full size.",
        "a list of integers, each >= 1, or empty",
    )  # fmt: skip
    compute_inv: Flag = setting(
        True, "Local network: also learn the field of the swapped pair, with the same weights."
    )

    @field_validator(
        "global_filters", "start_filters", "down_filters", "middle_filters", "up_filters",
        "end_filters",
    )  # fmt: skip
    @classmethod
    def _check_filters(cls, filters: list[int], info: ValidationInfo) -> list[int]:
        if any(one < 1 for one in filters):
            raise ValueError("has an entry below 1")
        if not filters and info.field_name not in ("middle_filters", "end_filters"):
            raise ValueError("is empty")
        if info.field_name == "up_filters":
            down = info.data.get("down_filters")
            if down is not None and len(filters) != len(down):
                raise ValueError(f"has {len(filters)} entries, down_filters has {len(down)}")
        return filters


class TrainFieldsAugmentConfig(Section):
    """Random changes of intensity; fields and targets stay as they are."""

    key_path: ClassVar[str] = "train_fields.augment"

    augment_ref: Texts = setting(
        [],
        "What is done to reference images.",
        f"a list out of {', '.join(FIELD_AUGMENTATIONS)}, without duplicates",
    )
    augment_mov: Texts = setting(
        [],
        "What is done to moving images.",
        f"a list out of {', '.join(FIELD_AUGMENTATIONS)}, without duplicates",
    )
    probability: Number = setting(
        0.5, "How often each augmentation is applied.", "a number >= 0 and <= 1", ge=0, le=1
    )

    @field_validator("augment_ref", "augment_mov")
    @classmethod
    def _check_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in FIELD_AUGMENTATIONS:
                raise ValueError(f"names {name!r}, which is no augmentation")
        if len(set(names)) < len(names):
            raise ValueError("names one twice")
        return names


class TrainFieldsOptimizerConfig(Section):
    """How long and how fast the network learns."""

    key_path: ClassVar[str] = "train_fields.optimizer"

    lr: Number = setting(1e-3, "Adam's largest learning rate.", gt=0)
    epochs: Integer = setting(
        20, "Passes over the pairs. 0, for a merged network: join both as they are.", ge=0
    )
    batch_size: Integer = setting(4, "Pairs per step.", ge=1)
    gradient_clip: Number = setting(
        5.0, "Greatest norm of a step's gradient; longer ones are scaled down.", gt=0
    )
    seed: Integer = setting(0, "Seed of every random choice.", ge=0)
    num_workers: Integer = setting(
        0,
        "Processes that read pairs beside the training; they need shared memory (/dev/shm) for two "
        "batches each.",
        ge=0,
    )
    validation_interval: Integer = setting(
        5, "Epochs between measurements on held-out pairs; the last one is always measured.", ge=1
    )


class TrainFieldsConfig(PairSelection):
    """The whole ``train_fields:`` block."""

    key_path: ClassVar[str] = "train_fields"
    less_memory: ClassVar[str] = (
        "use train_fields#dtype bfloat16 or a smaller train_fields#optimizer#batch_size"
    )

    network: Literal["global", "local", "merged"] = setting(
        "global",
        "global: an affine transform; local: a free field; merged: both, joined.",
        "global, local or merged",
    )
    device: Text = setting("cuda", "Where to compute.", **_DEVICE)
    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "bfloat16",
        "Autocast type of the convolutions; fields, warps and losses stay float32.",
        "one of float16, float32, bfloat16",
    )
    folds: Integer = setting(
        5, "Folds over `dataset_id`; pairs of one specimen are in one fold.", ge=2
    )
    fold: Annotated[int | None, BeforeValidator(_to_optional_int)] = setting(
        None,
        "The fold to measure with, the others are trained on. Null: measure with the pairs that "
        "`indexes` leaves out and whose specimens aren't trained on, if there are any.",
        "null or an integer >= 0 and below folds",
    )
    validation: Text | None = setting(
        None, "Another store to measure with; takes the place of a fold.", "null or a path"
    )
    global_model: Text | None = setting(
        None,
        "A global network. Local: learn what it leaves, on its images (null: the pairs as they "
        "are). Merged: the one to join (null: `<ckpt_dir>/fields_global.pt`).",
        "null or a path",
    )
    local_model: Text | None = setting(
        None,
        "Merged: the local network to join. Null: `<ckpt_dir>/fields_local.pt`.",
        "null or a path",
    )
    start: Text | None = setting(
        None, "A saved network of the same settings to go on from, with its optimiser.",
        "null or a path",
    )  # fmt: skip
    losses: Annotated[list[Text] | None, BeforeValidator(lambda v: v)] = setting(
        None,
        "A loss for each output: image, field, and with compute_inv the inverse field. Null: the "
        "network's own, see docs/supervised.md.",
        "null or a list of losses, each a name or a mixture such as 0.2*a&0.8*b",
    )
    losses_weights: Annotated[list[Number] | None, BeforeValidator(lambda v: v)] = setting(
        None,
        "Weight of each loss. Null: 1 each.",
        "null or a list of numbers >= 0, not all 0, one a loss",
    )
    perceptual_weights: Text | None = setting(
        None,
        "Weights file of the perceptual losses, see docs/supervised.md#perceptual-losses.",
        "null or a path",
    )
    save: Literal["together", "separate"] = setting(
        "together",
        "together: one file with network, losses and optimiser, from which training goes on; "
        "separate: a folder with network.json and weights.pt.",
        "together or separate",
    )
    overwrite: Flag = setting(True, "Replace a network of the same name; false refuses it.")
    resume: Flag = setting(
        True, "Go on from the checkpoint of an interrupted run, if there is one."
    )
    model: Annotated[TrainFieldsModelConfig, BeforeValidator(to_section)] = section(
        TrainFieldsModelConfig, "The networks."
    )
    augment: Annotated[TrainFieldsAugmentConfig, BeforeValidator(to_section)] = section(
        TrainFieldsAugmentConfig, "Random changes of intensity."
    )
    optimizer: Annotated[TrainFieldsOptimizerConfig, BeforeValidator(to_section)] = section(
        TrainFieldsOptimizerConfig, "Training."
    )

    @field_validator("pairs")
    @classmethod
    def _check_pairs(cls, pairs: str) -> str:
        if not pairs.strip():
            raise ValueError("is missing")
        return pairs

    @field_validator("fold")
    @classmethod
    def _check_fold(cls, fold: int | None, info: ValidationInfo) -> int | None:
        if fold is not None and not 0 <= fold < info.data.get("folds", fold + 1):
            raise ValueError("is no fold")
        return fold

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        for number, text in enumerate(self.losses or ()):
            try:
                mixture_of(text, field=number > 0)
            except ValueError as error:
                raise ValueError(f"losses[{number}] = {text!r} {error}") from None
        names = self.loss_names()
        outputs = 3 if self.network == "local" and self.model.compute_inv else 2
        if len(names) != outputs:
            raise ValueError(
                f"losses has {len(names)} entries; a {self.network} network has {outputs} outputs: "
                f"{', '.join(('image', 'field', 'inverse field')[:outputs])}"
            )
        weights = self.loss_weights()
        if len(weights) != outputs or min(weights) < 0 or not any(weights):
            raise ValueError(
                f"losses_weights = {weights}: must be {outputs} numbers >= 0, not all 0"
            )
        return self

    @model_validator(mode="after")
    def _check_others(self) -> Self:
        if self.network != "merged" and self.optimizer.epochs == 0:
            raise ValueError("optimizer.epochs = 0 is for network merged, which joins two networks")
        if self.network == "global" and self.global_model is not None:
            raise ValueError("global_model is for the networks local and merged")
        if self.network != "merged" and self.local_model is not None:
            raise ValueError("local_model is for network merged")
        if self.fold is not None and self.validation is not None:
            raise ValueError("fold and validation exclude each other")
        if self.fold is not None and self.indexes is not None:
            raise ValueError("fold and indexes exclude each other")
        return self

    def loss_names(self) -> list[str]:
        """A loss for each output."""
        inverse = self.network == "local" and self.model.compute_inv
        return list(self.losses or _DEFAULT_LOSSES[self.network, inverse])

    def loss_weights(self) -> list[float]:
        """A weight for each loss."""
        if self.losses_weights is None:
            return [1.0] * len(self.loss_names())
        return list(self.losses_weights)


# ---------------------------------------------------------------------------------------------
# predict-fields
# ---------------------------------------------------------------------------------------------


class PredictFieldsConfig(PairSelection):
    """The whole ``predict_fields:`` block."""

    key_path: ClassVar[str] = "predict_fields"
    less_memory: ClassVar[str] = (
        "use predict_fields#dtype bfloat16 or a smaller predict_fields#batch_size"
    )

    network: Literal["global", "local", "merged"] = setting(
        "merged", "Which of the trained networks predicts.", "global, local or merged"
    )
    fixed: Text = setting(
        "", "In place of pairs: the image to bring the others to, NIfTI.", "a path"
    )
    moving: Annotated[list[str], BeforeValidator(to_paths)] = setting(
        [], "The images to bring to it.", "a list of paths of differently named images"
    )
    device: Text = setting("cpu", "Where to compute.", **_DEVICE)
    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "float32", "Autocast type of the convolutions.", "one of float16, float32, bfloat16"
    )
    batch_size: Integer = setting(1, "Pairs per step.", ge=1)
    log_share: Number | None = setting(
        None,
        "Images that are densities: log1p(x / (log_share * maximum)) takes the place of x.",
        gt=0,
    )
    label_tree: Text | None = setting(
        None,
        'JSON file {"label": "parent label"} of the labels in a store: overlap is measured at each '
        "depth of the tree.",
        "null or a path",
    )
    verify_jacobian: Flag = setting(
        False, "Images: end without publishing when a field folds (det J <= 0)."
    )

    @field_validator("moving")
    @classmethod
    def _check_moving(cls, moving: list[str]) -> list[str]:
        names = [image_name(path) for path in check_distinct(moving)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"has several images called {', '.join(twice)}")
        return moving

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        images = bool(self.fixed.strip()), bool(self.moving)
        if bool(self.pairs.strip()) == any(images):
            raise ValueError("needs either pairs, or fixed and moving")
        if any(images) and not all(images):
            raise ValueError(f"needs {'moving' if images[0] else 'fixed'} too")
        return self


load_make_pairs = MakePairsConfig.of_config
load_train_fields = TrainFieldsConfig.of_config
load_predict_fields = PredictFieldsConfig.of_config
