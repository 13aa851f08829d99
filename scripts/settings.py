"""Typed settings of the ``learned_atlas:`` block: names, defaults and rules stand here only.

Validating needs neither torch nor monai, so that a mistyped setting is told at once::

    from scripts.settings import LearnedAtlasConfig

    config = LearnedAtlasConfig.load({"optimizer": {"epochs": 20, "lr": "1e-4"}})
    config.optimizer.lr  # 0.0001

Every violation ends in a `ConfigurationError` with a line of its own: key path, value, rule.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from scripts.errors import ConfigurationError, report_errors_in_one_line

__all__ = [
    "ConfigurationError",
    "LearnedAtlasCohortConfig",
    "LearnedAtlasConfig",
    "LearnedAtlasLossConfig",
    "LearnedAtlasModelConfig",
    "LearnedAtlasOptimizerConfig",
    "LearnedAtlasRefineConfig",
    "load_settings",
]

logger = logging.getLogger(__name__)

_LARGEST = 3.4028234e38  # of float32
BASELINE_MAPS = ("mean", "std", "std_error", "cov", "prob_threshold")


# ---------------------------------------------------------------------------------------------
# Values: what counts as a number, a flag, a text
# ---------------------------------------------------------------------------------------------


def _to_float(value: object) -> float:
    """A finite float32; numeric text counts (YAML 1.1 reads ``1e-4`` as text), booleans don't."""
    if isinstance(value, str):
        if "_" in value:  # Python's own 1_000 is no number elsewhere
            raise ValueError("is not a number")
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError("is not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("is not a number") from None
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    if abs(number) > _LARGEST:
        raise ValueError("is beyond float32, in which everything is computed")
    return number


def _to_int(value: object) -> int:
    """An int; integral text counts, booleans and floats don't."""
    if isinstance(value, str):
        if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value) is None:
            raise ValueError("is not an integer")
        return int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError("is not an integer")
    return int(value)


def _to_bool(value: object) -> bool:
    """A bool; ``true`` and ``false`` as text count, since command-line overrides are text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise ValueError("is neither true nor false")


def _to_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("is not text")
    return value


def _to_list(value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError("is not a list")
    return list(value)


def _to_names(value: object) -> object:
    if value is None or isinstance(value, str):
        return value
    names = _to_list(value)
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"has an entry that is not text: {name!r}")
    return names


def _to_section(value: object) -> object:
    """An empty section (None in YAML) means its defaults."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else value


Number = Annotated[float, BeforeValidator(_to_float)]
Integer = Annotated[int, BeforeValidator(_to_int)]
Flag = Annotated[bool, BeforeValidator(_to_bool)]
Text = Annotated[str, BeforeValidator(_to_text)]
Integers = Annotated[list[Integer], BeforeValidator(_to_list)]
Texts = Annotated[list[Text], BeforeValidator(_to_list)]


def _setting(default: Any, description: str, rule: str, **bounds: Any) -> Any:
    """A field whose ``rule`` is both the text of the error and that of the docs."""
    return Field(
        default,
        description=description,
        json_schema_extra={"rule": rule},
        validate_default=True,
        **bounds,
    )


def _section(kind: type[_Section], description: str) -> Any:
    return Field(
        default_factory=kind,
        description=description,
        json_schema_extra={"rule": "a mapping of settings"},
    )


# ---------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------


class _Section(BaseModel):
    """A frozen group of settings that refuses unknown keys, with errors in the house's words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_path: ClassVar[str] = "learned_atlas"

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_describe(error, type(self), values)) from None

    # Marks it as pydantic's own, or else pydantic calls it for nested sections as well and their
    # violations arrive as one opaque error instead of one each.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def load(cls, values: Mapping[str, Any] | Self | None = None) -> Self:
        """Validate ``values``.

        Args:
            values: settings by key; missing keys (or None for all of them) take their defaults.

        Returns:
            The frozen settings.

        Raises:
            ConfigurationError: with a line per violation, each naming key path, value and rule.
        """
        if isinstance(values, cls):
            return values
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise ConfigurationError(
                f"{cls.key_path} = {_shorten(values)}: must be a mapping of settings"
            )
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigurationError(_describe(error, cls, values)) from None

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain JSON values."""
        return self.model_dump(mode="json")

    def by_path(self, given_only: bool = False) -> dict[str, Any]:
        """Settings as plain JSON values by their dotted path, sections resolved.

        Args:
            given_only: leave out those that nobody gave and that stand at their defaults.

        Example:
            >>> LearnedAtlasConfig.load({"optimizer": {"lr": 1}}).by_path(given_only=True)
            {'optimizer.lr': 1.0}
        """
        return dict(_leaves(self.model_dump(mode="json", exclude_unset=given_only)))


def _leaves(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


_SAFE_NAME = "one path component: no separator, no leading dot, at most 255 bytes"
_RELATIVE = "relative, with / between its parts, none of them '..'"


class LearnedAtlasCohortConfig(_Section):
    """Where subjects are found and how their density maps are read."""

    key_path: ClassVar[str] = "learned_atlas.cohort"

    layout: Literal["probtrackx2", "mrtrix3", "xtract", "tractseg", "bids", "flat"] = _setting(
        "probtrackx2",
        "Known arrangement of the dataset folder.",
        "one of probtrackx2, mrtrix3, xtract, tractseg, bids, flat",
    )
    pattern: Text | None = _setting(
        None,
        "Path of a map inside the dataset folder, for any other arrangement; takes the place of "
        "the layout. `{subject}` stands for the subject's name, `{tract}` for a tract's, `{run}` "
        "for one of several runs; other parts may hold `*`, `?` and `**`.",
        f"null or a path with {{subject}}, optionally {{tract}} and {{run}}; {_RELATIVE}",
    )
    subjects: Annotated[list[str] | str | None, BeforeValidator(_to_names)] = _setting(
        None,
        "Subjects to use: their names, or a text file of one name per line, or a .csv of "
        "`subject,path[,tract]` that lists the maps themselves (both relative to the dataset "
        "folder). Null takes every subject found.",
        "null, a non-empty list of distinct names, or the path of a .txt or .csv file",
    )
    exclude: Texts = _setting(
        [], "Names of subjects to leave out.", "a list of distinct, non-empty names"
    )
    tracts: Texts = _setting(
        [],
        "Names of the tracts to learn jointly, one channel each. Empty: with model.channels 1 the "
        "whole map, or the sum of a subject's tracts where the layout has nothing else; with more "
        "channels the dataset's tracts, if there are exactly as many.",
        "a list of distinct tract names, as many as model.channels, or empty",
    )
    normalisation: Literal["waytotal", "streamline_density", "max", "none"] = _setting(
        "waytotal",
        "What each map is divided by: the sum of its waytotal file, the map's own sum, its "
        "maximum, or nothing.",
        "one of waytotal, streamline_density, max, none",
    )
    margin: Integer = _setting(
        8, "Voxels kept around the cohort's support when cropping.", "an integer >= 0", ge=0
    )
    cache: Literal["ram", "device", "disk", "none"] = _setting(
        "ram", "Where prepared maps are kept between epochs.", "one of ram, device, disk, none"
    )
    num_workers: Integer = _setting(
        0, "Processes that read maps while training.", "an integer >= 0", ge=0
    )
    resample: Flag = _setting(
        False,
        "Bring new subjects that lie on another grid onto the atlas's grid. Training subjects are "
        "never resampled.",
        "true or false",
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            _check_relative(pattern)
            _check_placeholders(pattern, ("subject", "tract", "run"))
            if "{subject}" not in pattern:
                raise ValueError("has no {subject}")
        return pattern

    @field_validator("subjects")
    @classmethod
    def _check_subjects(cls, subjects: list[str] | str | None) -> list[str] | str | None:
        if isinstance(subjects, list):
            if not subjects:
                raise ValueError("names no subject")
            _check_names(subjects)
        elif subjects is not None and not subjects.lower().endswith((".txt", ".csv")):
            raise ValueError("is neither a list nor a .txt or .csv file")
        return subjects

    @field_validator("exclude")
    @classmethod
    def _check_exclude(cls, names: list[str]) -> list[str]:
        _check_names(names)
        return names

    @field_validator("tracts")
    @classmethod
    def _check_tracts(cls, names: list[str]) -> list[str]:
        _check_names(names)
        for name in names:
            if re.search(r"[/\\\x00]", name) or name in (".", ".."):
                raise ValueError(f"has a tract that is no file name: {name!r}")
        return names


class LearnedAtlasModelConfig(_Section):
    """Templates and the network that predicts fields."""

    key_path: ClassVar[str] = "learned_atlas.model"

    channels: Integer = _setting(
        1, "Tracts learned jointly under one deformation.", "an integer >= 1", ge=1
    )
    n_templates: Integer = _setting(1, "Templates in the mixture (K).", "an integer >= 1", ge=1)
    mixture_sharpness: Number = _setting(
        50.0,
        "How firmly a subject's losses assign it to templates: exp(-sharpness * loss).",
        "a number > 0",
        gt=0,
    )
    int_steps: Integer = _setting(
        7,
        "Scaling-and-squaring steps; 0 takes the network's output as the displacement itself.",
        "an integer from 0 to 10",
        ge=0,
        le=10,
    )
    enc_features: Integers = _setting(
        [16, 32, 32, 32],
        "Channels of the encoder's convolutions at full, 1/2, 1/4, ... resolution.",
        "a non-empty list of integers, each >= 1",
    )
    dec_features: Integers = _setting(
        [32, 32, 32, 16, 16],
        "Channels of the decoder: an up-convolution per encoder level, then convolutions at full "
        "resolution.",
        "a non-empty list of integers, each >= 1, at least as long as enc_features (one "
        "up-sampling step per encoder level)",
    )
    field_resolution: Integer = _setting(
        2,
        "The field is predicted and integrated at 1/this of the grid's resolution.",
        "1, 2 or 4; 4 needs at least two levels in enc_features",
    )
    velocity_smoothing: Number = _setting(
        3.0,
        "Standard deviation, in voxels, of the Gaussian that makes every velocity: the network's "
        "output and the steps of a refinement pass through it. 0: none.",
        "a number >= 0",
        ge=0,
    )
    checkpointing: Flag = _setting(
        False,
        "Recompute activations in the backward pass: less memory, more time.",
        "true or false",
    )

    @field_validator("enc_features", "dec_features")
    @classmethod
    def _check_features(cls, features: list[int]) -> list[int]:
        if not features:
            raise ValueError("is empty")
        if min(features) < 1:
            raise ValueError(f"has an entry below 1: {min(features)}")
        return features

    @field_validator("dec_features")
    @classmethod
    def _check_decoder(cls, features: list[int], info: ValidationInfo) -> list[int]:
        levels = len(info.data.get("enc_features", ()))
        if len(features) < levels:
            raise ValueError(f"has {len(features)} entries for {levels} up-sampling steps")
        return features

    @field_validator("field_resolution")
    @classmethod
    def _check_field_resolution(cls, factor: int, info: ValidationInfo) -> int:
        if factor not in (1, 2, 4):
            raise ValueError("is none of them")
        levels = len(info.data.get("enc_features", (1, 1)))
        if factor > 2**levels:
            raise ValueError(f"is out of reach of {levels} encoder level")
        return factor


class LearnedAtlasLossConfig(_Section):
    """Weights and scales of the training loss."""

    key_path: ClassVar[str] = "learned_atlas.loss"

    similarity_weight: Number = _setting(
        1.0, "Weight of the local correlation of log densities.", "a number >= 0", ge=0
    )
    presence_weight: Number = _setting(
        0.5, "Weight of the presence-weighted soft Dice.", "a number >= 0", ge=0
    )
    smoothness_weight: Number = _setting(
        0.5, "Weight of the field's squared gradient.", "a number >= 0", ge=0
    )
    log_offset: Number = _setting(
        1e-3,
        "Density at which the logarithm takes over: log1p(x / log_offset).",
        "a number > 0",
        gt=0,
    )
    window: Integer = _setting(
        7, "Side of the local correlation's window in voxels.", "an odd integer >= 3", ge=3
    )
    scales: Integers = _setting(
        [1, 2, 4],
        "Levels of the image pyramid that similarity and presence are averaged over, as factors.",
        "a non-empty list of different integers >= 1",
        min_length=1,
    )
    centrality_weight: Number = _setting(
        0.05, "Weight of the cohort's mean velocity during training.", "a number >= 0", ge=0
    )

    @field_validator("window")
    @classmethod
    def _check_window(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError("is even")
        return window

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, scales: list[int]) -> list[int]:
        if min(scales) < 1:
            raise ValueError("holds a factor below 1")
        if len(set(scales)) < len(scales):
            raise ValueError("holds a factor twice")
        return scales

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.similarity_weight == self.presence_weight == self.smoothness_weight == 0:
            raise ValueError(
                "similarity_weight, presence_weight and smoothness_weight are all 0; "
                "at least one of them must be > 0"
            )
        return self


class LearnedAtlasOptimizerConfig(_Section):
    """How long and how fast template and network learn."""

    key_path: ClassVar[str] = "learned_atlas.optimizer"

    lr: Number = _setting(1e-4, "Adam's learning rate for the network.", "a number > 0", gt=0)
    epochs: Integer = _setting(50, "Passes over the cohort.", "an integer >= 1", ge=1)
    batch_size: Integer = _setting(2, "Subjects per step.", "an integer >= 1", ge=1)
    seed: Integer = _setting(0, "Seed of every random choice.", "an integer >= 0", ge=0)
    template_lr_ratio: Number = _setting(
        5.0,
        "The template's learning rate as a multiple of the network's.",
        "a number > 0 and <= 10",
        gt=0,
        le=10,
    )
    warmup_epochs: Integer = _setting(
        2,
        "First epochs, in which the template stays as it was initialised.",
        "an integer >= 0",
        ge=0,
    )
    gradient_clip: Number = _setting(
        1.0,
        "Greatest norm of a step's gradient; longer ones are scaled down.",
        "a number > 0",
        gt=0,
    )
    early_stop_patience: Integer = _setting(
        0, "Epochs without progress after which training ends; 0: never.", "an integer >= 0", ge=0
    )


class LearnedAtlasRefineConfig(_Section):
    """Refinement of every subject's field, and of the template, after the network's training."""

    key_path: ClassVar[str] = "learned_atlas.refine"

    rounds: Integer = _setting(
        0, "Rounds of refinement over the cohort; 0: none.", "an integer >= 0", ge=0
    )
    iterations: Integer = _setting(
        10, "Gradient steps per subject in a round.", "an integer >= 1", ge=1
    )
    lr: Number = _setting(0.1, "Learning rate of the refined velocities.", "a number > 0", gt=0)
    new_subject_iterations: Integer = _setting(
        0,
        "Gradient steps that refine the field of a new subject at inference; 0: none.",
        "an integer >= 0",
        ge=0,
    )


class LearnedAtlasConfig(_Section):
    """The whole ``learned_atlas:`` block."""

    enabled: Flag = _setting(
        True,
        "False ends the run at once: a log line, exit status 0, nothing written.",
        "true or false",
    )
    training_space: Literal["template_native", "affine_native"] = _setting(
        "template_native",
        "template_native trains on maps that were already warped to the template; affine_native "
        "trains on affinely aligned maps, and its atlas needs an extra warp in template space.",
        "template_native or affine_native",
    )
    device: Text = _setting(
        "cuda", "Where to compute.", "cpu, cuda or cuda:N", pattern=r"^(?:cpu|cuda(?::[0-9]+)?)$"
    )
    dtype: Literal["float16", "float32", "bfloat16"] = _setting(
        "float32",
        "Autocast type of the convolutions; grids, warps, integration and losses stay float32.",
        "one of float16, float32, bfloat16",
    )
    affine_native_relpath: Text | None = _setting(
        None,
        "Path of the map inside the subject's folder, for affine_native. `{tract}` in it stands "
        "for a tract's name and is dropped, for the whole cohort, when no tract is asked for.",
        f"null or a path inside the subject's folder ({_RELATIVE}), optionally with {{tract}} and "
        "{run}; required and non-empty with training_space affine_native",
    )
    emit_baseline_maps: Texts = _setting(
        list(BASELINE_MAPS),
        "The maps to publish.",
        "a non-empty list out of mean, std, std_error, cov, prob_threshold, with mean and without "
        "duplicates",
    )
    output_subdir: Text = _setting(
        "learned_atlas",
        "Folder of the published atlas, inside the output folder.",
        f"{_SAFE_NAME}, only letters, digits, spaces and . _ - + = , @ ( ) inside; never 'atlas', "
        "the averaging atlas's folder",
    )
    min_subjects: Integer = _setting(
        5, "Fewest usable subjects to go on with.", "an integer >= 1", ge=1
    )
    save_fields: Flag = _setting(
        True, "Write every subject's displacement fields.", "true or false"
    )
    verify_jacobian: Flag = _setting(
        True, "End without publishing when a field folds (det J <= 0).", "true or false"
    )
    presence_value: Number = _setting(
        0.10,
        "Density above which a tract counts as present in prob_threshold.",
        "a number >= 0",
        ge=0,
    )
    cov_mean_threshold_pct: Number = _setting(
        0.01,
        "Share of the sample mean's maximum up to which cov is set to 0.",
        "a number >= 0 and < 1",
        ge=0,
        lt=1,
    )
    resume: Flag = _setting(
        True, "Go on from the checkpoint of an interrupted run, if there is one.", "true or false"
    )
    model: Annotated[LearnedAtlasModelConfig, BeforeValidator(_to_section)] = _section(
        LearnedAtlasModelConfig, "Templates and network."
    )
    # After `model`: the number of tracts is checked against the number of channels.
    cohort: Annotated[LearnedAtlasCohortConfig, BeforeValidator(_to_section)] = Field(
        default_factory=LearnedAtlasCohortConfig,
        description="Subjects and their maps.",
        json_schema_extra={"rule": "a mapping of settings"},
        validate_default=True,
    )
    loss: Annotated[LearnedAtlasLossConfig, BeforeValidator(_to_section)] = _section(
        LearnedAtlasLossConfig, "Terms of the loss."
    )
    optimizer: Annotated[LearnedAtlasOptimizerConfig, BeforeValidator(_to_section)] = _section(
        LearnedAtlasOptimizerConfig, "Training."
    )
    refine: Annotated[LearnedAtlasRefineConfig, BeforeValidator(_to_section)] = _section(
        LearnedAtlasRefineConfig, "Refinement after training."
    )

    @field_validator("affine_native_relpath")
    @classmethod
    def _check_relpath(cls, relpath: str | None, info: ValidationInfo) -> str | None:
        required = info.data.get("training_space") == "affine_native"
        if relpath is None or not relpath.strip():
            if required:
                raise ValueError("is required with training_space affine_native")
            return relpath
        _check_relative(relpath)
        _check_placeholders(relpath, ("tract", "run"))
        return relpath

    @field_validator("emit_baseline_maps")
    @classmethod
    def _check_maps(cls, maps: list[str]) -> list[str]:
        if not maps:
            raise ValueError("is empty")
        for name in maps:
            if name not in BASELINE_MAPS:
                raise ValueError(f"names {name!r}, which is no map")
        if len(set(maps)) < len(maps):
            raise ValueError("names a map twice")
        if "mean" not in maps:
            raise ValueError("is without mean")
        return maps

    @field_validator("output_subdir")
    @classmethod
    def _check_output_subdir(cls, name: str) -> str:
        if not name:
            raise ValueError("is empty")
        if "/" in name or "\\" in name:
            raise ValueError("holds a path separator")
        if name.startswith("."):
            raise ValueError("starts with a dot")
        if re.fullmatch(r"\w[\w .+=,@()-]*", name) is None:
            raise ValueError("holds a character that isn't safe in a file name")
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
                "pattern isn't read with training_space affine_native, whose maps are at "
                "affine_native_relpath; leave one of them out"
            )
        model = info.data.get("model")
        # Without names the tracts are looked up in the dataset, and counted there.
        if model is not None and cohort.tracts and model.channels != len(cohort.tracts):
            raise ValueError(
                f"tracts has {len(cohort.tracts)} names and model.channels is {model.channels}; "
                "there must be one channel per tract"
            )
        return cohort


# ---------------------------------------------------------------------------------------------
# Rules shared by several settings
# ---------------------------------------------------------------------------------------------


def _check_relative(path: str) -> None:
    """Refuse a path that is blank, absolute, or could leave the folder that it is joined to."""
    if not path.strip():
        raise ValueError("is empty")
    if re.search(r"[\x00-\x1f\x7f]", path):
        raise ValueError("holds a control character")
    if "\\" in path:
        raise ValueError("holds a backslash")
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        raise ValueError("is absolute")
    parts = path.split("/")
    if ".." in parts:
        raise ValueError("holds '..'")
    if "" in parts or "." in parts:
        raise ValueError("holds an empty part or '.'")


def _check_placeholders(pattern: str, known: tuple[str, ...]) -> None:
    for name in re.findall(r"\{([^{}]*)\}", pattern):
        if name not in known:
            raise ValueError(f"has an unknown placeholder {{{name}}}")
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", pattern)):
        raise ValueError("has a brace without its partner")
    for part in pattern.split("/"):
        if "**" in part and part != "**":
            raise ValueError("has '**' beside other characters of a part")
    if pattern.split("/")[-1] == "**":
        raise ValueError("ends without a file's name")


def _check_names(names: list[str]) -> None:
    for name in names:
        if not name.strip():
            raise ValueError("has an empty name")
    if len(set(names)) < len(names):
        raise ValueError("has a name twice")


# ---------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------


def _describe(error: ValidationError, model: type[_Section], given: Mapping[str, Any]) -> str:
    """One line per violation, each with key path, value as it was given, and rule."""
    return "\n".join(
        _describe_one(violation, model, given) for violation in error.errors(include_url=False)
    )


def _describe_one(violation: Any, model: type[_Section], given: Mapping[str, Any]) -> str:
    path = model.key_path
    section: type[BaseModel] | None = model
    rule = "a mapping of settings"
    value: Any = given
    for part in violation["loc"]:
        if section is None:
            path += f"[{part}]"  # an index: only lists follow below a plain setting
            value = value[part]
            continue
        field = section.model_fields.get(str(part))
        path += f".{part}"
        if field is None:
            return f"{path} = {_shorten(violation['input'])}: {_unknown_key(str(part), section)}"
        extra = field.json_schema_extra
        rule = str(extra["rule"]) if isinstance(extra, dict) else rule
        kind = field.annotation
        section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        # A default has no place in what was given (null stands for an empty section too).
        value = value[part] if isinstance(value, Mapping) and part in value else violation["input"]

    cause = violation.get("ctx", {}).get("error")
    if section is not None and cause is not None:  # keys of a section contradict each other
        shown = value.as_dict() if isinstance(value, _Section) else value
        return f"{path}: {cause} (given: {_shorten(shown)})"
    reason = f"{cause}; " if cause is not None else ""
    return f"{path} = {_shorten(value)}: {reason}must be {rule}"


def _unknown_key(name: str, section: type[BaseModel]) -> str:
    known = list(section.model_fields)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key; {hint}must be one of {', '.join(known)}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text)} characters)"


# ---------------------------------------------------------------------------------------------
# What configs name
# ---------------------------------------------------------------------------------------------


def load_settings(block: Mapping[str, Any] | LearnedAtlasConfig | None) -> LearnedAtlasConfig:
    """Validate the ``learned_atlas:`` block of a config; the first component that a job builds.

    From here on user errors are shown in one line. With ``enabled: false`` the run ends here, with
    a log line and exit status 0.

    Args:
        block: the block as MONAI parsed it, overrides applied.

    Returns:
        The validated settings.

    Raises:
        ConfigurationError: with a line per violation.
        SystemExit: with status 0 when the block is disabled.
    """
    report_errors_in_one_line()
    config = LearnedAtlasConfig.load(block)
    if not config.enabled:
        # A warning, so that it shows without any logging configuration too.
        logger.warning("learned_atlas.enabled is false: nothing to do, nothing written")
        raise SystemExit(0)
    return config
