"""The demo cohort: digital subjects whose true anatomy and true warps are known.

Nothing here is downloaded or taken from real people. :func:`ensure_demo_cohort` is what a config
names; :func:`load_truth` gives tests and benchmarks what no learner may look at.
"""

from scripts.phantom.demo import ensure_demo_cohort, write_demo_cohort
from scripts.phantom.truth import SubjectTruth, Truth, load_truth

__all__ = ["SubjectTruth", "Truth", "ensure_demo_cohort", "load_truth", "write_demo_cohort"]
