"""Settings of the ``learned_atlas:`` block: names, defaults and rules.

Its sections are in `atlas_model`, `atlas_training` and `cohort`.
Validation needs neither torch nor monai, so that a wrong setting is reported at once::

    from scripts.settings.atlas import LearnedAtlasConfig

    config = LearnedAtlasConfig.load({"optimizer": {"epochs": 20, "lr": "1e-4"}})
    config.optimizer.lr  # 0.0001

Every violation becomes a line of a `ConfigurationError`: key path, value, rule.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
)

from scripts.errors import ConfigurationError
from scripts.settings.atlas_model import LearnedAtlasModelConfig
from scripts.settings.atlas_training import (
    LearnedAtlasLossConfig,
    LearnedAtlasOptimizerConfig,
    LearnedAtlasRefineConfig,
)
from scripts.settings.checks import check_placeholders, check_relative
from scripts.settings.cohort import (
    RELATIVE,
    CohortRequest,
    LearnedAtlasCohortConfig,
    SubjectSearch,
)
from scripts.settings.section import Section, section, setting, to_section
from scripts.settings.usual_training import with_usual_lengths
from scripts.settings.values import Flag, Integer, Number, Text, Texts

__all__ = [
    "ConfigurationError",
    "LearnedAtlasConfig",
    "LearnedAtlasLossConfig",
    "LearnedAtlasModelConfig",
    "LearnedAtlasOptimizerConfig",
    "LearnedAtlasRefineConfig",
    "load_settings",
]

logger = logging.getLogger(__name__)

BASELINE_MAPS = ("mean", "std", "std_error", "cov", "prob_threshold")

_SAFE_NAME = "one path component: no separator, no leading dot, at most 255 bytes"


class LearnedAtlasConfig(Section):
    """The whole ``learned_atlas:`` block."""

    key_path: ClassVar[str] = "learned_atlas"
    less_memory: ClassVar[str] = (
        "use learned_atlas#dtype bfloat16, a higher learned_atlas#model#field_resolution, "
        "learned_atlas#model#checkpointing true, a smaller learned_atlas#optimizer#batch_size, or "
        "learned_atlas#cohort#cache disk"
    )

    enabled: Flag = setting(
        True,
        "False ends the run at once with a log line and exit status 0; nothing is written.",
    )
    training_space: Literal["template_native", "affine_native"] = setting(
        "template_native",
        "template_native trains on maps that are already warped to the template; affine_native "
        "trains on affinely aligned maps, and its atlas needs an extra warp in template space.",
        "template_native or affine_native",
    )
    device: Text = setting(
        "cuda",
        "Device for the computation.",
        "cpu, cuda or cuda:N",
        pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$",
    )
    dtype: Literal["float16", "float32", "bfloat16"] = setting(
        "float32",
        "Autocast type of the convolutions; grids, warps, integration and losses stay float32.",
        "one of float16, float32, bfloat16",
    )
    affine_native_relpath: Text | None = setting(
        None,
        "Path of the map inside the subject's folder, for affine_native. `{tract}` in it stands "
        "for a tract's name; if no tracts are selected, it is dropped for the whole cohort.",
        f"null or a path inside the subject's folder ({RELATIVE}), optionally with {{tract}} and "
        "{run}; required and non-empty with training_space affine_native",
    )
    emit_baseline_maps: Texts = setting(
        list(BASELINE_MAPS),
        "The maps to publish.",
        "a non-empty list out of mean, std, std_error, cov, prob_threshold, with mean and without "
        "duplicates",
    )
    output_subdir: Text = setting(
        "learned_atlas",
        "Folder of the published atlas, inside the output folder.",
        f"{_SAFE_NAME}, only letters, digits, spaces and . _ - + = , @ ( ) inside; never 'atlas', "
        "the averaging atlas's folder",
    )
    min_subjects: Integer = setting(5, "Smallest number of usable subjects.", ge=1)
    save_fields: Flag = setting(True, "Write the displacement fields of all subjects.")
    save_warped: Flag = setting(
        False,
        "Write each subject's density (and label map, see cohort.labels) in template space, and "
        "one 4-D file of all subjects.",
    )
    save_jacobians: Flag = setting(
        False,
        "Write each subject's log-Jacobian in template space (the natural logarithm of the "
        "subject's local volume over the template's), and one 4-D file of all subjects.",
    )
    verify_jacobian: Flag = setting(True, "End without publishing if a field folds (det J <= 0).")
    presence_value: Number = setting(
        0.10,
        "Density above which a tract counts as present in prob_threshold.",
        ge=0,
    )
    cov_mean_threshold_pct: Number = setting(
        0.01,
        "Share of the sample mean's maximum up to which cov is set to 0.",
        ge=0,
        lt=1,
    )
    resume: Flag = setting(
        True, "Continue from the checkpoint of an interrupted run, if there is one."
    )
    model: Annotated[LearnedAtlasModelConfig, BeforeValidator(to_section)] = section(
        LearnedAtlasModelConfig, "Templates and network."
    )
    # After `model`: the number of tracts is checked against the number of channels.
    cohort: Annotated[LearnedAtlasCohortConfig, BeforeValidator(to_section)] = Field(
        default_factory=LearnedAtlasCohortConfig,
        description="Subjects and their maps.",
        json_schema_extra={"rule": "a mapping of settings"},
        validate_default=True,
    )
    loss: Annotated[LearnedAtlasLossConfig, BeforeValidator(to_section)] = section(
        LearnedAtlasLossConfig, "Terms of the loss."
    )
    optimizer: Annotated[LearnedAtlasOptimizerConfig, BeforeValidator(to_section)] = section(
        LearnedAtlasOptimizerConfig, "Training."
    )
    # After `model`: the rounds fit the dependence on covariates.
    refine: Annotated[LearnedAtlasRefineConfig, BeforeValidator(to_section)] = Field(
        default_factory=LearnedAtlasRefineConfig,
        description="Refinement after training.",
        json_schema_extra={"rule": "a mapping of settings"},
        validate_default=True,
    )

    @field_validator("optimizer", "refine", mode="before")
    @classmethod
    def _lengths(cls, values: object, info: ValidationInfo) -> object:
        if not isinstance(values, Mapping) or info.field_name is None:
            return values
        started = getattr(info.data.get("model"), "initial", None) is not None
        return with_usual_lengths(info.field_name, values, started)

    @field_validator("affine_native_relpath")
    @classmethod
    def _check_relpath(cls, relpath: str | None, info: ValidationInfo) -> str | None:
        required = info.data.get("training_space") == "affine_native"
        if relpath is None or not relpath.strip():
            if required:
                raise ValueError("is required with training_space affine_native")
            return relpath
        check_relative(relpath)
        check_placeholders(relpath, ("tract", "run"))
        return relpath

    @field_validator("emit_baseline_maps")
    @classmethod
    def _check_maps(cls, maps: list[str]) -> list[str]:
        if not maps:
            raise ValueError("is empty")
        for name in maps:
            if name not in BASELINE_MAPS:
                raise ValueError(f"names {name!r}, which is not a map")
        if len(set(maps)) < len(maps):
            raise ValueError("contains a map twice")
        if "mean" not in maps:
            raise ValueError("does not contain mean")
        return maps

    @field_validator("output_subdir")
    @classmethod
    def _check_output_subdir(cls, name: str) -> str:
        if not name:
            raise ValueError("is empty")
        if "/" in name or "\\" in name:
            raise ValueError("contains a path separator")
        if name.startswith("."):
            raise ValueError("starts with a dot")
        if re.fullmatch(r"\w[\w .+=,@()-]*", name) is None:
            raise ValueError("contains a character that isn't safe in a file name")
        if name.endswith((".", " ")):
            raise ValueError("ends with a dot or a space")
        if len(name.encode("utf-8")) > 255:
            raise ValueError(f"is {len(name.encode('utf-8'))} bytes long")
        if name.casefold() == "atlas":  # Atlas is the same folder on macOS and Windows
            raise ValueError("is the averaging atlas's folder")
        return name

    @field_validator("cohort")
    @classmethod
    def _check_cohort(
        cls, cohort: LearnedAtlasCohortConfig, info: ValidationInfo
    ) -> LearnedAtlasCohortConfig:
        if cohort.pattern is not None and info.data.get("training_space") == "affine_native":
            raise ValueError(
                "pattern isn't used with training_space affine_native, whose maps are at "
                "affine_native_relpath; remove one of them"
            )
        model = info.data.get("model")
        # Without names, the tracts of the dataset are looked up and counted later.
        if model is not None and cohort.tracts and model.channels != len(cohort.tracts):
            raise ValueError(
                f"tracts has {len(cohort.tracts)} names and model.channels is {model.channels}; "
                "there must be one channel per tract"
            )
        return cohort

    @field_validator("refine")
    @classmethod
    def _check_refine(
        cls, refine: LearnedAtlasRefineConfig, info: ValidationInfo
    ) -> LearnedAtlasRefineConfig:
        model = info.data.get("model")
        if model is not None and model.covariates and refine.rounds == 0:
            raise ValueError(
                f"rounds is 0 and model.covariates is {model.covariates}; the rounds of refinement "
                "fit the dependence on covariates: use at least 1, better 5"
            )
        return refine

    def subject_search(self) -> SubjectSearch:
        """Where to look for subjects."""
        cohort = self.cohort
        native = self.training_space == "affine_native"
        return SubjectSearch(
            section=cohort.key_path,
            layout=cohort.layout,
            pattern=cohort.pattern,
            subjects=cohort.subjects,
            exclude=tuple(cohort.exclude),
            tracts=tuple(cohort.tracts),
            channels=self.model.channels,
            inside_subject=self.affine_native_relpath if native else None,
            output_subdir=self.output_subdir,
            keys={
                "channels": self.model.key("channels"),
                "inside_subject": self.key("affine_native_relpath"),
            },
        )

    def cohort_request(self) -> CohortRequest:
        """The cohort that a job requests."""
        return CohortRequest(
            search=self.subject_search(),
            cohort=self.cohort,
            min_subjects=self.min_subjects,
            covariates=tuple(self.model.covariates),
            categorical_covariates=tuple(self.model.categorical_covariates),
            keys={
                "min_subjects": self.key("min_subjects"),
                "covariates": self.model.key("covariates"),
                "categorical_covariates": self.model.key("categorical_covariates"),
            },
        )


def load_settings(block: Mapping[str, Any] | LearnedAtlasConfig | None) -> LearnedAtlasConfig:
    """Validate the ``learned_atlas:`` block of a config; the first component that a job builds.

    From then on user errors are shown in one line. With ``enabled: false`` the run ends here, with
    a log line and exit status 0.

    Args:
        block: the block as parsed by MONAI, with overrides applied.

    Returns:
        The validated settings.

    Raises:
        ConfigurationError: with one line per violation.
        SystemExit: with status 0 if the block is disabled.
    """
    config = LearnedAtlasConfig.of_config(block)
    if not config.enabled:
        # A warning, so that it is shown even without logging configuration.
        logger.warning("learned_atlas.enabled is false: nothing to do, nothing written")
        raise SystemExit(0)
    return config
