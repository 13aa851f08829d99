"""The files that a run keeps on disk, to continue after an interruption."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from scripts.errors import CheckpointError, StorageError, some_names
from scripts.runtime.checked_json import verified, write_checked
from scripts.runtime.input_files import FileError, read_json
from scripts.runtime.lock import LOCK_FILE
from scripts.runtime.processes import from_first
from scripts.runtime.run_log import LOG_FILE
from scripts.runtime.storage import check_not_root
from scripts.settings.section import Section

__all__ = ["Identified", "RunState", "check_earlier_run"]

logger = logging.getLogger(__name__)

FORMAT = 1
_KEYS = frozenset({"signature", "finished", "network", "cleared"})

# Settings that affect where and how a run computes or what it writes, not what it learns.
_FREE = {
    "enabled", "device", "resume", "save_fields", "save_warped", "save_jacobians",
    "verify_jacobian", "emit_baseline_maps", "cohort.labels", "cohort.label_names", "cohort.mask",
    "output_subdir", "cohort.cache", "cohort.num_workers", "cohort.resample", "presence_value",
    "cov_mean_threshold_pct", "model.checkpointing", "refine.new_subject_iterations",
    "optimizer.num_workers", "overwrite", "save", "n_workers", "progress_steps", "scheduler",
    "stack", "reference", "placement", "placement_sigma", "crop_borders", "crop_safety_margin",
    "interpolation", "fill", "formats",
}  # fmt: skip


class Identified(Protocol):
    """What a run learns from: a cohort, or anything else with a digest of its content."""

    def identity(self) -> str:
        """Equal for equal content."""
        ...


# What runs leave in their folder; names with a process's number are halves of killed ones.
_FILES = re.compile(
    r"run\.json|folds\.json|(training|fine_tuning)(\.previous)?\.pt|cache|refinement|pairs"
    r"|(fold|round)-\d+|\.\d+\..+|\.DS_Store"
)


# Of these, what every run writes before it has computed anything, and the halves of a killed one.
_NOT_SAVED = re.compile(
    rf"run\.json|folds\.json|\.\d+\..+|\.DS_Store|{re.escape(LOCK_FILE)}|{re.escape(LOG_FILE)}(\.\d+)?"
)


def check_earlier_run(folder: Path) -> None:
    """Check that the folder that a run clears at its start contains a run and nothing else.

    A run is recognised by its ``run.json``.

    Raises:
        StorageError: it contains anything else.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise StorageError(f"{folder}: can't be written: a file of that name is in the way")
    try:
        names = {path.name for path in folder.iterdir()} - {LOCK_FILE}
        is_run = _is_of_a_run(folder / "run.json")
    except OSError as error:
        raise StorageError(f"{folder}: can't be looked through: {error}") from error
    foreign = [name for name in names if not is_run or not _FILES.fullmatch(name)]
    if foreign:
        # A job without models keeps its state beside its output.
        option = "output_dir" if folder.name.endswith(".unfinished") else "ckpt_dir"
        raise StorageError(
            f"{folder}: would be cleared for the run's state, but contains "
            f"{some_names(sorted(foreign))}, which no run of this bundle wrote; move that "
            f"elsewhere, or choose another --{option}"
        )


def _is_of_a_run(path: Path) -> bool:
    """Whether a ``run.json`` may be this bundle's; a damaged one is reported when it is read."""
    if not path.is_file():
        return False
    try:
        content = read_json(path)
    except (FileError, ValueError):
        return True
    return not isinstance(content, dict) or bool({"signature", "cleared"} & set(content))


def _format(run: Any) -> Any:
    signature = run.get("signature") if isinstance(run, dict) else None
    return signature.get("format") if isinstance(signature, dict) else FORMAT


def _binding(settings: Section) -> dict[str, Any]:
    """Identify a run by the settings that must not change when it is resumed."""
    return {path: value for path, value in settings.by_path().items() if path not in _FREE}


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {theirs.get(key)!r}, now {ours.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


class RunState:
    """The folder of an unfinished run.

    It belongs to one cohort and one set of settings. A run continues an unfinished run with the
    same ones, refuses one with others, and replaces a finished one. An unfinished run that saved
    nothing, because it was refused or stopped early, is replaced as well.

    Args:
        folder: ``<ckpt_dir>/run_state``.
        settings: of this run.
        cohort: of this run.
        resume: False discards an unfinished run.
        read_only: only read the folder, for an export; see `belongs_to`.
        overrides: other changes by their id in the configuration; see `config_overrides`.
        noun: what messages call the cohort.

    Raises:
        CheckpointError: if the folder belongs to other settings, another cohort or another
            version of the format.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Section,
        cohort: Identified,
        resume: bool = True,
        read_only: bool = False,
        overrides: Mapping[str, Any] | None = None,
        noun: str = "cohort",
    ) -> None:
        self.noun = noun
        self.folder = Path(folder)
        check_not_root(self.folder)
        self.block = settings.key_path
        self.signature: dict[str, Any] = {
            "format": FORMAT,
            "cohort": cohort.identity(),
            "settings": _binding(settings),
        }
        if overrides:
            self.signature["overrides"] = dict(overrides)
        if read_only:
            self._read(self.folder / "run.json")
        else:
            from_first(lambda: self._open(resume))

    def _open(self, resume: bool) -> None:
        """Continue the unfinished run, or clear the folder."""
        earlier = self._read(self.folder / "run.json")
        if earlier is not None and not earlier["finished"] and resume and self._continues(earlier):
            logger.info("continuing the unfinished run in %s", self.folder)
            # MONAI moves cached files here from another disk: one may be incomplete.
            shutil.rmtree(self.cache, ignore_errors=True)
            return
        check_earlier_run(self.folder)
        self._clear()
        self._write(finished=False)

    def _continues(self, earlier: dict[str, Any]) -> bool:
        """Whether this run continues the unfinished one; False: that one saved nothing.

        Raises:
            CheckpointError: the unfinished run saved something, and is another one.
        """
        try:
            self._compare(earlier["signature"])
        except CheckpointError as error:
            if self._saved():
                raise
            logger.info("an unfinished run that saved nothing is discarded: %s", error)
            return False
        return True

    def _saved(self) -> bool:
        """Whether the folder holds anything that took time to compute."""
        return any(
            path.is_file() and not _NOT_SAVED.fullmatch(path.name)
            for path in self.folder.rglob("*")
            if self.cache not in path.parents
        )

    def _clear(self) -> None:
        """Remove an earlier run; a kill leaves a folder that is still known for a run's."""
        if not self.folder.exists():
            return
        # The record of the run is removed first: half of an earlier run belongs to no run.
        write_checked(self.folder / "run.json", {"cleared": True})
        try:
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name not in ("run.json", LOCK_FILE):
                    path.unlink()
        except OSError as error:
            raise StorageError(f"{self.folder}: can't be cleared: {error}") from error

    @property
    def training(self) -> Path:
        """The trainer's checkpoint."""
        return self.folder / "training.pt"

    @property
    def cache(self) -> Path:
        """Prepared maps cached on disk; valid only for this cohort and these settings."""
        return self.folder / "cache"

    @property
    def refinement(self) -> Path:
        """The refined velocities and their templates."""
        return self.folder / "refinement"

    @property
    def fine_tuning(self) -> Path:
        """The last epochs of the network, with the final template."""
        return self.folder / "fine_tuning.pt"

    def belongs_to(self, network_identity: str) -> bool:
        """Whether the folder contains the run that made these weights from this cohort."""
        earlier = self._read(self.folder / "run.json")
        return (
            earlier is not None
            and earlier.get("network") == network_identity
            and earlier["signature"].get("cohort") == self.signature["cohort"]
        )

    def finish(self, network_identity: str) -> None:
        """Mark the run as finished: the next run starts from the beginning."""
        self._write(finished=True, network=network_identity)
        for path in self.folder.rglob("*.previous.pt"):  # nothing goes on from there any more
            path.unlink(missing_ok=True)

    def _write(self, **more: Any) -> None:
        write_checked(self.folder / "run.json", {"signature": self.signature, **more})

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            content = read_json(path)
            # Another format may have other keys; it is refused below.
            content = verified(content, _KEYS if _format(content) == FORMAT else None)
        except (FileError, ValueError) as error:
            why = error.reason if isinstance(error, FileError) else str(error)
            raise CheckpointError(f"{path}: damaged ({why}); delete {self.folder}") from error
        if not isinstance(content, dict) or not {"signature", "finished"} <= set(content):
            return None
        signature = content["signature"]
        if not (
            isinstance(signature, dict)
            and isinstance(signature.get("settings"), dict)
            and isinstance(signature.get("overrides", {}), dict)
        ):
            raise CheckpointError(f"{path}: doesn't describe its run; delete {self.folder}")
        return content

    def _compare(self, earlier: dict[str, Any]) -> None:
        advice = (
            f"{self.folder} contains an unfinished run; finish it with the same settings and "
            f"dataset, or discard it with --{self.block}#resume false"
        )
        if earlier.get("format") != FORMAT:
            raise CheckpointError(
                f"the run was written in format {earlier.get('format')!r}, this version reads "
                f"{FORMAT}: {advice}"
            )
        if earlier.get("cohort") != self.signature["cohort"]:
            raise CheckpointError(f"the run belongs to another {self.noun}: {advice}")
        ours: dict[str, Any] = json.loads(json.dumps(self.signature["settings"]))
        theirs: dict[str, Any] = earlier["settings"]
        changed = [f"{self.block}.{one}" for one in _changed(ours, theirs)]
        ours = json.loads(json.dumps(self.signature.get("overrides", {})))
        changed += _changed(ours, earlier.get("overrides", {}))
        if changed:
            raise CheckpointError(f"the run has other settings ({'; '.join(changed)}): {advice}")
