"""``import tract_atlas``: the functions of ``scripts/api.py``, in any folder and any notebook.

The wheel keeps the bundle as it is in ``tract_atlas/root``, and that folder is put on the path:
configurations name ``scripts....``, and the functions here come from the very same modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__: list[str] = []

_HERE = Path(__file__).resolve().parent
# Installed in editable mode this file lies in the clone, whose root is three folders up.
_ROOT = _HERE / "root" if (_HERE / "root").is_dir() else _HERE.parents[2]


def _claim(*names: str) -> None:
    """Make sure that the bundle's own packages are found under their names.

    Raises:
        ImportError: another package of that name is loaded already.
    """
    for name in names:
        loaded = sys.modules.get(name)
        # A folder without __init__.py has no file but places, a single file has no places.
        places = [Path(one).resolve() for one in getattr(loaded, "__path__", ())]
        if loaded is not None and places != [_ROOT / name]:
            raise ImportError(
                f"tract_atlas needs a package named {name!r} of its own, and another one is loaded "
                f"from {', '.join(map(str, places)) or 'a file'}; import tract_atlas in a process "
                "that doesn't use the other"
            )
    if str(_ROOT) not in sys.path:
        # In front: a folder named scripts where the user stands must not be taken for ours.
        sys.path.insert(0, str(_ROOT))


_claim("scripts", "bundle")

import bundle  # noqa: E402, F401 (makes the threads of torch wait passively)
from scripts import api as _api  # noqa: E402 (found once the path is set)
from scripts.api import *  # noqa: E402, F403

__all__ += _api.__all__
