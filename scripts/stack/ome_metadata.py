"""Metadata of the arrays of a zarr group: axes, spacing, units (OME-Zarr 0.4 and 0.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.settings.stack import UNITS

__all__ = ["ArrayMetadata", "Multiscale", "multiscale_attributes", "read_multiscale"]


@dataclass(frozen=True)
class ArrayMetadata:
    """An array of a group, and its metadata.

    Attributes:
        path: inside the group.
        axes: names, one an axis.
        kinds: space, channel or time, one an axis.
        scale: distance of the samples along each axis.
        translation: centre of the first sample.
        units: of each axis; None if it has none.
    """

    path: str
    axes: tuple[str, ...]
    kinds: tuple[str, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]

    def spacing(self) -> tuple[float, float, float]:
        """Along z, y and x."""
        by_name = dict(zip(self.axes, self.scale, strict=True))
        return (by_name["z"], by_name["y"], by_name["x"])

    def unit(self) -> str | None:
        """The unit of the axes in space; None if there is no known one.

        Raises:
            ValueError: they have different ones.
        """
        names = {
            unit
            for unit, kind in zip(self.units, self.kinds, strict=True)
            if kind == "space" and unit in UNITS
        }
        if len(names) > 1:
            raise ValueError(f"axes have different units: {', '.join(sorted(map(str, names)))}")
        return next(iter(names), None)


@dataclass(frozen=True)
class Multiscale:
    """The arrays of a group, the finest one first."""

    arrays: tuple[ArrayMetadata, ...]

    def of(self, path: str) -> ArrayMetadata | None:
        """Metadata of an array; None if it is not one of these."""
        return next((one for one in self.arrays if one.path == path.strip("/")), None)


def read_multiscale(attributes: Mapping[str, Any]) -> Multiscale | None:
    """The first multiscale image of a group; None for a group that is none.

    Raises:
        ValueError: the metadata can't be understood.
    """
    ome = attributes.get("ome")
    holder = ome if isinstance(ome, Mapping) else attributes
    images = holder.get("multiscales")
    if images is None:
        return None
    try:
        image = images[0]
        axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image["axes"]]
        names = tuple(str(axis["name"]) for axis in axes)
        kinds = tuple(
            str(axis.get("type") or _kind(name)) for axis, name in zip(axes, names, strict=False)
        )
        units = tuple(
            unit if isinstance(unit, str) else None for unit in (axis.get("unit") for axis in axes)
        )
        common = _transform(image.get("coordinateTransformations"), len(names))
        arrays = []
        for dataset in image["datasets"]:
            scale, shift = _transform(dataset.get("coordinateTransformations"), len(names))
            scale, shift = scale * common[0], shift * common[0] + common[1]
            arrays.append(
                ArrayMetadata(
                    str(dataset["path"]).strip("/"),
                    names,
                    kinds,
                    tuple(scale.tolist()),
                    tuple(shift.tolist()),
                    units,
                )
            )
    except (
        KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError,
    ) as error:  # fmt: skip
        raise ValueError(f"its multiscales metadata can't be understood ({error!r})") from error
    if not arrays:
        raise ValueError("its multiscales metadata names no array")
    return Multiscale(tuple(arrays))


def _kind(name: str) -> str:
    return {"t": "time", "c": "channel"}.get(name, "space")


def _transform(given: Any, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation of a list of coordinate transformations."""
    scale, shift = np.ones(axes), np.zeros(axes)
    for one in given or ():
        values = np.asarray(one.get(one["type"], np.ones(axes)), dtype=np.float64)
        if one["type"] in ("scale", "translation") and values.shape != (axes,):
            raise ValueError(f"a {one['type']} has {values.shape} values for {axes} axes")
        if not np.isfinite(values).all():
            raise ValueError(f"a {one['type']} is not finite")
        if one["type"] == "scale":
            scale, shift = scale * values, shift * values
        elif one["type"] == "translation":
            shift = shift + values
    return scale, shift


def multiscale_attributes(
    name: str,
    unit: str,
    spacing: Sequence[float],
    translation: Sequence[float],
    levels: int,
    channels: bool,
    picked: bool = False,
) -> dict[str, Any]:
    """The ``ome`` attributes (0.5) of an image whose rows and columns are halved level by level.

    A halved pixel is the mean of two: its centre is half a pixel further, which is in the
    translations of the levels.

    Args:
        name: of the image.
        unit: of the three axes.
        spacing: z, y, x of the finest level.
        translation: z, y, x of its first pixel's centre.
        levels: how many.
        channels: whether a channel axis comes first.
        picked: whether a level takes every other pixel instead: then nothing moves.
    """
    axes = [{"name": axis, "type": "space", "unit": unit} for axis in "zyx"]
    lead: list[float] = []
    if channels:
        axes.insert(0, {"name": "c", "type": "channel"})
        lead = [1.0]
    datasets = []
    for level in range(levels):
        factors = np.array([1.0, 2.0**level, 2.0**level])
        moved = 0.0 if picked else (factors - 1) / 2
        shift = np.asarray(translation) + moved * np.asarray(spacing)
        scale = (np.asarray(spacing) * factors).tolist()
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*lead, *scale]},
                    {"type": "translation", "translation": [*(0.0 for _ in lead), *shift.tolist()]},
                ],
            }
        )
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": axes,
                "datasets": datasets,
                "type": "nearest" if picked else "mean",
            }
        ],
    }
