"""Tries every job that computes under autocast with each dtype and number of covariates.

    python -m bundle.bench.job_dtypes <empty folder> [--dtypes bfloat16] [--covariates age,sex]

A tiny cohort of fourteen subjects with age, sex (2 categories) and site (3) is trained, published
again, registered to and evaluated on. Networks for pairs have no covariates. Prints a table: "ok",
or the exit status of a job that failed, with its last line below.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from bundle.bench.forked_jobs import in_process

__all__ = ["COVARIATES", "DTYPES", "Trial", "make_cohort", "pairs_trials", "trials"]

DTYPES = ("float32", "bfloat16", "float16")
COVARIATES = ("", "age", "age,sex", "site", "age,sex,site")
"""Sets of covariates; their columns are 0, 1, 2, 2 and 4."""
_SHAPE = (12, 14, 10)
_COUNT = 14
_FEATURES = ("model#enc_features=[4,8]", "model#dec_features=[8,8,4]")
_ATLAS = (
    "cohort#layout=flat", "cohort#normalisation=max", "cohort#margin=2", "min_subjects=2",
    "device=cpu", *_FEATURES, "optimizer#epochs=1", "optimizer#batch_size=2", "refine#rounds=1",
    "refine#iterations=1", "refine#network_epochs=1",
)  # fmt: skip

Trial = tuple[str, list[str]]
"""A job's name and its words on the command line."""


def make_cohort(folder: Path) -> Path:
    """Blobs that move and grow with a table of the people, and one more subject to register."""
    places = np.indices(_SHAPE)
    rows = ["participant_id\tage\tsex\tsite"]
    for index in range(_COUNT + 1):
        shift = np.array([np.cos(index), np.sin(index), 0]).reshape(3, 1, 1, 1)
        centre = np.array(_SHAPE).reshape(3, 1, 1, 1) / 2 + shift
        size = np.array([2.0, 3 + index / 10, 2]).reshape(3, 1, 1, 1)
        blob = np.round(100 * np.exp(-(((places - centre) / size) ** 2).sum(0)))
        name = f"sub-{index + 1}"
        place = folder / ("new" if index == _COUNT else "cohort")
        place.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(blob.astype(np.float32), np.diag([2.0, 2, 2, 1]))
        nib.save(image, place / f"{name}.nii.gz")
        rows.append(f"{name}\t{20 + index**1.5:.1f}\t{'FM'[index % 2]}\t{'ABC'[index % 3]}")
    for name in ("cohort", "new"):
        (folder / name / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def trials(folder: Path, output: Path, dtype: str, covariates: str) -> list[Trial]:
    """The jobs with an atlas's network, in the order in which one needs the other.

    Args:
        folder: of `make_cohort`.
        output: for results.
        dtype: of the convolutions.
        covariates: names with commas between, or nothing.
    """
    settings = [f"--learned_atlas#{one}" for one in (*_ATLAS, f"dtype={dtype}")]
    names = f"--learned_atlas#model#covariates=[{covariates}]"
    published = ["--learned_atlas#device=cpu", f"--learned_atlas#dtype={dtype}"]
    places = [f"--ckpt_dir={output / 'models'}", f"--output_dir={output}"]
    cohort, new = f"--dataset_dir={folder / 'cohort'}", f"--dataset_dir={folder / 'new'}"
    crossed = [f"--ckpt_dir={output / 'folds' / 'models'}", f"--output_dir={output / 'folds'}"]
    return [
        ("train", ["train", cohort, *places, *settings, names]),
        ("export", ["export", cohort, *places, *published]),
        ("register", ["register", new, *places, *published]),
        ("register --refine", ["register", new, *places, *published, "--refine=1"]),
        ("evaluate", ["evaluate", new, *places, *published]),
        ("verify", ["verify", str(output / "learned_atlas")]),
        (
            "cross-validate",
            ["cross-validate", cohort, *crossed, *settings, names, "--evaluate#folds=2"],
        ),
    ]


def pairs_trials(folder: Path, output: Path, dtype: str) -> list[Trial]:
    """The jobs with networks for pairs of images, likewise."""
    cohort = f"--dataset_dir={folder / 'cohort'}"
    places = [f"--ckpt_dir={output / 'models'}", f"--output_dir={output}"]
    images = [f"--{kind}={folder / 'cohort' / f'sub-{n}.nii.gz'}"
              for kind, n in (("fixed", 1), ("moving", 2))]  # fmt: skip
    pairs = output / "pairs.h5"
    result: list[Trial] = []
    for kind, job in (("affine", "estimate-affine"), ("elastic", "register-elastic")):
        block = f"learned_{kind}"
        settings = [
            f"{block}#images#pattern={{subject}}.nii.gz", f"{block}#images#shape=[16,16,16]",
            f"{block}#images#spacing=2", f"{block}#optimizer#epochs=1", f"{block}#device=cpu",
            f"{block}#dtype={dtype}",
        ]  # fmt: skip
        if kind == "elastic":
            settings.append(f"{block}#images#kind=presence")
        result += [
            (f"train-{kind}", [f"train-{kind}", cohort, *places, *(f"--{s}" for s in settings)]),
            (job, [job, *images, *places]),
        ]
    fields = [
        f"--pairs={pairs}", "--train_fields#network=global", "--train_fields#folds=2",
        "--train_fields#optimizer#epochs=1", "--train_fields#model#global_filters=[4,4]",
        "--train_fields#device=cpu",
    ]  # fmt: skip
    return [
        *result,
        (
            "make-pairs",
            ["make-pairs", f"--reference={folder / 'cohort' / 'sub-1.nii.gz'}", f"--output={pairs}",
             "--make_pairs#count=4", "--make_pairs#shape=[16,16,16]", "--make_pairs#dims=3",
             "--make_pairs#elastic#width=4", "--make_pairs#elastic#rms=1",
             "--make_pairs#affine#translation=2"],
        ),
        ("train-fields", ["train-fields", *fields, *places, f"--train_fields#dtype={dtype}"]),
        (
            "predict-fields",
            ["predict-fields", f"--pairs={pairs}", *places, "--predict_fields#network=global",
             f"--predict_fields#dtype={dtype}"],
        ),
    ]  # fmt: skip


def run_all(tried: Sequence[Trial], log: Path) -> dict[str, tuple[str, str]]:
    """Run jobs one after another.

    Returns:
        By job "ok" or the exit status, and the last line of its output.
    """
    results = {}
    for number, (name, words) in enumerate(tried):
        ended = in_process(words, log.with_name(f"{log.name}_{number}"))
        lines = [line for line in ended.output.splitlines() if line.strip()]
        failed = ended.status != 0 or "Traceback" in ended.output
        results[name] = (f"{ended.status}" if failed else "ok", lines[-1] if lines else "")
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for inputs and results; empty")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--covariates", nargs="+", default=list(COVARIATES))
    parser.add_argument("--pairs", action="store_true", help="networks for pairs of images too")
    options = parser.parse_args()
    import monai.bundle  # noqa: F401 (children are forked from here)

    folder = make_cohort(options.folder.absolute())
    atlas: dict[str, list[Trial]] = {}
    for dtype in options.dtypes:
        for covariates in options.covariates:
            head = f"{dtype} {covariates or 'none'}"
            atlas[head] = trials(folder, folder / head.replace(" ", "_"), dtype, covariates)
    _print_table(atlas, folder)
    if options.pairs:
        names = {dtype: f"pairs_{dtype}" for dtype in options.dtypes}
        pairs = {one: pairs_trials(folder, folder / name, one) for one, name in names.items()}
        print()
        _print_table(pairs, folder)


def _print_table(tried: Mapping[str, Sequence[Trial]], folder: Path) -> None:
    """Run jobs by the head of their column; print a row for each job, and failures below."""
    columns = {
        head: run_all(jobs, folder / f"log_{head.replace(' ', '_')}")
        for head, jobs in tried.items()
    }
    print(f"| job | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for job in next(iter(columns.values())):
        print(f"| {job} | {' | '.join(results[job][0] for results in columns.values())} |")
    for head, results in columns.items():
        for job, (end, line) in results.items():
            if end != "ok":
                print(f"{job}, {head}: {line}")


if __name__ == "__main__":
    main()
