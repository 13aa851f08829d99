"""Cross-validation: one training per fold, evaluated on that fold."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from scripts.cohort import Cohort, read_cohort
from scripts.cohort.runs import warn_of_one_person
from scripts.engines.given import given
from scripts.engines.opening import check_earlier_files
from scripts.engines.run_state import RunState
from scripts.errors import CheckpointError, CohortError, ConfigurationError
from scripts.evaluation.held_out import EVALUATION_FOLDER
from scripts.evaluation.report import publish_evaluation, table
from scripts.networks.precision import open_device
from scripts.runtime.checked_json import read_checked, write_checked
from scripts.runtime.input_files import FileError, read_json
from scripts.runtime.lock import locked_folders
from scripts.runtime.processes import world_size
from scripts.runtime.storage import check_replaceable, check_writable, write_whole
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.evaluate import EvaluateConfig

__all__ = ["CrossValidation", "cut"]

logger = logging.getLogger(__name__)

FOLDER = "cross_validation"


def cut(subjects: Sequence[str], folds: int, seed: int) -> list[list[str]]:
    """Split the subjects into parts whose sizes differ by at most one, each sorted by name.

    The larger parts come first, so that a training set that is too small is noticed at once.
    """
    order = np.random.default_rng(seed).permutation(len(subjects))
    return [sorted(subjects[i] for i in part) for part in np.array_split(order, folds)]


class CrossValidation:
    """Splits a cohort by subject; trains on all parts but one and evaluates on that one, in turn.

    Each fold is trained with configs/train.yaml and evaluated with configs/evaluate.yaml, as a user
    would do it, so no subject is ever in both sets. The folds are in
    ``<ckpt_dir>/cross_validation``: finished ones are skipped, and an interrupted training
    continues. The result in ``<output_dir>/cross_validation`` appears completely or not at all.

    Args:
        dataset_dir: the whole cohort.
        output_dir: destination of the table.
        ckpt_dir: destination of the folds' models.
        train_config: trains a fold.
        evaluate_config: evaluates a fold.
        asked: settings that differ from those in ``train_config``.
        settings: how to split the cohort.
        bundle_root: of the configs.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        output_dir: str | Path,
        ckpt_dir: str | Path,
        train_config: str | Path,
        evaluate_config: str | Path,
        asked: LearnedAtlasConfig,
        settings: EvaluateConfig,
        bundle_root: str | Path = ".",
    ) -> None:
        self.dataset_dir = str(dataset_dir)
        self.output_dir = Path(output_dir)
        self.ckpt_dir = Path(ckpt_dir)
        self.train_config = Path(train_config)
        self.evaluate_config = Path(evaluate_config)
        self.asked = asked.model_dump(mode="json", exclude_unset=True)
        self.settings = settings
        self.bundle_root = str(bundle_root)

    def run(self) -> Path:
        """Run the remaining folds, and publish.

        Returns:
            The published folder.

        Raises:
            CohortError: the cohort can't be used, or is too small to be split.
            ConfigurationError: several processes were started.
            CheckpointError: there is an unfinished cross-validation of other settings.
        """
        if world_size() > 1:
            raise ConfigurationError(
                f"cross-validation runs in one process, not in {world_size()}; start it without "
                "torchrun"
            )
        for folder in (self.output_dir, self.ckpt_dir):
            check_writable(folder)
        needed: list[str | Path] = [self.dataset_dir, self.ckpt_dir / FOLDER]
        check_replaceable(self.output_dir / FOLDER, inputs=needed)
        check_earlier_files([self.ckpt_dir / FOLDER], [self.dataset_dir])
        settings = self._training_settings()
        open_device(settings.device, settings.key("device"))
        with locked_folders(self.output_dir, self.ckpt_dir / FOLDER):
            cohort = read_cohort(self.dataset_dir, settings.cohort_request().without_labels())
            parts = self._parts(cohort, settings)
            state = RunState(self.ckpt_dir / FOLDER, settings, cohort, settings.resume)
            self._keep_plan(state.folder, parts)
            reports = [
                self._fold(state.folder / f"fold-{number}", number, part, parts, settings)
                for number, part in enumerate(parts, start=1)
            ]
            folder = self._publish(cohort, settings, parts, reports)
            state.finish(" ".join(str(report["weights"]) for report in reports))
        logger.info("cross-validation of %d folds published in %s", len(parts), folder)
        return folder

    # -- what a fold is --------------------------------------------------------------------

    def _parts(self, cohort: Cohort, settings: LearnedAtlasConfig) -> list[list[str]]:
        option = settings.subject_search().option("pattern")
        if not any(subject.person for subject in cohort.subjects):
            warn_of_one_person([subject.name for subject in cohort.subjects], option)
        images: dict[str, list[str]] = {}
        for subject in cohort.subjects:
            images.setdefault(subject.person or subject.name, []).append(subject.name)
        n, folds = len(cohort.subjects), self.settings.folds
        if len(images) < folds:
            raise CohortError(
                f"{len(images)} usable subjects in dataset folder {self.dataset_dir} can't be "
                f"split into evaluate.folds = {folds} parts"
            )
        people = cut(list(images), folds, self.settings.seed)
        parts = [sorted(name for one in part for name in images[one]) for part in people]
        left = n - max(map(len, parts))
        if left < settings.min_subjects:
            raise CohortError(
                f"with evaluate.folds = {folds}, {left} of {n} subjects remain for training, "
                f"fewer than learned_atlas.min_subjects = {settings.min_subjects}"
            )
        return parts

    def _training_settings(self) -> LearnedAtlasConfig:
        """The settings of configs/train.yaml, updated with the user's."""
        settings: LearnedAtlasConfig = self._parser(self.train_config).get_parsed_content(
            "settings"
        )
        block = settings.model_dump(mode="json", exclude_unset=True)
        return LearnedAtlasConfig.load(_laid_over(block, {"save_fields": False} | self.asked))

    def _keep_plan(self, folder: Path, parts: list[list[str]]) -> None:
        """Record how the cohort was split; other splits can't continue with these folds."""
        plan = {"seed": self.settings.seed, "parts": parts}
        path = folder / "folds.json"
        if path.is_file():
            try:
                earlier = read_checked(path, frozenset(plan))
            except (FileError, ValueError) as error:
                raise CheckpointError(f"{path}: damaged ({error}); delete {folder}") from error
            if earlier != plan:
                raise CheckpointError(
                    f"{folder} contains an unfinished cross-validation with other folds; finish it "
                    "with its evaluate#folds and evaluate#seed, or discard it with "
                    "--learned_atlas#resume false"
                )
            return
        if any(folder.glob("fold-*")):
            raise CheckpointError(
                f"{path}: is missing, so the split into folds beside it is unknown; delete {folder}"
            )
        write_checked(path, plan)

    # -- one fold --------------------------------------------------------------------------

    def _fold(
        self,
        folder: Path,
        number: int,
        part: list[str],
        parts: list[list[str]],
        settings: LearnedAtlasConfig,
    ) -> dict[str, Any]:
        """The evaluation of the fold, made if it is missing."""
        others = [name for other in parts if other is not part for name in other]
        excluded = settings.cohort.exclude
        trained = folder / "trained"
        counts = (number, len(parts), len(others), len(part))
        if not trained.is_file():
            logger.info("fold %d of %d: training on %d subjects, %d held out", *counts)
            self._run(
                self.train_config, "training", output_dir=str(folder), ckpt_dir=str(folder),
                settings=_without(settings.model_dump(exclude_unset=True), [*excluded, *part]),
            )  # fmt: skip
            with write_whole(trained) as staged:
                staged.touch()
            shutil.rmtree(folder / "run_state", ignore_errors=True)
        logger.info("fold %d of %d: trained on %d subjects, evaluating %d", *counts)
        report = folder / EVALUATION_FOLDER / "evaluation.json"
        result = _report(report)
        if result is None or result.get("asked") != self._asked():
            self._run(
                self.evaluate_config, "evaluating", output_dir=str(folder), ckpt_dir=str(folder),
                training_dir=self.dataset_dir,
                asked=_without(self.asked, [*excluded, *others]),
            )  # fmt: skip
            result = _report(report)
            if result is None:
                raise CheckpointError(f"{report}: can't be read; delete {folder}")
            with write_whole(report) as staged:
                staged.write_text(
                    json.dumps({**result, "asked": self._asked()}, indent=1), encoding="utf-8"
                )
        return result

    def _asked(self) -> dict[str, Any]:
        """The settings that an evaluation depends on, besides those of its training."""
        refine = self.asked.get("refine") or {}
        return {
            "presence_value": self.asked.get("presence_value"),
            "new_subject_iterations": refine.get("new_subject_iterations"),
        }

    def _run(self, config: Path, run_id: str, **overrides: Any) -> None:
        parser = self._parser(config, **overrides)
        parser.get_parsed_content(run_id)
        del parser
        gc.collect()  # a job's components refer to each other, and to the lock of its folders

    def _parser(self, config: Path, **values: Any) -> ConfigParser:
        """A configuration with values in it that are never read as its text: names are data."""
        parser = ConfigParser()
        parser.read_config(str(config))
        values = {"bundle_root": self.bundle_root, "dataset_dir": self.dataset_dir, **values}
        parser.update({name: given(value) for name, value in values.items()})
        return parser

    # -- the end ---------------------------------------------------------------------------

    def _publish(
        self,
        cohort: Cohort,
        settings: LearnedAtlasConfig,
        parts: list[list[str]],
        reports: list[dict[str, Any]],
    ) -> Path:
        rows = [
            {"fold": number, **row}
            for number, report in enumerate(reports, start=1)
            for row in report["subjects"]
        ]
        folder = self.output_dir / FOLDER
        about = {
            "kind": "cross_validation",
            "cohort": cohort.identity(),
            "seed": self.settings.seed,
            "folds": [
                {
                    "fold": number,
                    "subjects": part,
                    **{key: report[key] for key in ("weights", "templates", "rejected")},
                }
                for number, (part, report) in enumerate(zip(parts, reports, strict=True), start=1)
            ],
            "refinement_iterations": reports[0]["refinement_iterations"],
            "presence_value": reports[0]["presence_value"],
            "log_offset": reports[0]["log_offset"],
            "settings": settings.as_dict(),
        }
        publish_evaluation(folder, rows, about)
        print(table(rows), flush=True)
        return folder


def _without(settings: Mapping[str, Any], subjects: list[str]) -> LearnedAtlasConfig:
    """Settings that leave subjects out."""
    return LearnedAtlasConfig.load(_laid_over(settings, {"cohort": {"exclude": subjects}}))


def _laid_over(block: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, with some replaced."""
    result = dict(block)
    for key, value in changes.items():
        present = result.get(key)
        if isinstance(value, Mapping):
            result[key] = _laid_over(present if isinstance(present, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def _report(path: Path) -> dict[str, Any] | None:
    """The evaluation of a fold; None if it is missing or incomplete."""
    result = _read(path)
    return result if isinstance(result, dict) else None


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (FileError, ValueError):
        return None
