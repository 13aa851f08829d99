"""The bundle for a notebook: functions that take arrays or paths, and affines.

An image is the path of a NIfTI file, or an array ``(X, Y)`` or ``(X, Y, Z)`` with its affine. An
affine is ``(4, 4)``, from voxel indices to world millimetres (RAS). A transform maps points of the
fixed image to points of the moving image, in RAS mm.

Torch and monai are imported by the functions that need them, so importing this module is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.engines.given import given
from scripts.runtime.error_report import find_user_error

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

    from scripts.registration.images import WorldImage
    from scripts.spatial.grid import Grid
    from scripts.tractograms import Streamlines

__all__ = [
    "Deformation",
    "affine_registration",
    "align",
    "apply_stack",
    "average",
    "deformable_registration",
    "density_map",
    "fuse_labels",
    "learn_atlas",
    "register",
    "register_stack",
    "tract_statistics",
    "transfer_labels",
    "warp",
    "warp_streamlines",
]

Image = str | Path | np.ndarray
"""Path of a NIfTI file, or an array, which needs an affine."""
Images = str | Path | Sequence[str | Path] | Sequence[np.ndarray] | np.ndarray
"""A dataset folder, paths of files, or arrays of one shape, which need an affine."""
Fibres = str | Path | Sequence[np.ndarray]
"""A tractogram's path, or streamlines, each ``(points, 3)`` in RAS mm."""
Sections = str | Path | np.ndarray
"""Path of a stack, or an array ``(sections, rows, columns[, colours])``, which needs a spacing."""
Settings = Mapping[str, Any]
"""Settings of a block as docs/settings.md lists them, nested: ``{"optimizer": {"epochs": 20}}``."""

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True, eq=False)
class Deformation:
    """A fixed point x corresponds to ``matrix (x + displacement(x))`` in the moving image.

    Attributes:
        matrix: ``(4, 4)``, from fixed point to moving point, RAS mm.
        displacement: ``(3, X, Y, Z)`` RAS mm on the fixed grid; Z = 1 for a plane.
        inverse: ``(3, X, Y, Z)`` RAS mm on the fixed grid: a moving point y corresponds to
            ``z + inverse(z)`` with ``z = matrix^-1 y``.
        affine: ``(4, 4)`` of the fixed grid.
        smallest_jacobian: smallest Jacobian determinant of both displacements; > 0 means that
            nothing folds.
    """

    matrix: np.ndarray
    displacement: np.ndarray
    inverse: np.ndarray
    affine: np.ndarray
    smallest_jacobian: float


# ---------------------------------------------------------------------------------------------
# Atlases
# ---------------------------------------------------------------------------------------------


def learn_atlas(
    maps: Images,
    output_dir: str | Path,
    affine: np.ndarray | None = None,
    ckpt_dir: str | Path | None = None,
    settings: Settings | None = None,
    training: bool = True,
) -> Path:
    """Learn a template from density maps and publish the atlas.

    With a training a network is trained on the cohort, as by the verb ``train`` with
    ``learned_atlas#model#initial null``. Without one the atlas is made by the network that comes
    with the bundle, as by the verb ``build``: much faster, and as sharp.

    Arrays are first written to ``<output_dir>/cohort``, as ``subject_001.nii.gz`` and so on. They
    aren't normalised unless ``settings`` say so.

    Args:
        maps: a dataset folder, paths of files, or arrays ``(n, X, Y, Z)``, all on one grid.
        output_dir: destination of the atlas.
        affine: ``(4, 4)`` RAS mm, of arrays.
        ckpt_dir: destination of the model; None: ``<output_dir>/models``.
        settings: of the block ``learned_atlas``.
        training: train a network on the cohort.

    Returns:
        The published folder, with ``atlas_mean.nii.gz`` and ``atlas.json``.

    Raises:
        TractAtlasError: settings, cohort, device or folders can't be used; the message says why.
        ValueError: arrays are given without an affine or with different shapes.

    Example:
        >>> x = np.linspace(-1, 1, 16)
        >>> blob = np.exp(-8 * (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2))
        >>> maps = [np.roll(blob, shift, 0) for shift in (-1, 0, 1)]
        >>> small = {"enc_features": [4, 4], "dec_features": [4, 4, 4], "passes": [1]}
        >>> settings = {
        ...     "min_subjects": 3, "device": "cpu", "dtype": "float32", "model": small,
        ...     "optimizer": {"epochs": 1},
        ...     "refine": {"rounds": 1, "iterations": 1, "network_epochs": 0},
        ... }
        >>> atlas = learn_atlas(maps, folder / "atlas", np.eye(4), settings=settings)
        >>> (atlas / "atlas_mean.nii.gz").is_file()
        True

        Without a training, by one round of the network that comes with the bundle:

        >>> settings = {
        ...     "min_subjects": 3, "device": "cpu", "refine": {"network_rounds": 1, "rounds": 0}
        ... }
        >>> atlas = learn_atlas(
        ...     maps, folder / "quick", np.eye(4), settings=settings, training=False
        ... )
        >>> (atlas / "atlas_mean.nii.gz").is_file()
        True
    """
    output = Path(output_dir)
    models = output / "models" if ckpt_dir is None else Path(ckpt_dir)
    source, block = _as_cohort(maps, affine, output, settings)
    values = {"output_dir": str(output), "ckpt_dir": str(models)}
    over = None if training else "build.yaml"
    if training:
        block = {**block, "model": {"initial": None, **block.get("model", {})}}
    if isinstance(source, str):
        values["dataset_dir"] = source
    job = _config("train.yaml", values, "learned_atlas", block, over)
    if not isinstance(source, str):
        job["train"]["dataset"]["data"] = given([{"image": path} for path in source])
    return output / str(_run(job, "training", "$@settings.output_subdir"))


def register(
    maps: Images,
    ckpt_dir: str | Path | None,
    output_dir: str | Path,
    affine: np.ndarray | None = None,
    settings: Settings | None = None,
    template: str | Path | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
) -> Path:
    """Register new subjects to a learned atlas, or to any map, as the verb ``register`` does.

    Args:
        maps: a dataset folder, paths of files, or arrays ``(n, X, Y, Z)`` on the atlas's grid.
        ckpt_dir: of the atlas's ``model.pt``; None with ``template``.
        output_dir: destination of the folders, one per subject.
        affine: ``(4, 4)`` RAS mm, of arrays.
        settings: of the block ``learned_atlas``; the others come from the model.
        template: a NIfTI file instead of a model: a density or an image of one channel. The network
            that comes with the bundle then registers to it.
        masks: one per array of ``maps``, not 0 in voxels that don't count; None for a subject
            without such voxels. For files: ``settings={"cohort": {"mask": <pattern>}}``.

    Returns:
        ``<output_dir>/registered``. Each subject's folder contains its fields in both directions.

    Raises:
        TractAtlasError: model, maps or folders can't be used; the message says why.
        ValueError: arrays are given without an affine or with different shapes, or there is
            neither a model nor a template.

    Example:
        >>> x = np.linspace(-1, 1, 16)
        >>> blob = np.exp(-8 * (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2))
        >>> settings = {"device": "cpu"}
        >>> models = folder / "atlas" / "models"  # from the example of learn_atlas
        >>> found = register([blob], models, folder / "new", np.eye(4), settings)
        >>> sorted(path.name for path in found.iterdir())
        ['dataset_description.json', 'subject_001']
    """
    output = Path(output_dir)
    source, block = _as_cohort(maps, affine, output, settings, own=True)
    if masks is not None:
        block = _with_masks(masks, affine, output, source, block)
    values: dict[str, Any] = {"output_dir": str(output)}
    values["dataset_dir" if isinstance(source, str) else "input"] = source
    if template is not None:
        values["template"] = str(template)
    elif ckpt_dir is None:
        raise ValueError("register needs ckpt_dir, the folder of a model, or template, a map")
    else:
        values["ckpt_dir"] = str(ckpt_dir)
    _run(_config("inference.yaml", values, "learned_atlas", block), "registering")
    return output / "registered"


def average(
    maps: Images,
    output_dir: str | Path,
    affine: np.ndarray | None = None,
    settings: Settings | None = None,
) -> Path:
    """Average unregistered density maps, as the verb ``average`` does.

    Args:
        maps: a dataset folder, or arrays ``(n, X, Y, Z)``, all on one grid.
        output_dir: destination of the folder ``atlas``.
        affine: ``(4, 4)`` RAS mm, of arrays.
        settings: of the block ``learned_atlas``.

    Returns:
        ``<output_dir>/atlas``, with ``atlas_mean.nii.gz``, ``atlas_std.nii.gz`` and so on.

    Raises:
        TractAtlasError: settings, cohort or folders can't be used; the message says why.
        ValueError: arrays are given without an affine or with different shapes, or paths of files
            are given.
    Example:
        >>> import nibabel
        >>> maps = np.zeros((5, 6, 6, 6))
        >>> maps[:, 2:4, 2:4, 2:4] = np.arange(1, 6)[:, None, None, None]
        >>> atlas = average(maps, folder / "average", np.eye(4))
        >>> float(nibabel.load(atlas / "atlas_mean.nii.gz").get_fdata().max())
        3.0
    """
    output = Path(output_dir)
    source, block = _as_cohort(maps, affine, output, settings)
    if not isinstance(source, str):
        raise ValueError("average takes a dataset folder or arrays, not paths of files")
    values = {"output_dir": str(output), "dataset_dir": source}
    _run(_config("average.yaml", values, "learned_atlas", block), "averaging")
    return output / "atlas"


def align(
    images: str | Path | Sequence[np.ndarray],
    output_dir: str | Path,
    affines: Sequence[np.ndarray] | None = None,
    settings: Settings | None = None,
) -> Path:
    """Align native images to one affine space, as the verb ``align`` does.

    Arrays are first written to ``<output_dir>/native/subject_001/image.nii.gz`` and so on.

    Args:
        images: a dataset folder (``settings`` must then give the pattern ``image``), or arrays,
            each with its own grid.
        output_dir: destination of the folder ``aligned``.
        affines: ``(4, 4)`` RAS mm, one per array.
        settings: of the block ``align``.

    Returns:
        ``<output_dir>/aligned``: ``template.nii.gz`` and a folder per subject, with its image and,
        in ``xfm/``, its transform in both directions.

    Raises:
        TractAtlasError: settings, images or folders can't be used; the message says why.
        ValueError: the numbers of affines and arrays differ.

    Example:
        >>> x = np.linspace(-1, 1, 16)
        >>> blob = np.exp(-8 * (x[:, None, None] ** 2 + 2 * x[:, None] ** 2 + 3 * x**2))
        >>> quick = {"levels": [2], "iterations": 5, "rounds": 1, "family": "rigid"}
        >>> images = [blob, np.roll(blob, 2, 0)]
        >>> aligned = align(images, folder / "align", [np.eye(4)] * 2, quick)
        >>> (aligned / "template.nii.gz").is_file()
        True
    """
    from scripts.registration.align_cohort import CohortAligner
    from scripts.runtime.ownership import check_contents, write_mark
    from scripts.settings.align import AlignConfig

    asked = dict(settings or {})
    source: str | Path
    if isinstance(images, str | Path):
        source = images
    else:
        given = list(affines or [])
        if len(given) != len(images):
            raise ValueError(f"{len(images)} arrays and {len(given)} affines: give one per array")
        source = Path(output_dir) / "native"
        check_contents(source)
        for number, (image, affine) in enumerate(zip(images, given, strict=True), start=1):
            _write(source / f"subject_{number:03d}" / "image.nii.gz", image, affine)
        write_mark(source)
        asked = {"image": "{subject}/image.nii.gz", **asked}
    return CohortAligner(source, AlignConfig.load(asked), output_dir).run()


# ---------------------------------------------------------------------------------------------
# Pairs of images
# ---------------------------------------------------------------------------------------------


def affine_registration(
    fixed: Image,
    moving: Image,
    fixed_affine: np.ndarray | None = None,
    moving_affine: np.ndarray | None = None,
    *,
    start: np.ndarray | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    settings: Settings | None = None,
) -> np.ndarray:
    """Affine registration of one pair, by optimisation.

    Args:
        fixed: the fixed image.
        moving: the moving image, on any grid.
        fixed_affine: ``(4, 4)`` RAS mm, of an array.
        moving_affine: likewise.
        start: initial ``(4, 4)``, from fixed point to moving point; None: the identity.
        fixed_mask: not 0 in voxels of the fixed image that don't count, on its grid.
        moving_mask: likewise.
        settings: of the block ``refine``: family, levels, iterations, ...

    Returns:
        ``(4, 4)`` float64, from fixed point to moving point, RAS mm.

    Raises:
        TractAtlasError: a setting breaks its rule, or a file can't be read.
        ValueError: an image is constant or not finite, or an array has no affine.

    Example:
        >>> x = np.linspace(-1, 1, 24)
        >>> fixed = np.exp(-8 * (x[:, None, None] ** 2 + 2 * x[:, None] ** 2 + 3 * x**2))
        >>> fixed = fixed * (1.5 + x[:, None, None]) * (1.5 + x[:, None])  # no symmetry
        >>> moving = np.roll(fixed, 2, axis=0)  # by 2 voxels of 1 mm
        >>> rigid = {"family": "rigid", "levels": [2, 1]}  # few levels: the image is small
        >>> found = affine_registration(fixed, moving, np.eye(4), np.eye(4), settings=rigid)
        >>> np.allclose(found[:3, 3], [2, 0, 0], atol=0.3)
        True
    """
    from scripts.registration.affine import AffineRefinement

    masks = (fixed_mask, moving_mask)
    asked, images = _pair(fixed, moving, fixed_affine, moving_affine, masks, settings)
    result = AffineRefinement.of(asked)(images[0], images[1], _tensor(start))
    return result.matrix.cpu().numpy()


def deformable_registration(
    fixed: Image,
    moving: Image,
    fixed_affine: np.ndarray | None = None,
    moving_affine: np.ndarray | None = None,
    *,
    start: np.ndarray | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    settings: Settings | None = None,
) -> Deformation:
    """Deformable registration of one pair after an affine, by optimisation.

    Args:
        fixed: the fixed image.
        moving: the moving image, on any grid.
        fixed_affine: ``(4, 4)`` RAS mm, of an array.
        moving_affine: likewise.
        start: ``(4, 4)``, from `affine_registration` for example; it stays fixed. None: the
        identity.
        fixed_mask: not 0 in voxels of the fixed image that don't count, on its grid; the
            displacement there continues that around them.
        moving_mask: likewise.
        settings: of the block ``refine``: levels, iterations, smoothness_weight, ...

    Returns:
        The deformation, for `warp`.

    Raises:
        TractAtlasError: a setting breaks its rule, or a file can't be read.
        ValueError: an image is constant or not finite, or an array has no affine.

    Example:
        >>> x = np.linspace(-1, 1, 24)
        >>> fixed = np.exp(-8 * (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2))
        >>> moving = np.exp(-8 * (1.5 * x[:, None, None] ** 2 + x[:, None] ** 2 + x**2))
        >>> found = deformable_registration(fixed, moving, np.eye(4), np.eye(4))
        >>> found.displacement.shape, found.smallest_jacobian > 0
        ((3, 24, 24, 24), True)
    """
    import torch

    from scripts.registration.deformable import ElasticRefinement

    masks = (fixed_mask, moving_mask)
    asked, images = _pair(fixed, moving, fixed_affine, moving_affine, masks, settings)
    found = ElasticRefinement.of(asked)(images[0], images[1], _tensor(start))
    affine = images[0].affine
    axes = torch.from_numpy(affine[:3, : len(images[0].shape)])

    def in_mm(voxels: torch.Tensor) -> np.ndarray:
        moves = torch.einsum("ij,j...->i...", axes, voxels[0].detach().cpu().double())
        return moves.numpy().reshape(3, *(*moves.shape[1:], 1)[:3])

    return Deformation(
        found.matrix.cpu().numpy(),
        in_mm(found.displacement),
        in_mm(found.inverse),
        affine,
        min(one["corner_min"] for one in found.jacobian.values()),
    )


def warp(
    image: Image,
    reference: Image,
    transforms: Sequence[str | Path | np.ndarray | Deformation],
    affine: np.ndarray | None = None,
    reference_affine: np.ndarray | None = None,
    *,
    nearest: bool = False,
) -> np.ndarray:
    """Resample an image to another grid through a chain of transforms, interpolating once.

    A point of the reference passes through the transforms in order, and the image is sampled at the
    result; outside the image the value is 0.

    Args:
        image: the image to warp.
        reference: the image whose grid the result gets.
        transforms: each a matrix ``(4, 4)`` RAS mm, a `Deformation`, or the path of an affine or a
            displacement field as ITK writes it. Empty: the identity.
        affine: ``(4, 4)`` RAS mm, of an array.
        reference_affine: likewise.
        nearest: use the nearest voxel, for labels.

    Returns:
        ``(X, Y, Z)`` of the reference, float32, with ``nearest`` in the image's own type;
        ``(X, Y)`` for a plane, ``(C, X, Y, Z)`` for a file of C channels.

    Raises:
        CohortError: a file can't be read.
        ValueError: an array has no affine, or a matrix isn't ``(4, 4)``.

    Example:
        >>> image = np.zeros((4, 4, 4))
        >>> image[2, 1, 1] = 1
        >>> shift = np.eye(4)
        >>> shift[0, 3] = 1  # a point of the reference is sampled 1 mm further along x
        >>> moved = warp(image, image, [shift], np.eye(4), np.eye(4))
        >>> np.argwhere(moved).tolist()
        [[1, 1, 1]]
    """
    from scripts.spatial.transforms import resample
    from scripts.spatial.volumes import read_grid

    volume, source = _volume("image", image, affine, labels=nearest)
    if isinstance(reference, np.ndarray):
        wanted = _volume("reference", reference, reference_affine)[1]
    else:
        wanted = read_grid(reference)
    chain = [step for one in transforms for step in _chain(one)]
    moved = resample(volume, source, chain, wanted, order=0 if nearest else 1)
    if wanted.shape[2] == 1:
        moved = moved[..., 0]
    return moved[0] if len(moved) == 1 else moved


# ---------------------------------------------------------------------------------------------
# Streamlines
# ---------------------------------------------------------------------------------------------


def density_map(
    streamlines: Fibres,
    reference: str | Path | Sequence[int],
    affine: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    ends: bool = False,
) -> np.ndarray:
    """Number of streamlines that visit each voxel; each counts once per voxel.

    Args:
        streamlines: a tractogram's path, or arrays ``(points, 3)`` in RAS mm.
        reference: an image whose grid is used, or a shape ``(X, Y, Z)``.
        affine: ``(4, 4)`` RAS mm, of a shape.
        weights: ``(n,)``, weight of each streamline; None: 1.
        ends: count only where streamlines begin and end.

    Returns:
        ``(X, Y, Z)`` float64, sum of weights.

    Raises:
        TractAtlasError: a file can't be read.
        ValueError: a shape is given without an affine, a point isn't finite, or the numbers of
            weights and streamlines differ.

    Example:
        >>> line = np.array([[0.0, 0, 0], [3, 0, 0]])
        >>> density_map([line, line], (4, 1, 1), np.eye(4))[:, 0, 0].tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    from scripts.spatial.volumes import read_reference
    from scripts.tractograms import DensityCounter

    if isinstance(reference, str | Path):
        grid = read_reference(reference)
    else:
        grid = _grid(tuple(reference), _affine("reference", affine))
    lines = _streamlines(streamlines)
    if not np.isfinite(lines.points).all():
        raise ValueError("streamlines: a point isn't finite; leave such streamlines out")
    if weights is not None and np.shape(weights) != (len(lines),):
        raise ValueError(
            f"weights of shape {np.shape(weights)}: must be one for each of {len(lines)} "
            "streamlines"
        )
    counter = DensityCounter(grid.shape, grid.affine, ends)
    counter.add(lines, None if weights is None else np.asarray(weights, dtype=np.float64))
    return counter.density.copy()


def warp_streamlines(
    streamlines: Fibres, transforms: Sequence[str | Path | np.ndarray | Deformation]
) -> list[np.ndarray]:
    """Streamlines whose points pass through transforms, the first one first.

    A transform that resamples an image of A onto the grid of B maps points of B to points of A.
    Streamlines of B therefore move to A by it, and streamlines of A to B by its inverse.

    Args:
        streamlines: a tractogram's path, or arrays ``(points, 3)`` in RAS mm.
        transforms: each a matrix ``(4, 4)`` RAS mm, a `Deformation`, or a path of an affine or a
            displacement field as ITK writes it.

    Returns:
        One array ``(points, 3)`` for each streamline, RAS mm.

    Raises:
        TractAtlasError: a file can't be read.
        ValueError: a matrix isn't ``(4, 4)``.

    Example:
        >>> shift = np.eye(4)
        >>> shift[0, 3] = 1
        >>> warp_streamlines([np.array([[0.0, 0, 0], [3, 0, 0]])], [shift])[0].tolist()
        [[1.0, 0.0, 0.0], [4.0, 0.0, 0.0]]
    """
    from scripts.applications.warp_streamlines import move_streamlines

    chain = [step for one in transforms for step in _chain(one)]
    moved = move_streamlines(_streamlines(streamlines), chain)
    return [moved[number] for number in range(len(moved))]


def tract_statistics(
    image: Image,
    tract: Image,
    *,
    threshold: float = 0.05,
    percentiles: Sequence[float] = (5, 95),
) -> dict[str, float | None]:
    """A scalar image under one tract's map, weighted by the map.

    Args:
        image: such as FA, on the tract's grid.
        tract: density or probability of the tract in the image's space.
        threshold: fraction of the map's largest value above which a voxel belongs to the tract.
        percentiles: per cent, beside the median.

    Returns:
        ``mean``, ``sd``, ``median``, ``p<percentile>``; None if the map is empty.

    Raises:
        CohortError: a file can't be read.
        ValueError: the shapes differ, or the tract has several channels.

    Example:
        >>> tract = np.array([[[0.0, 1.0, 3.0]]])
        >>> tract_statistics(np.array([[[9.0, 2.0, 6.0]]]), tract)["mean"]
        5.0
    """
    from scripts.metrics.tracts import weighted_statistics

    values, weights = (_values(name, one) for name, one in (("image", image), ("tract", tract)))
    if values.shape != weights.shape:
        raise ValueError(
            f"image of shape {values.shape}: must have the shape of the tract, {weights.shape}"
        )
    inside = weights > threshold * weights.max(initial=0.0)
    return weighted_statistics(values[inside], weights[inside], percentiles)


def fuse_labels(labels: Sequence[np.ndarray]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Fuse label maps that lie in one space, such as ``..._space-template_dseg.nii.gz``.

    Args:
        labels: arrays of whole numbers of one shape, 0 for background.

    Returns:
        The most probable label of each voxel (of equally probable ones the smallest), and the
        share of the maps with each label.

    Raises:
        ValueError: there are none, their shapes differ, or they aren't whole numbers.

    Example:
        >>> majority, shares = fuse_labels([np.array([0, 7, 7]), np.array([0, 7, 0])])
        >>> majority.tolist(), shares[7].tolist()
        ([0, 7, 0], [0.0, 1.0, 0.5])
    """
    from scripts.spatial.label_fusion import fused

    if not labels or len({one.shape for one in labels}) > 1:
        raise ValueError("labels: must be arrays of one shape")
    if any(one.dtype.kind not in "iu" for one in labels):
        raise ValueError("labels: must be whole numbers")
    sums = fused(labels, labels[0].shape)
    return sums.majority(), {label: sums.probability(label) for label in sums.labels}


def transfer_labels(
    subject: Fibres,
    atlas: Fibres,
    labels: np.ndarray | None = None,
    settings: Settings | None = None,
) -> np.ndarray:
    """Propagate classes from an atlas of labelled streamlines to those of a subject.

    Args:
        subject: a tractogram's path, or arrays ``(points, 3)`` in RAS mm, in the atlas's space.
        atlas: likewise, or a folder with one tractogram per class.
        labels: ``(M,)`` whole numbers from 0, the class of each of the atlas's streamlines; None:
            from the atlas's files.
        settings: of the block ``label_transfer``: blur, reach, outlier_threshold, ...

    Returns:
        ``(N,)`` int64, the atlas's class numbers; -1 for a streamline that resembles no class.

    Raises:
        TractAtlasError: settings or files can't be used.
        ValueError: labels are missing, or their number isn't that of the atlas's streamlines.

    Example:
        >>> line = np.stack([np.linspace(0, 50, 10), np.zeros(10), np.zeros(10)], axis=1)
        >>> above = line + [0, 0, 60]
        >>> transfer_labels([line + 1, above + 1, line], [line, above], np.array([3, 7])).tolist()
        [3, 7, 3]
    """
    from scripts.settings.label_transfer import LabelTransferConfig
    from scripts.transport.features import fibre_features
    from scripts.transport.labelling import OUTLIER, label_fibres
    from scripts.transport.segmented_atlas import read_atlas

    asked = LabelTransferConfig.load(settings)
    if labels is None:
        if not isinstance(atlas, str | Path):
            raise ValueError("labels = None: an atlas of arrays needs a class for each streamline")
        read = read_atlas(atlas, asked.labels, asked.names)
        lines, numbers = read.streamlines, read.ids[read.classes]
    else:
        lines, numbers = _streamlines(atlas), np.asarray(labels)
    whole = np.issubdtype(numbers.dtype, np.integer)
    if numbers.shape != (len(lines),) or not whole or numbers.min(initial=0) < 0:
        raise ValueError(
            f"labels of shape {numbers.shape} and type {numbers.dtype}: must be a whole number "
            f"from 0 for each of the atlas's {len(lines)} streamlines"
        )
    of_subject, of_atlas = (
        fibre_features(one, asked.n_points, asked.end_weight)
        for one in (_streamlines(subject), lines)
    )
    if not len(of_atlas.kept):
        raise ValueError("atlas: has no streamline with a length")
    ids, classes = np.unique(numbers[of_atlas.kept], return_inverse=True)
    found = label_fibres(of_subject.vectors, of_atlas.vectors, classes, asked).classes
    result = np.full(of_subject.count, OUTLIER, dtype=np.int64)
    result[of_subject.kept] = np.where(found == OUTLIER, OUTLIER, ids[found])
    return result


# ---------------------------------------------------------------------------------------------
# Stacks of serial sections
# ---------------------------------------------------------------------------------------------


def register_stack(
    sections: Sections,
    output_dir: str | Path,
    spacing: Sequence[float] | None = None,
    unit: str = "micrometer",
    settings: Settings | None = None,
) -> Path:
    """Register the sections of a stack to one frame, as the verb ``register-stack`` does.

    An array is first written to ``<output_dir>/stack/sections.zarr``.

    Args:
        sections: a path (OME-Zarr, zarr array, NIfTI volume, folder of images, multi-page TIFF),
            or an array ``(sections, rows, columns)``, with 3 or 4 colours at most as a last axis.
        output_dir: destination of the registered stack.
        spacing: z, y, x. Required for an array; for a path it overrides the file's.
        unit: of the spacing: ``nanometer``, ``micrometer``, ``millimeter``, ...
        settings: of the block ``register_stack``.

    Returns:
        The published folder, with ``registered.zarr`` and ``transforms.json``.

    Raises:
        TractAtlasError: settings, sections or folders can't be used; the message says why.
        ValueError: an array has no spacing, or isn't a stack of sections.

    Example:
        >>> x = np.linspace(-1, 1, 64)
        >>> organ = np.exp(-4 * ((x[:, None] + 0.1 * np.sin(9 * x)) ** 2 + 2 * x**2))
        >>> sections = np.stack([np.roll(organ, shift, 1) for shift in (0, 3, 1)])
        >>> found = register_stack(sections, folder / "registered", (50, 10, 10))
        >>> import json
        >>> placed = json.loads((found / "transforms.json").read_text())["sections"]
        >>> [round(section["composed"][1][2]) for section in placed]  # columns
        [0, 3, 1]
    """
    stack = _as_stack(sections, output_dir, spacing, unit)
    block = dict(settings or {})
    if spacing is not None:
        block |= {"spacing": [float(one) for one in spacing], "unit": unit}
    values = {"stack": stack, "output_dir": str(output_dir)}
    job = _config("register_stack.yaml", values, "register_stack", block)
    return Path(_run(job, "registering", "$@registration.folder"))


def apply_stack(
    sections: Sections,
    transforms: str | Path,
    output_dir: str | Path,
    spacing: Sequence[float] | None = None,
    unit: str = "micrometer",
    settings: Settings | None = None,
) -> Path:
    """Bring other images of registered sections to their frame, as ``apply-stack`` does.

    Args:
        sections: another channel, labels, or another resolution; see `register_stack`.
        transforms: ``transforms.json`` of the registration.
        output_dir: destination; not that of the registration.
        spacing: z, y, x. Required for an array; for a path it overrides the file's.
        unit: of the spacing.
        settings: of the block ``apply_stack``, such as ``{"interpolation": "nearest"}``.

    Returns:
        The published folder, with ``registered.zarr``.

    Raises:
        TractAtlasError: settings, sections, transforms or folders can't be used.
        ValueError: an array has no spacing, or isn't a stack of sections.

    Example:
        >>> x = np.linspace(-1, 1, 64)
        >>> organ = np.exp(-4 * ((x[:, None] + 0.1 * np.sin(9 * x)) ** 2 + 2 * x**2))
        >>> sections = np.stack([np.roll(organ, shift, 1) for shift in (0, 3, 1)])
        >>> found = register_stack(sections, folder / "stained", (50, 10, 10))
        >>> labels = (sections > 0.5).astype(np.uint8)
        >>> moved = apply_stack(
        ...     labels, found / "transforms.json", folder / "labels", (50, 10, 10),
        ...     settings={"interpolation": "nearest"},
        ... )
        >>> import zarr
        >>> first, second, third = zarr.open_array(moved / "registered.zarr/0", mode="r")[:]
        >>> bool(np.mean(first != second) < 0.01 and np.mean(first != third) < 0.01)
        True
    """
    stack = _as_stack(sections, output_dir, spacing, unit)
    block = dict(settings or {})
    if spacing is not None:
        block |= {"spacing": [float(one) for one in spacing], "unit": unit}
    values = {"stack": stack, "transforms": str(transforms), "output_dir": str(output_dir)}
    job = _config("apply_stack.yaml", values, "apply_stack", block)
    return Path(_run(job, "applying", "$@application.folder"))


# ---------------------------------------------------------------------------------------------
# Arguments of the callers
# ---------------------------------------------------------------------------------------------


def _affine(name: str, affine: np.ndarray | None) -> np.ndarray:
    if affine is None or np.shape(affine) != (4, 4):
        told = "None" if affine is None else f"an array of shape {np.shape(affine)}"
        raise ValueError(f"affine of {name} = {told}: must be (4, 4), voxels to RAS mm")
    return np.asarray(affine, dtype=np.float64)


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    import nibabel as nib

    from scripts.spatial.grid import Grid

    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a grid of shape {shape}: must have three axes of at least one voxel")
    header = nib.Nifti1Header()
    header["sform_code"] = 1
    return Grid(tuple(int(n) for n in shape), affine, header)


def _volume(
    name: str, image: Image, affine: np.ndarray | None, labels: bool = False
) -> tuple[np.ndarray, Grid]:
    """``(C, X, Y, Z)`` and its grid, a plane having Z = 1; float64, labels in their own type."""
    if isinstance(image, str | Path):
        from scripts.spatial.volumes import read_labels, read_volume

        return read_labels(image) if labels else read_volume(image)
    values = np.asarray(image) if labels else np.asarray(image, dtype=np.float64)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or not values.size:
        raise ValueError(f"{name} of shape {np.shape(image)}: must be (X, Y) or (X, Y, Z)")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: contains values that aren't finite")
    return values[None], _grid(values.shape, _affine(name, affine))


def _pair(
    fixed: Image,
    moving: Image,
    fixed_affine: np.ndarray | None,
    moving_affine: np.ndarray | None,
    masks: tuple[Image | None, Image | None],
    settings: Settings | None,
) -> tuple[Any, list[WorldImage]]:
    """Settings of a refinement, and both images prepared for it."""
    from scripts.networks.precision import open_device
    from scripts.registration.images import normalised, read_image
    from scripts.settings.refine import RefineConfig

    # The images come from the caller; the paths of the block only have to satisfy their rules.
    asked = RefineConfig.load({"fixed": "fixed", "moving": ["moving"], **(settings or {})})
    if asked.fixed_mask is not None or asked.moving_mask is not None:
        raise ValueError("masks in settings: must be given as fixed_mask and moving_mask")
    device = open_device(asked.device)
    images = []
    for name, image, affine, mask in (
        ("fixed", fixed, fixed_affine, masks[0]), ("moving", moving, moving_affine, masks[1]),
    ):  # fmt: skip
        values, grid = _volume(name, image, affine)
        hole = None
        if mask is not None:
            hole = _volume(f"{name}_mask", mask, affine, labels=True)[0] != 0
            if hole.shape != (1, *values.shape[1:]) or hole.all():
                raise ValueError(
                    f"{name}_mask of shape {hole.shape[1:]}: must have the image's shape, "
                    f"{values.shape[1:]}, and be 0 somewhere"
                )
            values = np.where(hole, 0, values)
        planar = grid.shape[2] == 1
        one = read_image(normalised(values, asked.log_offset), grid, 2 if planar else 3, device)
        if hole is not None:
            one = one.without(_tensor_of(hole.reshape(one.shape)))
        images.append(one.without_background() if asked.background == "unknown" else one)
    if images[0].values.ndim != images[1].values.ndim:
        raise ValueError("fixed and moving: must both be planes or both volumes")
    return asked, images


def _tensor_of(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


def _tensor(matrix: np.ndarray | None) -> Any:
    import torch

    return None if matrix is None else torch.from_numpy(_affine("start", matrix))


def _chain(transform: str | Path | np.ndarray | Deformation) -> list[Any]:
    from scripts.spatial.transform_files import TransformFile, read_transform
    from scripts.spatial.transforms import AffineTransform, FieldTransform

    if isinstance(transform, str | Path):
        return [read_transform(TransformFile(Path(transform)))]
    if isinstance(transform, Deformation):
        field = transform.displacement
        grid = _grid(field.shape[1:], transform.affine)
        return [FieldTransform(field, grid), AffineTransform(transform.matrix)]
    return [AffineTransform(_affine("a transform", transform))]


def _values(name: str, image: Image) -> np.ndarray:
    """The voxels of an image of one channel; an array needs no affine here."""
    if isinstance(image, np.ndarray):
        return image
    volume, _ = _volume(name, image, None)
    if len(volume) != 1:
        raise ValueError(f"{image}: has {len(volume)} channels; must have one")
    return volume[0]


def _streamlines(fibres: Fibres) -> Streamlines:
    from scripts.tractograms import Streamlines, open_tractogram

    if isinstance(fibres, str | Path):
        return open_tractogram(fibres).read(finite=False)
    return Streamlines.of(fibres)


def _as_stack(
    sections: Sections, output_dir: str | Path, spacing: Sequence[float] | None, unit: str
) -> str:
    """The path of a stack; an array is written first."""
    if isinstance(sections, str | Path):
        return str(sections)
    if spacing is None:
        raise ValueError("spacing of sections = None: an array needs its z, y, x")
    from scripts.stack.arrays import write_sections

    return str(write_sections(Path(output_dir) / "stack", np.asarray(sections), spacing, unit))


# ---------------------------------------------------------------------------------------------
# Whole jobs
# ---------------------------------------------------------------------------------------------


def _write(path: Path, image: np.ndarray, affine: np.ndarray | None) -> None:
    import nibabel as nib

    from scripts.runtime.storage import check_writable
    from scripts.spatial.image_files import write_nifti

    matrix = _affine(path.name, affine)
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, nib.Nifti1Image(np.asarray(image, dtype=np.float32), matrix))


def _as_cohort(
    maps: Images,
    affine: np.ndarray | None,
    output_dir: Path,
    settings: Settings | None,
    own: bool = False,
) -> tuple[str | list[str], dict[str, Any]]:
    """A dataset folder or paths of files, and the matching settings.

    Args:
        maps: argument of the caller.
        affine: of arrays.
        output_dir: arrays are written below it.
        settings: of the caller.
        own: a model gives layout and normalisation, and arrays are passed as files.
    """
    block = dict(settings or {})
    if isinstance(maps, str | Path):
        return str(maps), block
    listed = list(maps)
    if all(isinstance(one, str | Path) for one in listed) and listed:
        return [str(one) for one in listed], block
    if not listed or not all(isinstance(one, np.ndarray) for one in listed):
        raise ValueError("maps: must be a folder, a list of paths, or a list of arrays")
    shapes = {one.shape for one in listed if isinstance(one, np.ndarray)}
    if len(shapes) > 1:
        raise ValueError(f"maps of shapes {sorted(shapes)}: must be on one grid")
    from scripts.runtime.ownership import check_contents, write_mark

    folder = output_dir / "cohort"
    check_contents(folder)
    paths = [folder / f"subject_{number:03d}.nii.gz" for number in range(1, len(listed) + 1)]
    for stale in set(folder.glob("subject_*.nii.gz")) - set(paths):
        stale.unlink()  # of an earlier, larger cohort
    for path, one in zip(paths, listed, strict=True):
        assert isinstance(one, np.ndarray)
        _write(path, one, affine)
    write_mark(folder)
    if own:
        return [str(path) for path in paths], block
    cohort = {"layout": "flat", "normalisation": "none", **block.get("cohort", {})}
    return str(folder), {**block, "cohort": cohort}


def _with_masks(
    masks: Sequence[np.ndarray | None],
    affine: np.ndarray | None,
    output_dir: Path,
    source: str | list[str],
    block: dict[str, Any],
) -> dict[str, Any]:
    """Settings that name masks, which are written to ``<output_dir>/cohort_masks``."""
    names = [] if isinstance(source, str) else [Path(path).name for path in source]
    if affine is None or len(masks) != len(names):
        raise ValueError(f"{len(masks)} masks: must be one per array of maps, or None for it")
    from scripts.runtime.ownership import check_contents, write_mark

    folder = output_dir / "cohort_masks"
    check_contents(folder)
    folder.mkdir(exist_ok=True)
    for name, mask in zip(names, masks, strict=True):
        (folder / name).unlink(missing_ok=True)
        if mask is not None:
            _write(folder / name, np.asarray(mask != 0, dtype=np.float64), affine)
    write_mark(folder)
    pattern = str((folder / "{subject}.nii.gz").absolute())
    return {**block, "cohort": {**block.get("cohort", {}), "mask": pattern}}


def _config(
    name: str, values: Mapping[str, Any], block: str, settings: Settings, over: str | None = None
) -> dict[str, Any]:
    """A shipped configuration with the caller's values and settings in it, as objects.

    Args:
        name: its file.
        values: by key of its top level.
        block: key of its settings.
        settings: for that block.
        over: a second file, whose values replace those of the first.
    """
    from monai.bundle import ConfigParser

    config = ConfigParser.load_config_file(str(_CONFIGS / name))
    for key, value in (ConfigParser.load_config_file(str(_CONFIGS / over)) if over else {}).items():
        *sections, last = key.split("#")
        place = config
        for section in sections:
            place = place[section]
        place[last] = value
    for key, value in values.items():
        config[key] = given(value)
    _lay_over(config[block], settings)
    return config


def _lay_over(section: dict[str, Any], settings: Settings) -> None:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            if not isinstance(section.get(key), dict):
                section[key] = {}
            _lay_over(section[key], value)
        else:
            section[key] = given(value)


def _run(config: dict[str, Any], run_id: str, asked: str | None = None) -> Any:
    """Run a configuration; raise user errors directly, without MONAI's wrapping.

    Args:
        config: see `_config`.
        run_id: id of what to run.
        asked: an expression whose value is returned.
    """
    from monai.bundle import ConfigParser

    parser: ConfigParser = ConfigParser(config)
    if asked is not None:
        parser["asked_by_api"] = asked
    hook = sys.excepthook  # jobs install one for the command line; a notebook keeps its own
    try:
        parser.get_parsed_content(run_id)
        return None if asked is None else parser.get_parsed_content("asked_by_api")
    except Exception as error:
        explained = find_user_error(error)
        if explained is None or explained is error:
            raise
        raise explained from error
    finally:
        sys.excepthook = hook
