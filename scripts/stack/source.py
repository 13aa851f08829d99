"""A stack of sections of one size: read one by one, inspected before anything is computed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.errors import CohortError, ConfigurationError
from scripts.runtime.input_files import say
from scripts.settings.stack import RegisterStackConfig, StackSettings
from scripts.stack.planar import Plane
from scripts.stack.readers import SectionReader, open_reader
from scripts.stack.workers import Workers

__all__ = ["Inspection", "SectionFacts", "Stack", "inspect", "luminance", "open_stack"]

logger = logging.getLogger(__name__)

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Stack:
    """Sections in the order of registration, all on one canvas.

    Attributes:
        reader: where they come from.
        order: index in the input of each.
        shape: rows and columns of the canvas.
        channels: colours, 0 for one value per pixel.
        dtype: of the values.
        spacing: z, y, x.
        unit: of the spacing.
        padded: whether smaller sections are centred on the canvas.
    """

    reader: SectionReader
    order: tuple[int, ...]
    shape: tuple[int, int]
    channels: int
    dtype: np.dtype
    spacing: tuple[float, float, float]
    unit: str
    padded: bool

    def __len__(self) -> int:
        return len(self.order)

    @property
    def plane(self) -> Plane:
        """The pixels of a section."""
        return Plane(self.shape, self.spacing[1:])

    @property
    def names(self) -> list[str]:
        """Of the sections."""
        names = self.reader.names
        return [names[index] for index in self.order]

    def describe(self, index: int) -> str:
        """A section as messages name it."""
        return f"section {index} ({self.names[index]})"

    def raw(self, index: int) -> np.ndarray:
        """A section as it is in the input, ``(rows, columns[, channels])``.

        Raises:
            CohortError: it can't be read.
        """
        try:
            values = self.reader.read(self.order[index])
        except (ConfigurationError, MemoryError):
            raise
        except Exception as error:  # each library raises other errors for damaged files
            raise CohortError(f"{self.describe(index)}: can't be read: {say(error)}") from error
        if values.dtype == bool:
            values = values.astype(np.uint8)
        if values.dtype.kind not in "iuf" or values.ndim not in (2, 3):
            raise CohortError(
                f"{self.describe(index)}: has {values.dtype} values of shape {values.shape}; "
                "must be a plane of real numbers, with 3 or 4 colours at most"
            )
        return values

    def unchanged(self, index: int, facts: SectionFacts) -> np.ndarray:
        """As `raw`, of a section that was inspected.

        Raises:
            CohortError: it can't be read, or is no longer what it was.
        """
        values = self.raw(index)
        if _digest(values) != facts.digest:
            raise CohortError(
                f"{self.describe(index)}: changed while it was in use; nothing is published; start "
                "again when no other program writes to the stack"
            )
        return values

    def section(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A section on the canvas, and where the canvas is known; None: everywhere.

        Raises:
            CohortError: it can't be read, or has another size or kind than the others.
        """
        values = self.raw(index)
        if (values.shape[2] if values.ndim == 3 else 0) != self.channels:
            raise CohortError(
                f"{self.describe(index)}: has {_kind_of(values)}, the others "
                f"{self.channels or 'one value per pixel'}"
            )
        if values.shape[:2] == self.shape:
            return values.astype(self.dtype, copy=False), None
        if not self.padded:
            raise CohortError(
                f"{self.describe(index)}: has {_by(values.shape)} pixels, the others "
                f"{_by(self.shape)}; pad: true centres sections of unequal sizes"
            )
        canvas = np.zeros((*self.shape, *values.shape[2:]), dtype=self.dtype)
        known = np.zeros(self.shape, dtype=bool)
        rows, columns = ((n - m) // 2 for n, m in zip(self.shape, values.shape, strict=False))
        place = (slice(rows, rows + values.shape[0]), slice(columns, columns + values.shape[1]))
        canvas[place], known[place] = values, True
        return canvas, known

    def known_box(self, facts: SectionFacts) -> tuple[int, int, int, int]:
        """Rows and columns of the canvas that a section fills: top, bottom, left, right."""
        rows, columns = ((n - m) // 2 for n, m in zip(self.shape, facts.shape, strict=True))
        return (rows, rows + facts.shape[0], columns, columns + facts.shape[1])


def luminance(values: np.ndarray) -> np.ndarray:
    """``(rows, columns)`` float32 of a section: what is measured."""
    if values.ndim == 2:
        return values.astype(np.float32)
    return values[..., :3].astype(np.float32) @ _LUMINANCE


# ---------------------------------------------------------------------------------------------
# Opening
# ---------------------------------------------------------------------------------------------


def open_stack(
    settings: StackSettings,
    order: Sequence[int] | None = None,
    usual: tuple[tuple[float, float, float], str] | None = None,
) -> Stack:
    """Find the sections, and what is known of them as a whole.

    Args:
        settings: of the job.
        order: index in the input of each section; None: the input's order.
        usual: spacing and unit where neither settings nor files have any.

    Raises:
        CohortError: fewer than two sections, or they can't be used.
        ConfigurationError: no spacing, or an order for another number of sections.
    """
    block = settings.key_path
    reader = open_reader(settings.stack, settings.array, settings.axis, block)
    count = len(reader.names)
    if count < 2:
        raise CohortError(f"{settings.stack}: has {count} section; a stack needs at least 2")
    if order is not None and len(order) != count:
        raise ConfigurationError(
            f"{block}.order has {len(order)} entries, but the stack {count} sections"
        )
    spacing = settings.spacing or reader.spacing
    unit = settings.unit or reader.unit
    if spacing is None and usual is not None:
        spacing, unit = usual[0], unit or usual[1]
    if spacing is None:
        raise ConfigurationError(
            f"{block}.spacing = null: must be given, because {settings.stack} has no spacing: "
            f"--{block}#spacing '[z,y,x]' --{block}#unit micrometer"
        )
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise CohortError(f"{settings.stack}: has a spacing of {spacing}; must be positive")
    if unit is None:
        unit = "millimeter"
        logger.warning("%s: has no unit; millimeter is assumed (%s.unit)", settings.stack, block)
    probe = Stack(
        reader, tuple(order or range(count)), (0, 0), 0, np.dtype(np.uint8),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])), unit, settings.pad,
    )  # fmt: skip
    first = probe.raw(0)
    channels = first.shape[2] if first.ndim == 3 else 0
    return Stack(
        reader, probe.order, (int(first.shape[0]), int(first.shape[1])), channels, first.dtype,
        probe.spacing, unit, settings.pad,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Inspection
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SectionFacts:
    """What is known of a section before it is measured.

    Attributes:
        shape: rows and columns.
        low: least luminance.
        high: largest luminance.
        digest: SHA-256 of its values.
        border: median of its border, one a channel.
        dtype: of its values.
        channels: its colours, 0 for one value per pixel.
    """

    shape: tuple[int, int]
    low: float
    high: float
    digest: str
    border: tuple[float, ...]
    dtype: str
    channels: int

    @property
    def constant(self) -> bool:
        """Whether the section is constant."""
        return self.high - self.low <= 1e-6 * max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Inspection:
    """A stack whose sections can all be read.

    Attributes:
        stack: on a canvas that contains every section.
        facts: of each section.
    """

    stack: Stack
    facts: tuple[SectionFacts, ...]

    def identity(self) -> str:
        """SHA-256 over all values, the order and the spacing."""
        stack = self.stack
        content = [
            [one.digest for one in self.facts], list(stack.spacing), stack.unit, list(stack.order),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def inspect(stack: Stack, workers: Workers, key: str) -> Inspection:
    """Read every section once.

    Args:
        stack: as opened.
        workers: that read.
        key: the block of settings, for messages.

    Raises:
        CohortError: a section can't be read, has a value that is not finite, or has another
            size (unless padded) or kind than the first.
    """
    facts: list[SectionFacts] = []
    for index, one in enumerate(workers.map(_facts, [(stack, i) for i in range(len(stack))])):
        if isinstance(one, str):
            raise CohortError(one)
        if one.channels != stack.channels:
            raise CohortError(
                f"{stack.describe(index)}: has {one.channels or 'no'} colours, "
                f"{stack.describe(0)} has {stack.channels or 'none'}"
            )
        if one.shape != stack.shape and not stack.padded:
            raise CohortError(
                f"{stack.describe(index)}: has {_by(one.shape)} pixels, {stack.describe(0)} "
                f"{_by(stack.shape)}; --{key}#pad true centres sections of unequal sizes"
            )
        facts.append(one)
    shape = tuple(max(one.shape[axis] for one in facts) for axis in (0, 1))
    dtype = np.result_type(*{one.dtype for one in facts})
    whole = Stack(
        stack.reader, stack.order, (shape[0], shape[1]), stack.channels, dtype, stack.spacing,
        stack.unit, stack.padded,
    )  # fmt: skip
    return Inspection(whole, tuple(facts))


def _facts(stack: Stack, index: int) -> SectionFacts | str:
    """A section's facts, or what is wrong with it (a text passes between processes as it is)."""
    try:
        values = stack.raw(index)
    except CohortError as error:
        return str(error)
    if min(values.shape) < 2:
        return f"{stack.describe(index)}: has {_by(values.shape)} pixels; must have 2 per side"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        return f"{stack.describe(index)}: has {count} values that are not finite"
    grey = luminance(values)
    border = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    return SectionFacts(
        (int(values.shape[0]), int(values.shape[1])),
        float(grey.min()),
        float(grey.max()),
        _digest(values),
        tuple(np.atleast_1d(np.median(border, axis=0)).tolist()),
        values.dtype.str,
        values.shape[2] if values.ndim == 3 else 0,
    )


def _digest(values: np.ndarray) -> str:
    """SHA-256 of a section's values, type and size."""
    content = np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(f"{values.dtype.str} {values.shape}".encode() + content).hexdigest()


def check_sections(settings: RegisterStackConfig, stack: Stack) -> None:
    """Refuse settings that name sections beyond the stack.

    Raises:
        ConfigurationError: with the setting and the number of sections.
    """
    count = len(stack)
    if isinstance(settings.reference, int) and settings.reference >= count:
        raise ConfigurationError(
            f"{settings.key('reference')} = {settings.reference}: must be below {count}, the "
            "number of sections"
        )
    beyond = [index for index in settings.skip if index >= count]
    if beyond:
        raise ConfigurationError(
            f"{settings.key('skip')} names section {beyond[0]}: must be below {count}, the number "
            "of sections"
        )


def _kind_of(values: np.ndarray) -> Any:
    return f"{values.shape[2]} colours" if values.ndim == 3 else "one value per pixel"


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape[:2])
