"""Every job with an atlas's network under autocast, with several covariates: one cell of the table.

The whole table: ``python -m bundle.bench.job_dtypes``; its result is in docs/conditional.md.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from warm_process import run_module

ROOT = Path(__file__).resolve().parents[2]
JOBS = (
    "train", "export", "register", "register --refine", "evaluate", "verify", "cross-validate",
)  # fmt: skip


def test_all_jobs_end_well_under_autocast_with_three_covariates(tmp_path: Path) -> None:
    words = ["--dtypes", "float16", "--covariates", "age,sex,site"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = run_module(
        "bundle.bench.job_dtypes", [str(tmp_path), *words], ROOT, environment, timeout=900
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = dict(re.findall(r"^\| ([a-z -]+) \| (\w+) \|$", ran.stdout, re.M))
    assert rows == dict.fromkeys(JOBS, "ok"), ran.stdout
