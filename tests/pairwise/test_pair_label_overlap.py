"""Dice of propagated labels: closed forms, which subjects are paired, and a known network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_pair_images import PATTERNS, config, write_labels

from scripts.networks.described import DescribedNetwork
from scripts.pairwise.images import ImageSubject, read_pair_images
from scripts.pairwise.label_overlap import LabelOverlap, hard_labels, label_dice, partners


def test_dice_is_the_mean_over_labels_that_either_has() -> None:
    first = torch.tensor([0, 1, 1, 2, 2, 2])
    second = torch.tensor([1, 1, 0, 2, 2, 3])
    # 1: 2 * 1 / 4; 2: 2 * 2 / 5; 3: 0.
    assert label_dice(first, second) == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    assert label_dice(first, first) == 1
    assert label_dice(torch.zeros(3), torch.zeros(3)) == 1


def test_a_voxel_has_its_most_probable_label_or_none() -> None:
    maps = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.3, 0.5, 0.2, 0.0]])
    assert hard_labels(maps).tolist() == [1, 2, 0, 0]


def test_partners_are_of_other_persons() -> None:
    people = ["a", "a", "b", "c"]
    subjects = [ImageSubject(f"s{n}", (), (), "", who) for n, who in enumerate(people)]
    assert partners(subjects, 1) == [(0, 2), (1, 2), (2, 3), (3, 0)]
    every = partners(subjects, 9)
    assert len(every) == len(set(every)) == 10
    assert all(people[i] != people[j] for i, j in every)
    assert partners(subjects[:2], 4) == []


class Known(DescribedNetwork):
    """Shifts moving maps by whole voxels."""

    def __init__(self, grid: Any, shift: int) -> None:
        super().__init__()
        self.grid = grid
        self.shift = shift
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pair: torch.Tensor) -> int:
        assert pair.shape == (1, 2, *self.grid.shape)
        assert float(pair.min()) >= 0 and float(pair.max()) <= 1
        return self.shift

    def moved(self, maps: torch.Tensor, shift: int) -> torch.Tensor:
        return maps.roll(shift, 2)


def test_labels_of_held_out_images_are_propagated_by_the_network(tmp_path: Path) -> None:
    settings = config(images=PATTERNS, folds=2, fold=0)
    images = read_pair_images(write_labels(tmp_path), settings)
    still = LabelOverlap(Known(images.grid, 0), images, settings).measured()
    assert still["label_dice"] == still["label_dice_before"]
    assert 0 < still["label_dice"] < 1
    assert still["label_pairs"] == 2
    away = LabelOverlap(Known(images.grid, 8), images, settings).measured()
    assert away["label_dice"] < away["label_dice_before"] == still["label_dice_before"]
    everyone = config(images=PATTERNS, fold=None)
    images = read_pair_images(tmp_path, everyone)
    assert LabelOverlap(Known(images.grid, 0), images, everyone).measured() == {}
