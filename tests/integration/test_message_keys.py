"""Messages name the settings of the job that was started, not those of another one.

Commands run in this process: a new one would take seconds for torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from bundle import cli
from bundle.jobs import JOBS
from scripts.engines.handlers import NonFiniteGuard, TrainingCheckpoint
from scripts.engines.run_state import RunState
from scripts.errors import CheckpointError, CohortError, ConfigurationError
from scripts.runtime import error_report
from scripts.runtime.error_report import find_user_error
from scripts.settings.affine import LearnedAffineConfig, load_learned_affine
from scripts.settings.align import load_align
from scripts.settings.atlas import LearnedAtlasConfig, load_settings
from scripts.settings.elastic import LearnedElasticConfig, load_learned_elastic
from scripts.settings.section import Section
from scripts.settings.stack import load_register_stack

ABSENT = "cuda:99"
# What each verb with a device needs to get as far as opening it, beside the device itself.
PAIR = ("--fixed", "a.nii.gz", "--moving", "b.nii.gz")
FLAT = ("--learned_atlas#cohort#layout", "flat", "--learned_atlas#cohort#normalisation", "none")
DEVICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("learned_atlas", ()),
    "build": ("learned_atlas", ()),
    "export": ("learned_atlas", ()),
    "register": ("learned_atlas", ()),
    "evaluate": ("learned_atlas", ()),
    "cross-validate": ("learned_atlas", ()),
    "barycentre": ("learned_atlas", FLAT),
    "train-affine": ("learned_affine", ()),
    "train-elastic": ("learned_elastic", ()),
    "estimate-affine": ("estimate_affine", PAIR),
    "register-elastic": ("register_elastic", PAIR),
    "train-fields": ("train_fields", ("--pairs", "a.h5")),
    "predict-fields": ("predict_fields", ("--pairs", "a.h5")),
    "align": ("align", ()),
    "refine": ("refine", ("--refine#fixed", "a.nii.gz", "--refine#moving", "b.nii.gz")),
    "labels": ("label_transfer", ("--atlas", "a.trk", "--subject", "b.trk")),
    "register-stack": ("register_stack", ("--stack", "a.zarr")),
}
# They read the atlas's block for its cohort, compute without torch, or check without running.
UNUSED = {"average", "compare", "check"}
BLOCKS = {"learned_atlas", *(block for block, _ in DEVICES.values())}


@dataclass
class Place:
    """A dataset of five tiny maps, and folders of a run."""

    dataset: Path
    output: Path
    capture: pytest.CaptureFixture[str]

    def refuse(self, verb: str, *words: object) -> tuple[int, str]:
        """Exit code of a command, and what it printed: errors, and warnings of its log."""
        self.capture.readouterr()
        folders = ["--dataset_dir", self.dataset, "--output_dir", self.output]
        if verb not in (
            "align", "refine", "labels", "barycentre", "average", "compare", "register-stack",
        ):  # fmt: skip
            folders += ["--ckpt_dir", self.output / "models"]
        if verb in ("refine", "labels", "register-stack"):
            del folders[:2]
        code = cli.main([verb, *(str(word) for word in (*folders, *words))])
        printed = self.capture.readouterr()
        return code, printed.out + printed.err


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    x = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"))
    for number in range(5):
        bump = np.exp(-((x - 7.5 - 0.3 * number) ** 2).sum(0) / 18)
        bump[bump < 1e-3] = 0
        image = nib.Nifti1Image(bump.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
        nib.save(image, folder / f"s{number}.nii.gz")
    return folder


@pytest.fixture
def place(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(dataset, tmp_path / "output", capsys)


def only_names(error: str, block: str) -> bool:
    """Whether no other block of settings is named."""
    return not any(f"{other}{mark}" in error for other in BLOCKS - {block} for mark in ".#")


# -- devices ---------------------------------------------------------------------------------


def test_every_verb_whose_settings_have_a_device_is_tried_here() -> None:
    result = set()
    for verb, job in JOBS.items():
        config = yaml.safe_load((cli.ROOT / job.config).read_text(encoding="utf-8"))
        blocks = [name for name, block in config.items() if isinstance(block, dict)]
        if any("device" in config[name] for name in BLOCKS.intersection(blocks)):
            result.add(verb)
    assert result == set(DEVICES) | UNUSED


@pytest.mark.parametrize("verb", DEVICES)
def test_a_device_that_is_not_there_names_the_verbs_own_key(verb: str, place: Place) -> None:
    block, words = DEVICES[verb]
    code, error = place.refuse(verb, *words, f"--{block}#device", ABSENT)
    assert code == ConfigurationError.exit_code, error
    assert f"{block}.device: '{ABSENT}' is a CUDA device" in error
    assert only_names(error, block)


def test_a_device_named_at_the_top_is_that_of_the_block(place: Place) -> None:
    code, error = place.refuse("estimate-affine", *PAIR, "--device_name", ABSENT)
    assert code == ConfigurationError.exit_code
    assert f"estimate_affine.device: '{ABSENT}'" in error


# -- subjects --------------------------------------------------------------------------------

COHORTS = {
    "average": "learned_atlas.cohort",
    "barycentre": "learned_atlas.cohort",
    "compare": "learned_atlas.cohort",
    "check": "learned_atlas.cohort",
    "train": "learned_atlas.cohort",
    "train-affine": "learned_affine.images",
    "train-elastic": "learned_elastic.images",
    "align": "align",
}


def found_in(verb: str, **changes: str) -> list[str]:
    """Settings of a verb that find the dataset's subjects, some changed."""
    section = COHORTS[verb].replace(".", "#")
    pattern = "image" if verb == "align" else "pattern"
    values = {pattern: "{subject}.nii.gz", **changes}
    device = [] if verb in UNUSED else [f"--{section.partition('#')[0]}#device", "cpu"]
    words = [word for key, value in values.items() for word in (f"--{section}#{key}", value)]
    return [*device, *words]


@pytest.mark.parametrize("verb", COHORTS)
def test_a_subject_that_is_not_there_names_the_list(verb: str, place: Place) -> None:
    code, error = place.refuse(verb, *found_in(verb, subjects="['nobody']"))
    section = COHORTS[verb]
    block = section.partition(".")[0]
    assert code == CohortError.exit_code, error
    assert f"but {section}.subjects names it" in error
    assert f"{block}.min_subjects" in error or f"{block}.folds" in error
    assert only_names(error, block)


@pytest.mark.parametrize("verb", COHORTS)
def test_a_pattern_that_fits_nothing_is_named(verb: str, place: Place) -> None:
    key = "image" if verb == "align" else "pattern"
    code, error = place.refuse(verb, *found_in(verb, **{key: "{subject}/none.nii.gz"}))
    section = COHORTS[verb]
    assert code == CohortError.exit_code, error
    assert f"{section}.{key}" in error.replace("#", ".")
    assert only_names(error, section.partition(".")[0])


@pytest.mark.parametrize("verb", ["align", "train-affine", "train-elastic", "average"])
def test_an_unknown_name_to_leave_out_is_reported_with_its_key(verb: str, place: Place) -> None:
    # Four of five left out: the run ends before it computes anything.
    left_out = "['s0', 's1', 's2', 's3', 'typo']"
    code, error = place.refuse(verb, *found_in(verb, exclude=left_out))
    assert code == CohortError.exit_code, error
    assert f"{COHORTS[verb]}.exclude names no subject: typo" in error


def test_a_tract_that_is_not_there_is_named_by_the_elastic_networks_key(place: Place) -> None:
    words = found_in("train-elastic", pattern="{subject}.nii.gz", tracts="['af']")
    code, error = place.refuse("train-elastic", *words)
    assert code == ConfigurationError.exit_code, error
    assert "learned_elastic.images.pattern = '{subject}.nii.gz': must contain {tract}" in error
    assert "learned_elastic.images.tracts = ['af'] selects single tracts" in error


def test_a_further_image_of_alignment_goes_by_the_key_that_holds_its_pattern() -> None:
    settings = load_align({"image": "{subject}.nii", "labels": ["{subject}_mask.nii"]})
    assert settings.subject_search("{subject}.nii").key("pattern") == "align.image"
    search = settings.subject_search("{subject}_mask.nii")
    assert search.option("pattern") == "align#labels"


# -- unfinished runs -------------------------------------------------------------------------


class Elsewhere:
    """A cohort other than any dataset's."""

    def identity(self) -> str:
        return "another"


RESUMED: dict[str, tuple[type[Section], str]] = {
    "train": (LearnedAtlasConfig, "models/run_state"),
    "cross-validate": (LearnedAtlasConfig, "models/cross_validation"),
    "train-affine": (LearnedAffineConfig, "models/affine_run_state"),
    "train-elastic": (LearnedElasticConfig, "models/elastic_run_state"),
    "align": (type(load_align({})), ".aligned.unfinished"),
}


@pytest.mark.parametrize("verb", RESUMED)
def test_an_unfinished_run_of_another_kind_advises_the_verbs_own_resume(
    verb: str, place: Place
) -> None:
    kind, folder = RESUMED[verb]
    state = RunState(place.output / folder, kind.load({}), Elsewhere())
    (state.folder / "round-000").mkdir()
    (state.folder / "round-000" / "000001.json").write_text("{}")
    more = {
        "train": ["--learned_atlas#cohort#normalisation", "none"],
        "cross-validate": [
            *FLAT,
            "--learned_atlas#device",
            "cpu",
            "--learned_atlas#min_subjects",
            2,
        ],
    }
    words = found_in(verb) if verb in COHORTS else []
    code, error = place.refuse(verb, *words, *more.get(verb, []))
    assert code == CheckpointError.exit_code, error
    assert f"--{kind.key_path}#resume false" in error
    assert only_names(error, kind.key_path)


@pytest.mark.parametrize("kind", [LearnedAtlasConfig, LearnedAffineConfig, LearnedElasticConfig])
@pytest.mark.parametrize("damage", ["format", "content"])
def test_a_training_checkpoint_that_cannot_be_used_advises_its_own_resume(
    kind: type[Section], damage: str, tmp_path: Path
) -> None:
    state = RunState(tmp_path, kind.load({}), Elsewhere())
    network = torch.nn.Linear(1, 1)
    result: dict[str, Any] = {"network": network.state_dict()}
    torch.save(result | ({"format": 99} if damage == "format" else {}), state.training)
    optimizer = torch.optim.Adam(network.parameters())
    stub: Any = SimpleNamespace()
    handler = TrainingCheckpoint(state, network, optimizer, stub, stub)
    with pytest.raises(CheckpointError, match=f"--{kind.key_path}#resume false"):
        handler.load(stub)


@pytest.mark.parametrize("name", ["train", "train_affine", "train_elastic"])
def test_the_guard_of_each_training_advises_its_own_keys(name: str) -> None:
    path = cli.ROOT / "configs" / f"{name}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    target = "scripts.engines.handlers.NonFiniteGuard"
    component = next(one for one in config["train"]["handlers"] if one["_target_"] == target)
    block = next(key for key in config if key.startswith("learned_"))
    advice = NonFiniteGuard(component["block"]).advice
    assert f"--{block}#optimizer#lr" in advice
    assert f"--{block}#resume false" in advice


# -- memory ----------------------------------------------------------------------------------


@pytest.fixture
def advice_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(error_report, "_memory_advice", error_report._memory_advice)
    yield


@pytest.mark.parametrize(
    "load, named",
    [
        (load_settings, "learned_atlas#model#field_resolution"),
        (load_learned_affine, "learned_affine#optimizer#batch_size"),
        (load_learned_elastic, "learned_elastic#optimizer#batch_size"),
        (load_align, "align#levels"),
        (lambda _: load_register_stack({"stack": "a.zarr"}), "register_stack#n_workers"),
    ],
)
def test_what_to_do_without_memory_names_the_jobs_own_keys(
    load: Any, named: str, advice_restored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.excepthook", lambda *_: None)  # put back what loading installs
    load({})
    message = str(find_user_error(MemoryError()))
    assert named in message
    assert only_names(message, named.partition("#")[0])
