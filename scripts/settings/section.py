"""Groups of typed settings, their rules, and errors in one line each.

The base of every block of settings; types of its fields are in `scripts.settings.values`. Needs
neither torch nor monai::

    class MyConfig(Section):
        key_path: ClassVar[str] = "my_job"

        bins: Integer = setting(64, "Bins of the histogram.", ge=2)

    MyConfig.load({"bins": 1})  # my_job.bins = 1: must be an integer >= 2
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from scripts.errors import ConfigurationError
from scripts.runtime.error_report import advise_on_memory, report_errors_in_one_line
from scripts.runtime.plain_data import require_depth
from scripts.settings.monai_command import refuse_dropped_nulls, require_expressions

__all__ = ["Section", "rule_of", "section", "setting", "to_section"]


def to_section(value: object) -> object:
    """Replace an empty section (None in YAML) by its defaults."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else value


def setting(default: Any, description: str, rule: str | None = None, **bounds: Any) -> Any:
    """A field whose ``rule`` is used in errors and in the docs.

    Args:
        default: value if the key is missing.
        description: what the setting does, for the docs.
        rule: allowed values. None: made from the type and the bounds, so that a bound is written
            once.
        bounds: ``gt``, ``ge``, ``lt``, ``le`` as pydantic's ``Field`` takes them.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"rule": rule},
        validate_default=True,
        **bounds,
    )


def section(kind: type[Section], description: str) -> Any:
    return Field(
        default_factory=kind,
        description=description,
        json_schema_extra={"rule": "a mapping of settings"},
    )


def rule_of(field: FieldInfo) -> str:
    """The rule of a number or a flag as text, from its type and bounds.

    Example:
        >>> class Histogram(Section):
        ...     bins: Integer = setting(64, "Bins of the histogram.", ge=2)
        >>> rule_of(Histogram.model_fields["bins"])
        'an integer >= 2'
    """
    kinds = {str(option) for option in (get_args(field.annotation) or (field.annotation,))}
    bounds: dict[str, Any] = {}
    for part in field.metadata:
        bounds.update({n: getattr(part, n) for n in ("gt", "ge", "lt", "le") if hasattr(part, n)})
    if any("to_bool" in kind for kind in (*kinds, *map(str, field.metadata))):
        return "true or false"
    whole = any("int" in kind for kind in kinds) and not any("float" in kind for kind in kinds)
    noun = "an integer" if whole else "a number"
    if set(bounds) == {"ge", "le"}:
        words = f"{noun} from {bounds['ge']} to {bounds['le']}"
    else:
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        limits = [f"{sign} {bounds[name]}" for name, sign in signs.items() if name in bounds]
        words = " ".join([noun, " and ".join(limits)]).strip()
    return f"null or {words}" if any("None" in kind for kind in kinds) else words


def _takes_none(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and reports errors in one line each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_path: ClassVar[str]
    """Dotted path of the group in a configuration, such as ``learned_atlas.cohort``."""

    less_memory: ClassVar[str] = ""
    """Advice for the error message when memory runs out: what this block's job can change."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra["rule"] is None:
                field.json_schema_extra = {"rule": rule_of(field)}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema = handler(core_schema)
        # Fields were described before their rule was made.
        for name, entry in handler.resolve_ref_schema(schema)["properties"].items():
            extra = cls.model_fields[name].json_schema_extra
            entry["rule"] = extra["rule"] if isinstance(extra, dict) else entry["rule"]
        return schema

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(*_describe(error, type(self), values)) from None

    # The mark keeps pydantic from calling this for nested sections as well, which would merge
    # their violations into one opaque error.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _nulls(cls, values: object) -> object:
        """Read the text ``null`` as None where a setting may be None.

        MONAI's command reads ``--fold null`` as text, and YAML reads a quoted one so.
        """
        if not isinstance(values, Mapping):
            return values
        nullable = {name for name, one in cls.model_fields.items() if _takes_none(one)}
        return {
            key: None if key in nullable and str(value) in ("null", "None") else value
            for key, value in values.items()
        }

    @classmethod
    def load(cls, values: Mapping[str, Any] | Self | None = None) -> Self:
        """Validate ``values``.

        Args:
            values: settings by key; missing keys (or None for all) take their defaults.

        Returns:
            The frozen settings.

        Raises:
            ConfigurationError: with one line per violation: key path, value and rule.
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
            require_depth(values)
        except ValueError as error:
            raise ConfigurationError(f"{cls.key_path}: {error}") from None
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigurationError(*_describe(error, cls, values)) from None

    @classmethod
    def of_config(cls, block: Mapping[str, Any] | Self | None) -> Self:
        """Validate a block of a configuration; from then on user errors are shown in one line.

        Configurations name this method, or the ``load_...`` function of a block's module.

        Raises:
            ConfigurationError: with one line per violation.
        """
        report_errors_in_one_line()
        require_expressions()
        refuse_dropped_nulls()
        if cls.less_memory:
            advise_on_memory(cls.less_memory)
        return cls.load(block)

    @classmethod
    def key(cls, name: str) -> str:
        """The dotted path of a setting of this group, as used in messages.

        Example:
            >>> LearnedAtlasConfig.key("device")
            'learned_atlas.device'
        """
        return f"{cls.key_path}.{name}"

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain JSON values."""
        return self.model_dump(mode="json")

    def by_path(self, given_only: bool = False) -> dict[str, Any]:
        """Settings as plain JSON values by their dotted path, with sections flattened.

        Args:
            given_only: leave out settings that weren't given and have their default.

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


def _describe(error: ValidationError, model: type[Section], given: Mapping[str, Any]) -> list[str]:
    """One line per violation, each with key path, given value, and rule."""
    violations = error.errors(include_url=False)
    return [_describe_one(violation, model, given) for violation in violations]


def _describe_one(violation: Any, model: type[Section], given: Mapping[str, Any]) -> str:
    path = model.key_path
    section: type[BaseModel] | None = model
    rule = "a mapping of settings"
    value: Any = given
    for part in violation["loc"]:
        if section is None:
            path += f"[{part}]"  # an index: plain settings contain only lists
            value = value[part]
            continue
        field = section.model_fields.get(str(part))
        path += f".{part if str(part).isprintable() else repr(part)}"
        if field is None:
            return f"{path} = {_shorten(violation['input'])}: {_unknown_key(str(part), section)}"
        extra = field.json_schema_extra
        rule = str(extra["rule"]) if isinstance(extra, dict) else rule
        kind = field.annotation
        section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        # A default isn't among the given values (null also stands for an empty section).
        value = value[part] if isinstance(value, Mapping) and part in value else violation["input"]

    cause = violation.get("ctx", {}).get("error")
    if section is not None and cause is not None:  # keys of a section contradict each other
        shown = value.as_dict() if isinstance(value, Section) else value
        if isinstance(shown, Mapping):  # of a long section, the settings that contradict each other
            named = set(re.findall(r"\w+", str(cause)))
            shown = {key: one for key, one in shown.items() if key in named} or shown
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
