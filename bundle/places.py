"""Where the bundle lies, where it writes, and what its command is called."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = (ROOT.parent.name, ROOT.name) == ("tract_atlas", "root")
"""Whether this is the wheel's copy: nothing is written there, but where the user stands."""
PROGRAM = "tract-atlas" if INSTALLED else "python -m bundle"
HOME = Path() if INSTALLED else ROOT
"""Where data, models and output lie."""
DEMO_FOLDER = HOME / "data" / "demo"
MODELS_FOLDER = HOME / "models"
ARCHIVE = "tract_density_atlas.zip"
LABEL_ENVIRONMENT = HOME / ".venv-label"
SETTINGS_PAGE = HOME / ("settings.md" if INSTALLED else "docs/settings.md")
