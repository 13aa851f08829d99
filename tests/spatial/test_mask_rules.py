"""Fractions in a mask are refused; a mask of more than half of an image is reported."""

import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.spatial.mask_rules import require_whole_numbers, warn_if_mostly_covered


def test_a_fraction_is_refused_with_its_value_and_the_rule():
    require_whole_numbers("mask.nii.gz", np.array([[-1.0, 0.0, 3.0]]), "must be whole numbers")
    with pytest.raises(
        CohortError, match=r"mask\.nii\.gz: contains the value 0\.25; must be whole"
    ):
        require_whole_numbers("mask.nii.gz", np.array([[0.0], [0.25]]), "must be whole numbers")


@pytest.mark.parametrize(("left", "warned"), [(10, False), (5, False), (4, True), (0, True)])
def test_more_than_half_is_reported(left: int, warned: bool, caplog):
    warn_if_mostly_covered("mask.nii.gz", 10, left, "the voxels of s1")
    assert ("is the mask inverted?" in caplog.text) is warned
