"""Location of the bundle, of its output, and the name of its command."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = (ROOT.parent.name, ROOT.name) == ("tract_atlas", "root")
"""Whether this is an installed wheel: nothing is written there, but in the current folder."""
PROGRAM = "tract-atlas" if INSTALLED else "python -m bundle"
HOME = Path() if INSTALLED else ROOT
"""Base folder of data, models and output."""
DEMO_FOLDER = HOME / "data" / "demo"
DEMO_STACK_FOLDER = HOME / "data" / "demo_stack"
DEMO_PEOPLE_FOLDER = HOME / "data" / "demo_people"
MODELS_FOLDER = HOME / "models"
ARCHIVE = "tract_density_atlas.zip"
LABEL_ENVIRONMENT = HOME / ".venv-label"
SETTINGS_PAGE = HOME / ("settings.md" if INSTALLED else "docs/settings.md")
