"""Where subjects are found, checked, normalised and cropped; needs NumPy and nibabel alone."""

from scripts.cohort.cohort import (
    Cohort,
    DensityMap,
    Inspection,
    NewSubjects,
    Progress,
    Subject,
    inspect_subject,
    read_cohort,
    read_new_subjects,
)
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
    Rejection,
    are_left_and_right,
    candidates_from_files,
    find_subjects,
)
from scripts.cohort.grid import CropBox, Grid
from scripts.cohort.layouts import LAYOUTS, Alternative, alternatives, drop_tract
from scripts.cohort.streamlines import (
    CountedMap,
    count_density,
    read_reference,
    write_density,
)

__all__ = [
    "LAYOUTS",
    "Alternative",
    "Candidate",
    "Cohort",
    "CountedMap",
    "Covariate",
    "CovariateCoding",
    "CropBox",
    "DensityError",
    "DensityMap",
    "Discovery",
    "FoundMap",
    "Grid",
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
    "read_reference",
    "waytotal_file",
    "write_density",
]
