"""The separate environment of MONAI Label, beside the repository's.

MONAI Label needs NumPy 1 and older DICOM packages than its dependencies would install, so it can't
share an environment with the pins of requirements.txt.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
import venv
from pathlib import Path

from bundle.workshop import TORCH, clean_environment

__all__ = ["PACKAGES", "LabelCheckError", "LabelEnvironment"]

MONAI_LABEL = "0.8.5"
PACKAGES = (
    f"monailabel=={MONAI_LABEL}",
    # Newer versions renamed what MONAI Label 0.8.5 imports.
    "pydicom==2.4.5",
    "dicomweb-client==0.59.3",
    "pynetdicom==2.1.1",
)
_SHOWN = 15  # lines of pip's output in an error
# torchvision exists only as a CUDA build. With a CPU build of torch its compiled part can't be
# loaded, and its Python part needs two operators of it at import. MONAI Label calls neither of them
# here.
_OPERATORS = '''\
"""Lets torchvision be imported beside a CPU build of torch (written by label-check)."""

import sys
from importlib.abc import MetaPathFinder

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
KEPT = []  # what a library defines is gone with it


class DefineOperators(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(name + SIGNATURE)
            KEPT.append(library)
        return None


sys.meta_path.insert(0, DefineOperators())
'''


class LabelCheckError(Exception):
    """The check can't run, or fails; the message says why."""


class LabelEnvironment:
    """A virtual environment with MONAI Label, made on first use and then reused.

    Args:
        folder: its location; a folder that this class didn't make is left alone.
        root: of the bundle, whose metadata contain the required versions.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder.absolute()
        self.root = root
        self.python = self.folder / "bin" / "python"
        self.stamp = self.folder / "label-check.json"

    def constraints(self) -> list[str]:
        """Versions that the bundle is tested with; NumPy's is chosen by MONAI Label."""
        metadata = json.loads((self.root / "configs/metadata.json").read_text(encoding="utf-8"))
        pins = {"monai": metadata["monai_version"], **metadata["required_packages_version"]}
        return [f"torch=={TORCH}", *(f"{name}=={version}" for name, version in pins.items())]

    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the content of the environment."""
        wanted = [*PACKAGES, *self.constraints(), _OPERATORS, platform.python_version()]
        return hashlib.sha256("\n".join(wanted).encode()).hexdigest()

    def prepare(self) -> float:
        """Make the environment unless it exists.

        Returns:
            Seconds that its installation took, now or earlier.

        Raises:
            LabelCheckError: something else is in its place, or pip failed.
        """
        if self.stamp.is_file():
            made = json.loads(self.stamp.read_text(encoding="utf-8"))
            if made["fingerprint"] == self.fingerprint():
                return float(made["seconds"])
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise LabelCheckError(
                f"{self.folder} contains something else than an environment of this command; name "
                "another folder with --environment"
            )
        started = time.monotonic()
        venv.create(self.folder, with_pip=True, clear=True)
        # Empty until everything is installed, so that an interrupted set-up is recognised as ours.
        self.stamp.write_text('{"fingerprint": ""}\n', encoding="utf-8")
        limits = self.folder / "constraints.txt"
        limits.write_text("\n".join(self.constraints()) + "\n", encoding="utf-8")
        self._pip(f"torch=={TORCH}")
        self._pip("-c", str(limits), *PACKAGES)
        if not self._imports_torchvision():
            packages = self._output("import sysconfig; print(sysconfig.get_path('purelib'))")
            (Path(packages) / "sitecustomize.py").write_text(_OPERATORS, encoding="utf-8")
            if not self._imports_torchvision():
                raise LabelCheckError(f"{self.folder}: torchvision can't be imported beside torch")
        seconds = time.monotonic() - started
        made = {"fingerprint": self.fingerprint(), "seconds": round(seconds, 1)}
        self.stamp.write_text(json.dumps(made) + "\n", encoding="utf-8")
        return seconds

    def monai_label(self) -> list[str]:
        """Its command; the script that MONAI Label installs fails on paths with spaces."""
        return [str(self.python), "-m", "monailabel.main"]

    def variables(self) -> dict[str, str]:
        """Variables of `monai_label`, as its script sets them: training adds to PYTHONPATH."""
        variables = clean_environment()
        path = f"{self.folder / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
        return {**variables, "PATH": path, "PYTHONPATH": str(self.folder)}

    def versions(self) -> dict[str, str]:
        """Installed versions of the relevant packages."""
        names = ["monailabel", "monai", "torch", "torchvision", "numpy", "nibabel", "pydantic"]
        code = (
            "import json; from importlib.metadata import version; "
            f"print(json.dumps({{name: version(name) for name in {names}}}))"
        )
        return json.loads(self._output(code))

    def size(self) -> int:
        """Size on disk, bytes."""
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "install", "-q", *arguments]
        result = subprocess.run(
            [*command, "--disable-pip-version-check"],
            env=clean_environment(), capture_output=True, text=True,
        )  # fmt: skip
        if result.returncode != 0:
            output = "\n".join((result.stdout + result.stderr).strip().splitlines()[-_SHOWN:])
            raise LabelCheckError(f"pip could not install {' '.join(arguments)}:\n{output}")

    def _imports_torchvision(self) -> bool:
        command = [str(self.python), "-c", "import torchvision"]
        return subprocess.run(command, env=clean_environment(), capture_output=True).returncode == 0

    def _output(self, code: str) -> str:
        return subprocess.run(
            [str(self.python), "-c", code],
            env=clean_environment(), check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
