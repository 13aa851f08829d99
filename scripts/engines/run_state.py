"""What a run leaves on disk so that it can go on after an interruption."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from scripts.errors import CheckpointError, StorageError
from scripts.runtime.input_files import FileError, read_json
from scripts.runtime.processes import from_first
from scripts.runtime.storage import write_whole
from scripts.settings.section import Section

__all__ = ["Identified", "RunState"]

logger = logging.getLogger(__name__)

FORMAT = 1

# Settings that change where and how a run computes or what it writes, not what it learns.
_FREE = {
    "enabled", "device", "resume", "save_fields", "verify_jacobian", "emit_baseline_maps",
    "output_subdir", "cohort.cache", "cohort.num_workers", "cohort.resample", "presence_value",
    "cov_mean_threshold_pct", "model.checkpointing", "refine.new_subject_iterations",
}  # fmt: skip


class Identified(Protocol):
    """What a run learns from: a cohort, or anything else with a digest of its content."""

    def identity(self) -> str:
        """Equal for equal content."""
        ...


def _binding(settings: Section) -> dict[str, Any]:
    """The settings that an unfinished run can't go on without."""
    return {path: value for path, value in settings.by_path().items() if path not in _FREE}


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {theirs.get(key)!r}, now {ours.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


class RunState:
    """The folder of an unfinished run.

    It belongs to one cohort and one set of settings. A run that finds an unfinished one of its
    own goes on from it; of another, it refuses; a finished one it starts afresh.

    Args:
        folder: ``<ckpt_dir>/run_state``.
        settings: of this run.
        cohort: of this run.
        resume: False throws an unfinished run away.
        read_only: look at what is there, for an export; see `belongs_to`.
        overrides: what else was changed, by its id in the configuration; see `config_overrides`.

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
    ) -> None:
        self.folder = Path(folder)
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
        """Go on with what is there, or make place."""
        there = self._read(self.folder / "run.json")
        if there is not None and not there["finished"] and resume:
            self._compare(there["signature"])
            logger.info("going on with the unfinished run in %s", self.folder)
            # MONAI moves cached files in from another disk: one may have been cut off halfway.
            shutil.rmtree(self.cache, ignore_errors=True)
            return
        # What the folder says of itself goes first: half of an earlier run is nobody's.
        try:
            (self.folder / "run.json").unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: can't be cleared: {error}") from error
        shutil.rmtree(self.folder, ignore_errors=True)
        self._write(finished=False)

    @property
    def training(self) -> Path:
        """The trainer's checkpoint."""
        return self.folder / "training.pt"

    @property
    def cache(self) -> Path:
        """Prepared maps kept on disk: they hold for this cohort and these settings alone."""
        return self.folder / "cache"

    @property
    def refinement(self) -> Path:
        """The refined velocities and the templates they belong to."""
        return self.folder / "refinement"

    @property
    def fine_tuning(self) -> Path:
        """The network's last epochs, against the finished template."""
        return self.folder / "fine_tuning.pt"

    def belongs_to(self, network_identity: str) -> bool:
        """Whether the folder holds the run that made the given weights from this cohort."""
        there = self._read(self.folder / "run.json")
        return (
            there is not None
            and there.get("network") == network_identity
            and there["signature"].get("cohort") == self.signature["cohort"]
        )

    def finish(self, network_identity: str) -> None:
        """The atlas is published: the next run starts afresh."""
        self._write(finished=True, network=network_identity)

    def _write(self, **more: Any) -> None:
        with write_whole(self.folder / "run.json") as path:
            path.write_text(json.dumps({"signature": self.signature, **more}, indent=1))

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            there = read_json(path)
        except (FileError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); delete {self.folder}") from error
        if not isinstance(there, dict) or not {"signature", "finished"} <= set(there):
            return None
        signature = there["signature"]
        if not (
            isinstance(signature, dict)
            and isinstance(signature.get("settings"), dict)
            and isinstance(signature.get("overrides", {}), dict)
        ):
            raise CheckpointError(f"{path}: says nothing of its run; delete {self.folder}")
        return there

    def _compare(self, there: dict[str, Any]) -> None:
        advice = (
            f"an unfinished run lies in {self.folder}; finish it with its own settings and "
            f"dataset, or throw it away with --{self.block}#resume false"
        )
        if there.get("format") != FORMAT:
            raise CheckpointError(
                f"the run was written in format {there.get('format')!r}, this version reads "
                f"{FORMAT}: {advice}"
            )
        if there.get("cohort") != self.signature["cohort"]:
            raise CheckpointError(f"the run belongs to another cohort: {advice}")
        ours: dict[str, Any] = json.loads(json.dumps(self.signature["settings"]))
        theirs: dict[str, Any] = there["settings"]
        changed = [f"{self.block}.{one}" for one in _changed(ours, theirs)]
        ours = json.loads(json.dumps(self.signature.get("overrides", {})))
        changed += _changed(ours, there.get("overrides", {}))
        if changed:
            raise CheckpointError(f"the run has other settings ({'; '.join(changed)}): {advice}")
