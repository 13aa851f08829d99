import numpy as np
import pytest

from scripts.metrics import centrality, inflation, inverse_consistency


def test_inflation_is_the_factor_by_which_the_tract_swelled():
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3] = True
    determinants = np.ones((3, 4, 4, 4))
    determinants[:, mask] = 0.5  # half the template's volume makes the subject's
    assert inflation(determinants, mask) == pytest.approx(2)
    assert inflation(determinants[0], ~mask) == pytest.approx(1)


def test_shrinking_and_swelling_cancel():
    determinants = np.array([[0.25], [4.0]])
    assert inflation(determinants, np.ones(1, bool)) == pytest.approx(1)


def test_inflation_refuses_folds_inside_the_mask_alone_and_empty_masks():
    determinants = np.array([1.0, -0.1])
    assert inflation(determinants, np.array([True, False])) == pytest.approx(1)
    with pytest.raises(ValueError, match="folds"):
        inflation(determinants, np.array([True, True]))
    with pytest.raises(ValueError, match="at least one voxel"):
        inflation(determinants, np.array([False, False]))
    with pytest.raises(ValueError, match="match"):
        inflation(determinants, np.ones(3, bool))


def test_opposite_displacements_are_central_and_a_common_shift_is_not():
    field = np.random.default_rng(0).normal(size=(3, 5, 5, 5))
    assert centrality([field, -field]) == pytest.approx(0)
    shift = np.array([3.0, 0.0, 4.0]).reshape(3, 1, 1, 1)
    assert centrality([field + shift, -field + shift]) == pytest.approx(5)


def test_centrality_looks_inside_the_mask_alone():
    field, mask = np.zeros((2, 4, 4)), np.zeros((4, 4), bool)
    field[:, 0], mask[2:] = 7, True
    assert centrality(field[None], mask) == 0
    assert centrality(field[None]) == pytest.approx(np.sqrt(98 / 4))


def test_there_and_back_again_of_translations():
    forward, backward = np.full((2, 9, 9), 1.25), np.full((2, 9, 9), -1.25)
    assert inverse_consistency(forward, backward) == pytest.approx(0)
    assert inverse_consistency(forward, 0 * backward) == pytest.approx(1.25 * np.sqrt(2))


def test_the_inverse_is_looked_up_where_the_point_arrives():
    """u scales by 1.5 about 0, v by 1 / 1.5: consistent, although u + v is not 0."""
    x = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0), indexing="ij"))
    assert inverse_consistency(0.5 * x, -x / 3) == pytest.approx(0, abs=1e-12)
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    assert inverse_consistency(0.5 * x, 0 * x, mask) == pytest.approx(2 * np.sqrt(2))
