"""The floors of the architecture: the contract in pyproject.toml, and that it can fail."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINT = (
    sys.executable,
    "-c",
    "from importlinter.cli import lint_imports_command as c; c()",
    "--no-cache",
)


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINT, cwd=folder, capture_output=True, text=True)


def test_three_files_stand_in_scripts_itself_and_the_contract_names_every_room():
    files = {path.name for path in (ROOT / "scripts").glob("*.py")}
    assert files == {"__init__.py", "errors.py", "api.py"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    named = set(re.findall(r"scripts\.(\w+)", " ".join(contract["layers"])))
    rooms = {path.parent.name for path in (ROOT / "scripts").glob("*/__init__.py")}
    assert rooms | {"errors", "api"} == named


def test_an_import_that_runs_up_or_sideways_breaks_the_contract(tmp_path: Path):
    for name in ("scripts", "bundle"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert linted(tmp_path).returncode == 0
    grid = tmp_path / "scripts" / "spatial" / "grid.py"
    kept = grid.read_text(encoding="utf-8")
    grid.write_text(f"{kept}\nfrom scripts.atlas.network import AtlasNetwork\n", encoding="utf-8")
    up = linted(tmp_path)
    assert up.returncode != 0
    assert "scripts.spatial.grid -> scripts.atlas.network" in up.stdout
    grid.write_text(kept, encoding="utf-8")
    network = tmp_path / "scripts" / "affine" / "network.py"
    kept = network.read_text(encoding="utf-8")
    network.write_text(f"{kept}\nimport scripts.elastic.network\n", encoding="utf-8")
    sideways = linted(tmp_path)
    assert sideways.returncode != 0
    assert "scripts.affine.network -> scripts.elastic.network" in sideways.stdout
