"""Finds, checks, normalises and crops the subjects; needs only NumPy and nibabel."""

from scripts.cohort.cohort import Cohort, DensityMap, NewSubjects, Subject
from scripts.cohort.covariates import (
    Covariate,
    CovariateCoding,
    Participants,
    Values,
    parse_values,
    read_participants,
)
from scripts.cohort.density import (
    DensityError,
    LoadedDensity,
    check_density,
    density_divisor,
    load_density,
    read_density,
    waytotal_file,
)
from scripts.cohort.discovery import (
    Candidate,
    Discovery,
    FoundMap,
    candidates_from_files,
    find_subjects,
)
from scripts.cohort.inspection import Inspection, inspect_subject
from scripts.cohort.layouts import LAYOUTS, Alternative, alternatives, drop_tract
from scripts.cohort.new_subjects import read_new_subjects
from scripts.cohort.patterns import Rejection
from scripts.cohort.reading import Progress, read_cohort
from scripts.cohort.runs import are_left_and_right
from scripts.cohort.tractogram_maps import CountedMap, count_density

__all__ = [
    "LAYOUTS",
    "Alternative",
    "Candidate",
    "Cohort",
    "CountedMap",
    "Covariate",
    "CovariateCoding",
    "DensityError",
    "DensityMap",
    "Discovery",
    "FoundMap",
    "Inspection",
    "LoadedDensity",
    "NewSubjects",
    "Participants",
    "Progress",
    "Rejection",
    "Subject",
    "Values",
    "alternatives",
    "are_left_and_right",
    "candidates_from_files",
    "check_density",
    "count_density",
    "density_divisor",
    "drop_tract",
    "find_subjects",
    "inspect_subject",
    "load_density",
    "parse_values",
    "read_cohort",
    "read_density",
    "read_new_subjects",
    "read_participants",
    "waytotal_file",
]
