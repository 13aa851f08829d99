"""Attacks by text, names and files that come from outside; see `bundle.bench.attacks`.

Each attack runs the command line in a separate process. The right outcome is the status of
docs/commands.md, one line that says why, no traceback, and nothing done elsewhere.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai.bundle  # noqa: F401 (imported once, for all processes)
import torch

from bundle import cli
from bundle.bench.attacked_jobs import last_line
from bundle.bench.attacks import Outcome, attack
from bundle.bench.faults import COHORT_ONLY, TINY, write_cohort
from bundle.bench.forked_jobs import Ended, in_process
from bundle.places import ROOT
from scripts.networks.described import DescribedNetwork, description_in

__all__: list[str] = []

CODE = "$__import__('os').mkdir('PWNED')"
ODD = (CODE, "@x", "%x", "{}", "{subject}", "a#b", "=1+1", "\u202egnp")
_SHAPE = (12, 12, 12)
_LONGEST_S = 120  # of a verification that hangs


def _run(folder: Path, *words: object) -> Ended:
    """A verb in a separate process, whose working folder is ``folder``."""
    with contextlib.chdir(folder):
        return in_process([*map(str, words)], folder / "job")


def _refused(ended: Ended, *statuses: int) -> bool:
    """Whether a job ended with one of the statuses and a message, without a traceback."""
    return (
        ended.status in statuses and "Traceback" not in ended.output and "error: " in ended.output
    )


def _done(ended: Ended) -> bool:
    return ended.status == 0 and "Traceback" not in ended.output


def _odd_cohort(folder: Path) -> Path:
    write_cohort(folder, len(ODD), _SHAPE)
    for number, name in enumerate(ODD, start=1):
        (folder / f"sub-{number:04d}.nii.gz").rename(folder / f"{name}.nii.gz")
    return folder


def _averaged(folder: Path) -> Path:
    """An average of five subjects, published below ``folder``."""
    data = write_cohort(folder / "d", 5, _SHAPE)
    done = _run(folder, "average", f"--dataset_dir={data}", f"--output_dir={folder}", *COHORT_ONLY)
    if done.status != 0:
        raise RuntimeError(done.output)
    return folder / "atlas"


def _trained(folder: Path, *more: str) -> Path:
    """The folder of a model of five subjects."""
    data = write_cohort(folder / "d", 5, _SHAPE)
    folders = (f"--dataset_dir={data}", f"--output_dir={folder}", f"--ckpt_dir={folder / 'm'}")
    done = _run(folder, "train", *folders, *TINY, *more)
    if done.status != 0:
        raise RuntimeError(done.output)
    return folder / "m"


# ---------------------------------------------------------------------------------------------
# Text is never code
# ---------------------------------------------------------------------------------------------


@attack("text is code")
def text_as_code(folder: Path) -> Iterator[Outcome]:
    """Names of files, and settings in a model, that MONAI would evaluate."""
    data = _odd_cohort(folder / "d")
    folders = [
        f"--dataset_dir={data}",
        f"--output_dir={folder / 'o'}",
        f"--ckpt_dir={folder / 'm'}",
    ]
    few = ("--learned_atlas#min_subjects=2", "--evaluate#folds=2")
    for verb, more in (("check", ()), ("average", ()), ("train", ()), ("cross-validate", few)):
        words = folders[:1] if verb == "check" else folders[: 2 if verb == "average" else 3]
        settings = COHORT_ONLY if verb in ("check", "average") else TINY
        ended = _run(folder, verb, *words, *settings, *more)
        held = _done(ended) and not list(folder.rglob("PWNED"))
        yield Outcome(f"`{verb}`: subjects named `{CODE}`, `@x`, `%x`, `{{}}`, ...", held,
                      "" if held else last_line(ended, folder))  # fmt: skip
    for text in (CODE, "@x", "%x"):
        yield _packed_setting(folder, text)


def _packed_setting(folder: Path, text: str) -> Outcome:
    model = folder / "m" / "model.pt"
    state = torch.load(model, weights_only=True)
    recorded = description_in(state)
    recorded["settings"]["model"]["covariates"] = [text]
    (folder / "other").mkdir(exist_ok=True)
    described = DescribedNetwork(recorded).described
    torch.save({**state, "described": described}, folder / "other" / "model.pt")
    ended = _run(folder, "pack", "--ckpt_dir", folder / "other", "--output", folder / "a.zip")
    held = _refused(ended, 6) and not (folder / "a.zip").exists()
    return Outcome(f"`pack`: a model whose setting is `{text}`", held, last_line(ended, folder))


# ---------------------------------------------------------------------------------------------
# Names lead nowhere else
# ---------------------------------------------------------------------------------------------


@attack("names of folders")
def names_of_folders(folder: Path) -> Iterator[Outcome]:
    """A description whose names lead out, and links in the place of folders."""
    atlas = _averaged(folder)
    about = json.loads((atlas / "atlas.json").read_text())
    precious = folder / "home" / "me" / "atlas_in_patient_space" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    for name in ("../home/me", str(folder / "home/me"), "..", "a\0b", "a/../../home/me"):
        precious.write_text("precious")
        described = copy.deepcopy(about)
        described["cohort"]["subjects"][0]["subject"] = name
        (atlas / "atlas.json").write_text(json.dumps(described))
        ended = _run(folder, "carry", "--atlas_dir", atlas, "--output_dir", folder / "out")
        held = _refused(ended, 3) and precious.exists() and not (folder / "out").exists()
        yield Outcome(f"`carry`: a subject named {name.replace(str(folder), 'W')!r}", held,
                      last_line(ended, folder))  # fmt: skip
    (atlas / "atlas.json").write_text(json.dumps(about))
    (folder / "out").mkdir()
    (folder / "out" / "sub-0001").symlink_to(folder / "home" / "me")
    ended = _run(folder, "carry", "--atlas_dir", atlas, "--output_dir", folder / "out")
    held = _refused(ended, 3) and precious.exists()
    yield Outcome("`carry`: a link out in the place of a patient's folder", held,
                  last_line(ended, folder))  # fmt: skip
    yield from _links(folder)


def _links(folder: Path) -> Iterator[Outcome]:
    """Links in the place of the log and of what an interrupted publishing sets aside."""
    data, target = folder / "d", folder / "bashrc"
    target.write_text("mine")
    models = folder / "m"
    models.mkdir()
    (models / "run.log").symlink_to(target)
    words = (f"--dataset_dir={data}", f"--output_dir={folder / 'o'}", f"--ckpt_dir={models}")
    ended = _run(folder, "train", *words, *TINY)
    held = _done(ended) and target.read_text() == "mine"
    yield Outcome("`train`: a link in the place of run.log", held, "the log isn't kept" * held)
    output = folder / "p"
    output.mkdir()
    (output / ".atlas.replaced").symlink_to(folder / "home" / "me")
    again = (f"--dataset_dir={data}", f"--output_dir={output}")
    ended = _run(folder, "average", *again, *COHORT_ONLY)
    held = _done(ended) and (folder / "home/me/atlas_in_patient_space/thesis.txt").exists()
    held = held and not (output / "atlas").is_symlink()
    yield Outcome("`average`: a link in the place of the folder set aside", held)


# ---------------------------------------------------------------------------------------------
# verify
# ---------------------------------------------------------------------------------------------

CLAIMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shape [100000, 100000, 100000]": lambda a: a["cohort"]["grid"].update(shape=[100_000] * 3),
    "shape [-5, 12, 12]": lambda a: a["cohort"]["grid"].update(shape=[-5, 12, 12]),
    "10^12 channels": lambda a: a["settings"]["model"].update(channels=10**12),
    "a path with a zero byte": lambda a: _first_map(a).update(path="a\0b"),
    "a divisor of 0": lambda a: _first_map(a).update(divisor=0),
    "channel 7": lambda a: _first_map(a).update(channel=7),
    "no subjects": lambda a: a["cohort"].update(subjects=[]),
    "odd versions": lambda a: a.update(versions={"../x": "1", "": "2"}),
    "a map `../../../etc/x`": lambda a: a["settings"].update(emit_baseline_maps=["../../../etc/x"]),
    "an input `/dev/zero`": lambda a: _first_map(a).update(path="/dev/zero"),
    "an input `/proc/kmsg`": lambda a: _first_map(a).update(path="/proc/kmsg"),
}


def _first_map(about: dict[str, Any]) -> dict[str, Any]:
    return about["cohort"]["subjects"][0]["maps"][0]


@attack("verify")
def verify_nonsense(folder: Path) -> Iterator[Outcome]:
    """Nonsense in atlas.json, and what was added to the folder."""
    atlas = _averaged(folder)
    kept = (atlas / "atlas.json").read_text()
    for claim, edit in CLAIMS.items():
        about = json.loads(kept)
        edit(about)
        (atlas / "atlas.json").write_text(json.dumps(about))
        yield _verified(folder, claim)
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    about = json.loads(kept)
    _first_map(about)["path"] = str(pipe)
    texts = {
        "an input that is a pipe": json.dumps(about),
        "100,000 brackets": "[" * 100_000,
        "1e400": kept.replace('"n_subjects": 5', '"n_subjects": 1e400'),
        "no JSON": "{",
    }
    for claim, text in texts.items():
        (atlas / "atlas.json").write_text(text)
        yield _verified(folder, claim)
    (atlas / "atlas.json").write_text(kept)
    added: dict[str, Callable[[Path], Any]] = {
        "a file": lambda path: path.write_text("x"),
        "a link": lambda path: path.symlink_to("/etc/passwd"),
        "a link to /": lambda path: path.symlink_to("/"),
        "a pipe": os.mkfifo,
        "an empty folder": Path.mkdir,
    }
    for what, add in added.items():
        add(atlas / "added")
        yield _verified(folder, f"{what} was added")
        shutil.rmtree(atlas / "added") if what == "an empty folder" else (atlas / "added").unlink()
    ended = _run(folder, "verify", atlas)
    yield Outcome("`verify`: the atlas as it was published", _done(ended), "agrees" * _done(ended))


def _verified(folder: Path, what: str) -> Outcome:
    ended = _timed(folder, "verify", folder / "atlas")
    return Outcome(f"`verify`: {what}", _refused(ended, 8), last_line(ended, folder))


def _timed(folder: Path, *words: object) -> Ended:
    """A job that is killed when it hangs."""

    def watch(process: int) -> None:
        timer = threading.Timer(_LONGEST_S, os.kill, (process, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        with contextlib.suppress(ChildProcessError):  # gone already
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        timer.cancel()

    with contextlib.chdir(folder):
        return in_process([*map(str, words)], folder / "job", watch=watch)


# ---------------------------------------------------------------------------------------------
# Terminal and tables
# ---------------------------------------------------------------------------------------------


@attack("terminal and tables")
def terminal_and_tables(folder: Path) -> Iterator[Outcome]:
    """Names with escape codes, line ends and formulas; names that some systems confuse."""
    data = write_cohort(folder / "d", 6, _SHAPE)
    first = data / "sub-0001.nii.gz"
    for name in ("\x1b[2J\x1b[31mX", "a\nsub-9999  found     fake", "\x9b31m", "a\rb"):
        shutil.copy(first, data / f"{name}.nii.gz")
        ended = _run(folder, "check", f"--dataset_dir={data}", *COHORT_ONLY)
        (data / f"{name}.nii.gz").unlink()
        clean = ended.output.replace("\n", "").isprintable()
        held = _done(ended) and clean and ended.output.count("  rejected  ") == 1
        yield Outcome(f"`check`: a subject named {name!r}", held, "shown escaped, left out" * held)
    for name in ("\u202egnp", "a\u200bb"):
        shutil.copy(first, data / f"{name}.nii.gz")
        ended = _run(folder, "check", f"--dataset_dir={data}", *COHORT_ONLY)
        (data / f"{name}.nii.gz").unlink()
        held = _done(ended) and ended.output.replace("\n", "").isprintable()
        yield Outcome(f"`check`: a subject named {name!a}", held, "shown escaped" * held)
    for name in ("SUB-0001",):
        shutil.copy(first, data / f"{name}.nii.gz")
        ended = _run(folder, "check", f"--dataset_dir={data}", *COHORT_ONLY)
        (data / f"{name}.nii.gz").unlink()
        held = _done(ended) and ended.output.count("  rejected  ") == 2
        yield Outcome("`check`: sub-0001 and SUB-0001", held, "both left out" * held)
    first.rename(data / '=HYPERLINK("http:evil","x").nii.gz')
    words = (f"--dataset_dir={data}", f"--output_dir={folder}")
    _run(folder, "average", *words, *COHORT_ONLY)
    _run(folder, "carry", "--atlas_dir", folder / "atlas", "--output_dir", folder)
    ended = _run(folder, "compare", *words, f"--carried_dir={folder}", *COHORT_ONLY)
    table = folder / "tract_similarity" / "cohort.csv"
    held = _done(ended) and "\"'=HYPERLINK" in table.read_text()
    yield Outcome("`compare`: a subject named `=HYPERLINK(...)`", held,
                  "the cell begins with `'`" if held else last_line(ended, folder))  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------


@attack("settings")
def settings_beyond(folder: Path) -> Iterator[Outcome]:
    """Numbers beyond any machine, deep configurations, expressions turned off."""
    data = write_cohort(folder / "d", 5, _SHAPE)
    deep = "x.yaml"
    (folder / deep).write_text("learned_atlas: " + "[" * 100_000)
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (folder / "laughs.yaml").write_text("\n".join(laughs))
    words = {
        "seed 2^64": ["--learned_atlas#optimizer#seed=18446744073709551616"],
        "10^9 workers": ["--learned_atlas#cohort#num_workers=1000000000"],
        "10^12 channels": ["--learned_atlas#model#channels=1000000000000"],
        "a layer of 10^12 channels": ["--learned_atlas#model#enc_features=[1000000000000]"],
        "200 levels of keys": [f"--learned_atlas#{'a#' * 200}b=1"],
        "a configuration of 100,000 brackets": ["--config_file", str(folder / deep)],
        "a configuration that grows by aliases": ["--config_file", str(folder / "laughs.yaml")],
    }
    for what, more in words.items():
        ended = _run(folder, "train", f"--dataset_dir={data}", f"--output_dir={folder}", *more)
        yield Outcome(f"`train`: {what}", _refused(ended, 2), last_line(ended, folder))
    os.environ["MONAI_EVAL_EXPR"] = "0"
    try:
        ended = _run(folder, "train", f"--dataset_dir={data}", f"--output_dir={folder}")
    finally:
        del os.environ["MONAI_EVAL_EXPR"]
    yield Outcome("`train`: MONAI_EVAL_EXPR=0", _refused(ended, 2), last_line(ended, folder))


# ---------------------------------------------------------------------------------------------
# Packed models
# ---------------------------------------------------------------------------------------------


@attack("packed models")
def packed_models(folder: Path) -> Iterator[Outcome]:
    """What an archive reveals about people and the trainer's machine."""
    secret = ("--learned_atlas#cohort#exclude=['sub-0005']", "--learned_atlas#min_subjects=2",
              "--learned_atlas#cohort#density_dir=/home/alice_at_lab/secret")  # fmt: skip
    models = _trained(folder, *secret)
    ended = _run(folder, "pack", "--list", "--ckpt_dir", models)
    listed = _done(ended) and "model.pt" in ended.output and "alice_at_lab" not in ended.output
    yield Outcome("`pack --list`", listed, "names what travels, and what is left out" * listed)
    ended = _run(folder, "pack", "--ckpt_dir", models, "--output", folder / "a.zip")
    with zipfile.ZipFile(folder / "a.zip") as archive:
        result = [n for n in archive.namelist() if _tells(archive.read(n))]
        card = any(name.endswith("docs/model_card.md") for name in archive.namelist())
    held = _done(ended) and not result and card
    yield Outcome("`pack`: excluded names, folders of the trainer", held,
                  "nothing found in the archive" if held else f"found in {result}")  # fmt: skip


def _tells(data: bytes) -> bool:
    return any(word in data for word in (b"sub-0005", b"alice_at_lab"))


# ---------------------------------------------------------------------------------------------
# The process's surroundings
# ---------------------------------------------------------------------------------------------


@attack("surroundings")
def surroundings(folder: Path) -> Iterator[Outcome]:
    """Closed streams, no home, links and rights: as a shell, a service or a cluster starts jobs."""
    data = write_cohort(folder / "d", 5, _SHAPE)
    (folder / "link").symlink_to(data)
    command = f"'{sys.executable}' '{ROOT / 'bundle'}'"
    cohort = " ".join(COHORT_ONLY)
    average = f"{command} average --dataset_dir '{data}' --output_dir '{folder}/out' {cohort}"
    check = f"{command} check --dataset_dir '{data}' {cohort}"
    shells = {
        "closed stdout": (f"{average} >&-", 0),
        "closed stderr": (f"{average} 2>&-", 0),
        "both closed": (f"{average} >&- 2>&-", 0),
        "`| head -1`": (f"set -o pipefail; {check} | head -1", 0),
        "stdin closed": (f"{average} <&-", 0),
        "no HOME": (f"env -u HOME {average}", 0),
        "a HOME that isn't there": (f"HOME=/nowhere/at/all {average}", 0),
        "no environment at all": (f"env -i PATH=/usr/bin:/bin {average}", 0),
        "a link as dataset": (average.replace(f"'{data}'", f"'{folder}/link'"), 0),
    }
    for what, (line, status) in shells.items():
        shutil.rmtree(folder / "out", ignore_errors=True)
        ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=folder)
        described = ended.stdout + ended.stderr
        made = (folder / "out" / "atlas" / "atlas.json").exists() or "check" in line
        held = ended.returncode == status and made and "Traceback" not in described
        last = described.strip().splitlines()[-1:] or [""]
        yield Outcome(f"`average`: {what}", held,
                      "" if held else f"{ended.returncode}: {last[0][:120]}")  # fmt: skip
    yield _interrupted_twice(folder, data)


def _interrupted_twice(folder: Path, data: Path) -> Outcome:
    """Ctrl-C at several moments of a training, and again soon after."""
    words = [f"--dataset_dir={data}", f"--output_dir={folder}", f"--ckpt_dir={folder / 'm'}"]
    bad = []
    for first in (0.2, 0.5, 1, 2, 4):
        for gap in (0, 0.002, 0.05):
            shutil.rmtree(folder / "learned_atlas", ignore_errors=True)

            def watch(process: int, moments: tuple[float, ...] = (first, gap)) -> None:
                for moment in moments:
                    time.sleep(moment)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGINT)

            ended = in_process(["train", *words, *TINY], folder / "job", watch=watch)
            if ended.status not in (0, cli.EXIT_INTERRUPTED) or "Traceback" in ended.output:
                bad.append(f"after {first} + {gap} s: {last_line(ended, folder)}")
    return Outcome("`train`: Ctrl-C twice, at 15 moments", not bad,
                   "; ".join(bad) or "130, one line; or done before")  # fmt: skip
