"""Typed settings of the label transfer; rules as in `scripts.settings.section`."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import field_validator

from scripts.settings.section import (
    FilePath,
    Integer,
    Number,
    Section,
    Size,
    Text,
    setting,
)

__all__ = ["LabelTransferConfig", "load_label_transfer"]


class LabelTransferConfig(Section):
    """The whole ``label_transfer:`` block."""

    key_path: ClassVar[str] = "label_transfer"

    labels: Text = setting(
        "label",
        "Where the atlas's classes stand: the name of a per-streamline value, or a text file with "
        "a whole number per streamline. A TRX without such a value gives its groups; a folder "
        "gives a class for each tractogram in it. A negative number stands for no class.",
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
        "Factor on both ends' coordinates: their squared distances count its square times.",
        gt=0,
    )
    blur: Number = setting(3.0, "Distance below which fibres count as alike, mm.", gt=0)
    reach: Number = setting(
        20.0,
        "Distance at which leaving a fibre without a partner gets cheaper than finding one, mm.",
        gt=0,
    )
    scaling: Number = setting(
        0.5,
        "Ratio of the blurs of successive iterations; nearer 1 is slower and converges further.",
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
        "dense: every pair of fibres in every iteration; multiscale: first between clusters, then "
        "between fibres of clusters that matter to each other; auto: multiscale from 2,000,000 "
        "pairs on; geomloss: GeomLoss' multiscale solver (needs geomloss and pykeops, else ours).",
        "auto, dense, multiscale or geomloss",
    )
    n_clusters: Size | None = setting(
        None,
        "Clusters of each side for multiscale and geomloss. Null: a tenth of the fibres, at most "
        "1,000.",
        ge=1,
    )
    seed: Integer = setting(0, "Of the clusters' first centres.", ge=0)
    device: Text = setting("cpu", "Where to compute.", "cpu, cuda or cuda:<number>")
    threads: Size | None = setting(None, "Threads on a CPU. Null: as torch is set.", ge=1)
    format: Literal["trk", "tck", "trx", "vtk"] | None = setting(
        None, "Format of the tractograms written. Null: the subject's.",
        "null, trk, tck, trx or vtk",
    )  # fmt: skip

    vtk_space: Literal["auto", "ras", "lps"] = setting(
        "auto",
        "World of the points in VTK files: auto takes what the title says, else LPS for .fib and "
        "RAS for .vtk; dipy's .vtk are lps.",
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
            raise ValueError("is no device")
        return device


load_label_transfer = LabelTransferConfig.of_config
