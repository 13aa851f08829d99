"""The slow part of a stack's transforms follows what is known, the fast part stays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.errors import CohortError
from scripts.stack.placement import follow, interpolated, read_placement, smooth, wander_of
from scripts.stack.planar import PlanarModel, Plane, corner_distance

PLANE = Plane((100, 120), (1.0, 1.0))
RIGID = PlanarModel("rigid")


def moved(x: float, turn: float = 0.0) -> np.ndarray:
    return RIGID.matrix(np.array([turn, x / PLANE.half_width[0], 0.0]), PLANE)


def test_smoothing_keeps_straight_lines_and_takes_jitter() -> None:
    z = np.arange(40.0)
    line = np.stack([0.3 * z - 2, 5 - z], axis=1)
    np.testing.assert_allclose(smooth(z, line, z, 4.0), line, atol=1e-9)
    known = z[::8]
    np.testing.assert_allclose(smooth(known, line[::8], z, 4.0), line, atol=1e-6)
    jitter = np.random.default_rng(0).normal(size=(40, 1))
    assert smooth(z, jitter, z, 4.0).std() < 0.5 * jitter.std()


def test_a_chain_that_drifted_is_corrected_and_keeps_its_steps() -> None:
    count = 60
    drift = [moved(30 * np.sin(np.pi * z / count)) for z in range(count)]  # of the chain
    random = np.random.default_rng(1)
    truth = [RIGID.matrix(random.normal(0, 0.05, 3), PLANE) for _ in range(count)]
    chain = np.stack([a @ b for a, b in zip(truth, drift, strict=True)])
    known = {z: truth[z] for z in range(0, count, 6)}
    result = follow(chain, known, RIGID, PLANE, 4.0)
    before = [corner_distance(a, b, PLANE) for a, b in zip(chain, truth, strict=True)]
    after = [corner_distance(a, b, PLANE) for a, b in zip(result, truth, strict=True)]
    assert max(before) > 25
    assert max(after) < 3


def test_between_known_sections_the_correction_neither_overshoots_nor_turns_back() -> None:
    known = {0: moved(0.0), 8: moved(0.0), 16: moved(10.0), 24: moved(10.0)}
    result = follow(np.tile(np.eye(3), (25, 1, 1)), known, RIGID, PLANE, 0.3)[:, 0, 2]
    np.testing.assert_allclose(result[[0, 8, 16, 24]], [0, 0, 10, 10], atol=0.01)
    assert (np.diff(result) > -1e-6).all()
    assert 3 < result[12] < 7


def test_wander_is_that_of_the_slow_part() -> None:
    still = np.tile(np.eye(3), (30, 1, 1))
    assert wander_of(still, RIGID, PLANE, 4.0).largest == pytest.approx(0, abs=1e-9)
    line = np.stack([moved(z) for z in range(30)])
    wander = wander_of(line, RIGID, PLANE, 4.0)
    assert wander.largest == pytest.approx(14.5, rel=0.01)  # from the middle to an end
    assert wander.rms == pytest.approx(np.std(np.arange(30)), rel=0.01)


def test_unknown_sections_are_placed_between_their_neighbours() -> None:
    matrices = np.stack([moved(0.0), np.eye(3) * 7, moved(6.0, 0.2), np.eye(3) * 7])
    placed = interpolated(matrices, [1, 3], RIGID, PLANE)
    np.testing.assert_allclose(placed[1], moved(3.0, 0.1), atol=1e-12)
    np.testing.assert_allclose(placed[3], moved(6.0, 0.2), atol=1e-12)


# -- files -----------------------------------------------------------------------------------

NAMES = ["a_s001", "b_s002", "c_s003"]


def read(path: Path, content: object) -> dict[int, np.ndarray]:
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_placement(path, NAMES, PLANE, "micrometer", RIGID)


def test_earlier_transforms_of_other_pixels_place_the_same_points(tmp_path: Path) -> None:
    finer = Plane((200, 240), (0.5, 0.5))
    wanted = {0: moved(0.0), 2: moved(4.0, 0.1)}
    content = {
        "shape": [3, 200, 240],
        "spacing": [5e-2, 5e-4, 5e-4],
        "unit": "millimeter",
        "sections": [
            {"index": z, "composed": finer.pixel_matrix(one).tolist()} for z, one in wanted.items()
        ],
    }
    result = read(tmp_path / "transforms.json", content)
    assert sorted(result) == [0, 2]
    for z, one in wanted.items():
        np.testing.assert_allclose(result[z], one, atol=1e-9)


@pytest.mark.parametrize("style", ["o, u, v", "anchoring"])
def test_anchorings_place_sections_relative_to_each_other(style: str, tmp_path: Path) -> None:
    # Each section is placed in the atlas (4 units a pixel) by its transform.
    truth = {0: moved(0.0), 1: moved(5.0, 0.05), 2: moved(-3.0, -0.05)}
    slices = []
    for z, matrix in truth.items():
        back = np.linalg.inv(matrix)

        def at(x: float, y: float, back: np.ndarray = back, z: int = z) -> np.ndarray:
            point = back @ np.array([x, y, 1.0])
            return np.array([4 * point[0] + 70, 30.0 * z, -4 * point[1] + 20])

        o, right, down = at(-60, -50), at(60, -50), at(-60, 50)
        vectors = {"o": o.tolist(), "u": (right - o).tolist(), "v": (down - o).tolist()}
        if style == "anchoring":
            vectors = {"anchoring": [*vectors["o"], *vectors["u"], *vectors["v"]]}
        slices.append({"filename": f"{NAMES[z]}.png", **vectors})
    result = read(tmp_path / "quicknii.json", {"slices": slices[::-1]})
    for z in (1, 2):
        between = result[z] @ np.linalg.inv(result[0])
        assert corner_distance(between, truth[z], PLANE) < 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "has neither sections nor slices"),
        ({"sections": [{"index": 9, "composed": np.eye(3).tolist()}]}, "names section 9"),
        ({"sections": [{"index": 0, "composed": [[1]]}]}, "a matrix is not 3x3"),
        ({"sections": [{"index": 0, "composed": np.eye(3).tolist()}]}, "must place two at least"),
        ({"slices": [{"filename": "x.png", "anchoring": [0] * 9}]}, "names none of the sections"),
        ({"slices": [{"filename": "a_s001.png"}]}, "KeyError"),
    ],
)
def test_files_that_place_nothing_are_refused(
    content: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CohortError, match=message):
        read(tmp_path / "placement.json", content)
