"""Values that come to a MONAI configuration as objects, after its text was read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["given"]


def given(value: Any) -> dict[str, Callable[[], Any]]:
    """A value for a configuration that stays what it is.

    MONAI evaluates a text that begins with ``$``, looks up one that begins with ``@`` or ``%``, and
    changes ``#``. Names of files and subjects are such texts: they go into a configuration as what
    a function returns, which MONAI doesn't read.

    Args:
        value: of an id, in place of what the configuration holds there.

    Example:
        >>> from monai.bundle import ConfigParser
        >>> parser = ConfigParser({"name": given("$1 + 1"), "names": ["@name"]})
        >>> parser.get_parsed_content("names")
        ['$1 + 1']
    """
    return {"_target_": lambda: value}
