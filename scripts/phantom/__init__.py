"""The demo cohort: digital subjects with known anatomy and known warps.

Nothing is downloaded or taken from real people. A config names :func:`ensure_demo_cohort`;
:func:`load_truth` gives tests and benchmarks the truth, which training must never read.
"""

from scripts.phantom.demo import ensure_demo_cohort, write_demo_cohort
from scripts.phantom.truth import SubjectTruth, Truth, load_truth

__all__ = ["SubjectTruth", "Truth", "ensure_demo_cohort", "load_truth", "write_demo_cohort"]
