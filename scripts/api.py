"""The bundle for a notebook: functions that take arrays or paths, and affines.

An image is the path of a NIfTI file, or an array ``(X, Y)`` or ``(X, Y, Z)`` with its affine. An
affine is ``(4, 4)``, from voxel indices to world millimetres (RAS). A transform maps points of the
fixed image to points of the moving image, in RAS mm.

Torch and monai are imported by the functions that need them, so importing this module is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.spatial.deformation import Deformation

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
        TractAtlasError: settings, cohort, device or folders can't be used.
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

        Without training, by one round of the network that comes with the bundle:

        >>> settings = {
        ...     "min_subjects": 3, "device": "cpu", "refine": {"network_rounds": 1, "rounds": 0}
        ... }
        >>> atlas = learn_atlas(
        ...     maps, folder / "quick", np.eye(4), settings=settings, training=False
        ... )
        >>> (atlas / "atlas_mean.nii.gz").is_file()
        True
    """
    from scripts.cohort.subject_arrays import map_source
    from scripts.engines.jobs import job_config, run_job

    output = Path(output_dir)
    source = map_source(maps, affine, output)
    models = output / "models" if ckpt_dir is None else Path(ckpt_dir)
    values: dict[str, Any] = {"output_dir": str(output), "ckpt_dir": str(models)}
    if source.folder is not None:
        values["dataset_dir"] = source.folder
    else:
        values["train#dataset#data"] = [{"image": file} for file in source.files]
    if training:
        values["learned_atlas#model#initial"] = None
    over = None if training else "build.yaml"
    job = job_config("train.yaml", values, "learned_atlas", source.with_layout(settings), over)
    return output / str(run_job(job, "training", "$@settings.output_subdir"))


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
        >>> registered = register([blob], models, folder / "new", np.eye(4), settings)
        >>> sorted(path.name for path in registered.iterdir())
        ['dataset_description.json', 'subject_001']
    """
    from scripts.cohort.subject_arrays import map_source, subject_masks
    from scripts.engines.jobs import job_config, run_job

    if template is None and ckpt_dir is None:
        raise ValueError("register needs ckpt_dir, the folder of a model, or template, a map")
    output = Path(output_dir)
    source = map_source(maps, affine, output)
    block = dict(settings or {})
    if masks is not None:
        pattern = subject_masks(masks, affine, source, output)
        block["cohort"] = {**block.get("cohort", {}), "mask": pattern}
    values: dict[str, Any] = {"output_dir": str(output)}
    values |= {"input": list(source.files)} if source.files else {"dataset_dir": source.folder}
    values |= {"ckpt_dir": str(ckpt_dir)} if template is None else {"template": str(template)}
    run_job(job_config("inference.yaml", values, "learned_atlas", block), "registering")
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
    from scripts.cohort.subject_arrays import map_source
    from scripts.engines.jobs import job_config, run_job

    output = Path(output_dir)
    source = map_source(maps, affine, output)
    if source.folder is None:
        raise ValueError("average takes a dataset folder or arrays, not paths of files")
    values = {"output_dir": str(output), "dataset_dir": source.folder}
    block = source.with_layout(settings)
    run_job(job_config("average.yaml", values, "learned_atlas", block), "averaging")
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
    from scripts.cohort.subject_arrays import write_native_images
    from scripts.registration.align_cohort import CohortAligner
    from scripts.settings.align import AlignConfig

    block = dict(settings or {})
    if isinstance(images, str | Path):
        folder = Path(images)
    else:
        folder = Path(output_dir) / "native"
        write_native_images(images, list(affines or []), folder)
        block = {"image": "{subject}/image.nii.gz", **block}
    return CohortAligner(folder, AlignConfig.load(block), output_dir).run()


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
        >>> matrix = affine_registration(fixed, moving, np.eye(4), np.eye(4), settings=rigid)
        >>> np.allclose(matrix[:3, 3], [2, 0, 0], atol=0.3)
        True
    """
    from scripts.registration.affine import AffineRefinement
    from scripts.registration.pair_arrays import prepare_pair

    affines, masks = (fixed_affine, moving_affine), (fixed_mask, moving_mask)
    pair = prepare_pair((fixed, moving), affines, masks, start, settings)
    result = AffineRefinement.of(pair.settings)(pair.fixed, pair.moving, pair.start)
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
            displacement in them continues the one around them.
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
        >>> deformation = deformable_registration(fixed, moving, np.eye(4), np.eye(4))
        >>> deformation.displacement.shape, deformation.smallest_jacobian > 0
        ((3, 24, 24, 24), True)
    """
    from scripts.registration.deformable import ElasticRefinement
    from scripts.registration.pair_arrays import deformation_of, prepare_pair

    affines, masks = (fixed_affine, moving_affine), (fixed_mask, moving_mask)
    pair = prepare_pair((fixed, moving), affines, masks, start, settings)
    result = ElasticRefinement.of(pair.settings)(pair.fixed, pair.moving, pair.start)
    return deformation_of(result, pair.fixed.affine)


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
    from scripts.spatial.image_arrays import grid_of_image, transforms_of, volume_of
    from scripts.spatial.transforms import resample

    volume, source = volume_of("image", image, affine, labels=nearest)
    grid = grid_of_image("reference", reference, reference_affine)
    chain = [step for one in transforms for step in transforms_of(one)]
    warped = resample(volume, source, chain, grid, order=0 if nearest else 1)
    if grid.shape[2] == 1:
        warped = warped[..., 0]
    return warped[0] if len(warped) == 1 else warped


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
    from scripts.spatial.image_arrays import check_affine, grid_of
    from scripts.spatial.volumes import read_reference
    from scripts.tractograms import DensityCounter, streamlines_of

    if isinstance(reference, str | Path):
        grid = read_reference(reference)
    else:
        grid = grid_of(tuple(reference), check_affine("reference", affine))
    lines = streamlines_of(streamlines)
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
    from scripts.spatial.image_arrays import transforms_of
    from scripts.tractograms import streamlines_of

    chain = [step for one in transforms for step in transforms_of(one)]
    warped = move_streamlines(streamlines_of(streamlines), chain)
    return [warped[number] for number in range(len(warped))]


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
    from scripts.spatial.image_arrays import values_of

    values, weights = values_of("image", image), values_of("tract", tract)
    if values.shape != weights.shape:
        raise ValueError(
            f"image of shape {values.shape}: must have the shape of the tract, {weights.shape}"
        )
    inside = weights > threshold * weights.max(initial=0.0)
    return weighted_statistics(values[inside], weights[inside], percentiles)


def fuse_labels(labels: Sequence[np.ndarray]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Fuse label maps in one space, such as ``..._space-template_dseg.nii.gz``.

    Args:
        labels: arrays of whole numbers of one shape, 0 for background.

    Returns:
        The most probable label of each voxel (of equally probable ones the smallest), and the
        share of the maps with each label.

    Raises:
        ValueError: the list is empty, shapes differ, or values aren't whole numbers.

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
    from scripts.tractograms import streamlines_of
    from scripts.transport.streamline_labels import label_streamlines, labelled_atlas

    config = LabelTransferConfig.load(settings)
    if labels is not None:
        lines, numbers = streamlines_of(atlas), np.asarray(labels)
    elif isinstance(atlas, str | Path):
        lines, numbers = labelled_atlas(atlas, config)
    else:
        raise ValueError("labels = None: an atlas of arrays needs a class for each streamline")
    return label_streamlines(streamlines_of(subject), lines, numbers, config)


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
        >>> registered = register_stack(sections, folder / "registered", (50, 10, 10))
        >>> import json
        >>> placed = json.loads((registered / "transforms.json").read_text())["sections"]
        >>> [round(section["composed"][1][2]) for section in placed]  # columns
        [0, 3, 1]
    """
    from scripts.engines.jobs import job_config, run_job
    from scripts.stack.arrays import stack_input

    stack, block = stack_input(sections, output_dir, spacing, unit, settings)
    values = {"stack": stack, "output_dir": str(output_dir)}
    job = job_config("register_stack.yaml", values, "register_stack", block)
    return Path(run_job(job, "registering", "$@registration.folder"))


def apply_stack(
    sections: Sections,
    transforms: str | Path,
    output_dir: str | Path,
    spacing: Sequence[float] | None = None,
    unit: str = "micrometer",
    settings: Settings | None = None,
) -> Path:
    """Apply transforms of sections to other images of them, as the verb ``apply-stack`` does.

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
        >>> registered = register_stack(sections, folder / "stained", (50, 10, 10))
        >>> labels = (sections > 0.5).astype(np.uint8)
        >>> moved = apply_stack(
        ...     labels, registered / "transforms.json", folder / "labels", (50, 10, 10),
        ...     settings={"interpolation": "nearest"},
        ... )
        >>> import zarr
        >>> first, second, third = zarr.open_array(moved / "registered.zarr/0", mode="r")[:]
        >>> bool(np.mean(first != second) < 0.01 and np.mean(first != third) < 0.01)
        True
    """
    from scripts.engines.jobs import job_config, run_job
    from scripts.stack.arrays import stack_input

    stack, block = stack_input(sections, output_dir, spacing, unit, settings)
    values = {"stack": stack, "transforms": str(transforms), "output_dir": str(output_dir)}
    job = job_config("apply_stack.yaml", values, "apply_stack", block)
    return Path(run_job(job, "applying", "$@application.folder"))
