"""Typed settings of the label transfer; rules as in `scripts.settings.section`."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import field_validator

from scripts.settings.section import Section, setting
from scripts.settings.values import FilePath, Integer, Number, Size, Text

__all__ = ["LabelTransferConfig", "load_label_transfer"]


class LabelTransferConfig(Section):
    """The whole ``label_transfer:`` block."""

    key_path: ClassVar[str] = "label_transfer"

    labels: Text = setting(
        "label",
        "The classes of the atlas: the name of a per-streamline value, or a text or .npy file with "
        "a whole number per streamline. In a TRX without such a value, the groups are the classes; "
        "in a folder, the tractograms are. A negative number means no class.",
        "non-empty text",
    )
    names: FilePath | None = setting(
        None, "JSON file with a name for each class number. Null: numbers.", "null or a path"
    )
    n_points: Integer = setting(
        20, "Points that every streamline is resampled to.",
        ge=2, le=1000,
    )  # fmt: skip
    end_weight: Number = setting(
        2.0,
        "Factor on the coordinates of both ends: their squared distances are multiplied by its "
        "square.",
        gt=0,
    )
    blur: Number = setting(3.0, "Distance below which fibres count as equal, mm.", gt=0)
    reach: Number = setting(
        20.0,
        "Distance beyond which it is cheaper to leave a fibre unmatched than to match it, mm.",
        gt=0,
    )
    scaling: Number = setting(
        0.5,
        "Ratio of the blurs of successive iterations; closer to 1 is slower and converges further.",
        gt=0,
        lt=1,
    )
    outlier_threshold: Number = setting(
        0.2,
        "A fibre whose largest class mass is below this is an outlier.",
        ge=0,
        le=1,
    )
    solver: Literal["auto", "dense", "multiscale", "geomloss"] = setting(
        "auto",
        "dense: all pairs of fibres in every iteration; multiscale: first between clusters, then "
        "between fibres of relevant pairs of clusters; auto: multiscale from 2,000,000 pairs; "
        "geomloss: GeomLoss' multiscale solver (needs geomloss and pykeops; else ours is used).",
        "auto, dense, multiscale or geomloss",
    )
    n_clusters: Size | None = setting(
        None,
        "Number of clusters on each side for multiscale and geomloss. Null: a tenth of the fibres, "
        "at most 1,000.",
        ge=1,
    )
    seed: Integer = setting(0, "Of the clusters' first centres.", ge=0)
    device: Text = setting("cpu", "Where to compute.", "cpu, cuda or cuda:<number>")
    threads: Size | None = setting(None, "Threads on a CPU. Null: torch's setting.", ge=1)
    format: Literal["trk", "tck", "trx", "vtk", "npy"] | None = setting(
        None,
        "Format of the written tractograms. Null: the subject's format. npy needs streamlines "
        "with one number of points.",
        "null, trk, tck, trx, vtk or npy",
    )  # fmt: skip

    vtk_space: Literal["auto", "ras", "lps"] = setting(
        "auto",
        "World coordinates of the points in VTK files: auto takes the space in the title, else "
        "LPS for .fib and RAS for .vtk; dipy writes .vtk in lps.",
        "auto, ras or lps",
    )

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: str) -> str:
        if not labels.strip():
            raise ValueError("is empty")
        return labels

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
            raise ValueError("is not a device")
        return device


load_label_transfer = LabelTransferConfig.of_config
