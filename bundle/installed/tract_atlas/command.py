"""The command ``tract-atlas``: the verbs of ``python -m bundle``, in any folder."""

from __future__ import annotations

import tract_atlas  # noqa: F401 (puts the bundle on the path)
from bundle.cli import run

__all__ = ["run"]
