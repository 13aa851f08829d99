"""Checks for what MONAI's command ignores silently."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.errors import ConfigurationError

__all__ = ["refuse_dropped_nulls", "require_expressions"]


def require_expressions() -> None:
    """Make sure that MONAI evaluates the expressions that configurations consist of.

    Raises:
        ConfigurationError: the environment turns them off: MONAI would then do nothing, and end
            as if all were well.
    """
    if os.environ.get("MONAI_EVAL_EXPR") == "0":
        raise ConfigurationError(
            "MONAI_EVAL_EXPR = 0: turns off the expressions that a configuration consists of, so "
            "that nothing would be run; must be unset, or 1"
        )


def refuse_dropped_nulls(arguments: Sequence[str] | None = None) -> None:
    """Refuse ``--key None`` on MONAI's command line, which MONAI drops silently.

    Args:
        arguments: of the process; None: ``sys.argv``.

    Raises:
        ConfigurationError: naming the key.
    """
    words = list(sys.argv if arguments is None else arguments)
    if not words or Path(words[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return
    for word, following in zip(words, [*words[1:], ""], strict=True):
        key, equals, value = word.partition("=")
        if key.startswith("--") and (value if equals else following).strip() == "None":
            raise ConfigurationError(
                f"{key} None: MONAI's command drops None, so the configuration's value would "
                f"count; must be {key} null"
            )
