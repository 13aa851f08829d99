"""``python -m bundle <verb>``, or ``python <repository>/bundle <verb>`` from anywhere."""

import sys
from pathlib import Path

if not __package__:  # run as a folder: the path contains bundle/ instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bundle.cli import run

if __name__ == "__main__":
    sys.exit(run())
