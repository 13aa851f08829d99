"""One transform a section from pairs: exact where pairs agree, robust where they don't."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.stack.planar import PlanarModel, Plane, corner_distance
from scripts.stack.search import MIRROR
from scripts.stack.solving import MeasuredPair, likeness, precision, solve

PLANE = Plane((100, 120), (2.0, 1.0))
RIGID = PlanarModel("rigid")


def transforms(model: PlanarModel, count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    spread = np.array([0.1, 0.1, 0.1, 0.03, 0.03, 0.03])[: model.count]
    return [np.eye(3)] + [model.matrix(random.normal(0, spread), PLANE) for _ in range(count - 1)]


def pairs_between(
    known: list[np.ndarray], neighbours: int = 2, model: PlanarModel = RIGID, noise: float = 0.0
) -> list[MeasuredPair]:
    random = np.random.default_rng(9)
    result = []
    for first in range(len(known)):
        for second in range(first + 1, min(first + 1 + neighbours, len(known))):
            error = model.matrix(random.normal(0, noise, model.count), PLANE)
            matrix = error @ known[second] @ np.linalg.inv(known[first])
            like = 0.95 - 0.05 * (second - first) + random.normal(0, 0.002)
            mirrored = bool(np.linalg.det(matrix[:2, :2]) < 0)
            result.append(MeasuredPair(first, second, matrix, mirrored, like, second - first))
    return result


def errors(found: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
    return np.array([corner_distance(a, b, PLANE) for a, b in zip(found, known, strict=True)])


@pytest.mark.parametrize("reference", [0, 4, 8])
def test_consistent_pairs_give_the_truth_in_the_references_frame(reference: int) -> None:
    known = transforms(RIGID, 9)
    solution = solve(9, pairs_between(known), reference, RIGID, PLANE)
    frame = np.linalg.inv(known[reference])
    assert errors(solution.matrices, [one @ frame for one in known]).max() < 1e-6
    assert np.array_equal(solution.matrices[reference], np.eye(3))
    assert solution.damaged == ()
    singular = np.linalg.svd(solution.matrices[:, :2, :2])[1]
    assert np.abs(singular - 1).max() < 1e-9


def test_one_neighbour_is_plain_composition() -> None:
    known = transforms(RIGID, 6)
    pairs = pairs_between(known, 1, noise=0.01)
    solution = solve(6, pairs, 0, RIGID, PLANE)
    composed = [np.eye(3)]
    for pair in pairs:
        composed.append(pair.matrix @ composed[-1])
    assert errors(solution.matrices, composed).max() < 1e-9


def test_copies_stay_exactly_where_they_are() -> None:
    copies = [np.eye(3)] * 7
    solution = solve(7, pairs_between(copies), 0, RIGID, PLANE)
    assert np.abs(solution.matrices - np.eye(3)).max() < 1e-12


def test_a_section_that_contradicts_is_damaged_and_changes_no_other() -> None:
    known = transforms(RIGID, 12)
    random = np.random.default_rng(3)
    pairs = [
        pair
        if 6 not in (pair.first, pair.second)
        else MeasuredPair(
            pair.first, pair.second,
            RIGID.matrix(random.normal(0, 0.2, 3), PLANE) @ pair.matrix,
            False, pair.correlation, pair.distance,
        )
        for pair in pairs_between(known, noise=2e-4)
    ]  # fmt: skip
    solution = solve(12, pairs, 0, RIGID, PLANE)
    apart = errors(solution.matrices, known)
    assert solution.damaged == solution.lost == (6,)
    assert np.delete(apart, 6).max() < 0.3
    plain = solve(12, [p for p in pairs if p.distance == 1], 0, RIGID, PLANE)
    assert errors(plain.matrices, known)[7:].min() > 5


def test_a_section_that_agrees_with_itself_alone_is_known_by_its_likeness() -> None:
    known = transforms(RIGID, 12)
    shifted = [one.copy() for one in known]
    shifted[6][0, 2] += 8.0  # all pairs agree on a shift of 8
    pairs = [
        MeasuredPair(
            p.first, p.second, p.matrix, False,
            0.4 if 6 in (p.first, p.second) else p.correlation, p.distance,
        )
        for p in pairs_between(shifted, noise=2e-4)
    ]  # fmt: skip
    weights = likeness(pairs)
    spoilt = np.array([6 in (pair.first, pair.second) for pair in pairs])
    assert weights[spoilt].max() < 0.05 < 0.5 < weights[~spoilt].min()
    solution = solve(12, pairs, 0, RIGID, PLANE)
    assert solution.damaged == (6,)
    assert solution.lost == ()  # its pairs agree on its position
    assert np.delete(errors(solution.matrices, known), 6).max() < 0.3


def test_more_pairs_make_a_chain_more_exact() -> None:
    known = transforms(RIGID, 40)
    ends = [
        errors(solve(40, pairs_between(known, n, noise=1e-3), 0, RIGID, PLANE).matrices, known)[
            -5:
        ].mean()
        for n in (1, 4)
    ]
    assert ends[1] < ends[0]


def test_scales_have_the_mean_one() -> None:
    model = PlanarModel("affine")
    known = transforms(model, 10)
    solution = solve(10, pairs_between(known, 2, model), 0, model, PLANE)
    logs = [np.log1p(model.parameters(one, PLANE)[3:5]) for one in solution.matrices]
    assert np.abs(np.mean(logs, axis=0)).max() < 1e-9
    between = solution.matrices[7] @ np.linalg.inv(solution.matrices[2])
    assert corner_distance(between, known[7] @ np.linalg.inv(known[2]), PLANE) < 1e-5


def test_mirrored_sections_are_solved_with_the_others() -> None:
    known = transforms(RIGID, 8)
    known[3], known[5] = known[3] @ MIRROR, known[5] @ MIRROR
    solution = solve(8, pairs_between(known), 0, RIGID, PLANE)
    assert errors(solution.matrices, known).max() < 1e-6


def test_a_section_without_pairs_is_an_error() -> None:
    pairs = pairs_between(transforms(RIGID, 3))
    with pytest.raises(ValueError, match=r"sections \[3\] have no pairs"):
        solve(4, pairs, 0, RIGID, PLANE)


def test_pairs_of_sections_that_are_hardly_alike_count_little() -> None:
    def pairs(near: float, far: float) -> list[MeasuredPair]:
        return [
            MeasuredPair(a, b, np.eye(3), False, near if b - a == 1 else far, b - a)
            for a in range(6)
            for b in range(a + 1, min(a + 3, 6))
        ]

    alike, unlike = precision(pairs(0.9, 0.9)), precision(pairs(0.3, 0.1))
    assert (alike == 1).all()
    variance = {r: (1 - r**2) / r**2 for r in (0.3, 0.1)}
    assert unlike[0] == 1
    assert unlike[1] == pytest.approx(variance[0.3] / variance[0.1])
