"""``import tract_atlas``: the functions of ``scripts/api.py``, in any folder and any notebook.

The wheel contains the bundle in ``tract_atlas/root``, and that folder is added to the path:
configurations name ``scripts....``, and the functions here come from the same modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__: list[str] = []

_HERE = Path(__file__).resolve().parent
# Installed in editable mode, this file is in the clone, whose root is three folders up.
_ROOT = _HERE / "root" if (_HERE / "root").is_dir() else _HERE.parents[2]


def _claim(*names: str) -> None:
    """Make the bundle's packages importable under their names.

    Raises:
        ImportError: another package of that name is already loaded.
    """
    for name in names:
        loaded = sys.modules.get(name)
        # A folder without __init__.py has places but no file, a single file has no places.
        places = [Path(one).resolve() for one in getattr(loaded, "__path__", ())]
        if loaded is not None and places != [_ROOT / name]:
            raise ImportError(
                f"tract_atlas needs its package {name!r}, but another one of that name is loaded "
                f"from {', '.join(map(str, places)) or 'a file'}; import tract_atlas in a process "
                "that doesn't use the other"
            )
    if str(_ROOT) not in sys.path:
        # First, so that a folder named scripts in the current folder isn't used instead.
        sys.path.insert(0, str(_ROOT))


_claim("scripts", "bundle")

import bundle  # noqa: E402, F401 (makes the threads of torch wait passively)
from scripts import api as _api  # noqa: E402 (found once the path is set)
from scripts.api import *  # noqa: E402, F403

__all__ += _api.__all__
