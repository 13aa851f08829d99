"""The inspection of one subject."""

import numpy as np
import pytest
from small_cohorts import config, voxels

from scripts.cohort import Candidate, FoundMap, inspect_subject
from scripts.errors import CohortError


def test_inspection_of_a_subject(five):
    path = five.path("sub-1")
    candidate = Candidate("sub-1", (FoundMap(path, 0, None),))
    seen = inspect_subject(candidate, config())
    assert seen.box.start == (2, 2, 2)
    np.testing.assert_allclose(
        seen.box.paste(seen.density, seen.grid.shape)[0], voxels(path) / 1000, rtol=1e-12
    )
    assert seen.subject.maps[0].divisor == 1000


def test_a_subject_without_a_map_is_refused():
    with pytest.raises(CohortError, match="subject x has no map"):
        inspect_subject(Candidate("x", ()), config())
