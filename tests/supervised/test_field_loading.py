"""Batches: what they hold, their order, their changes of intensity, and who is held out."""

from __future__ import annotations

import itertools

import h5py
import numpy as np
import pytest
import torch
from small_pairs import SHAPE, copied
from torch.utils.data import DataLoader

from scripts.errors import CohortError, ConfigurationError
from scripts.settings.train_fields import (
    FIELD_AUGMENTATIONS,
    TrainFieldsAugmentConfig,
    TrainFieldsConfig,
)
from scripts.supervised.layers import warp_image
from scripts.supervised.loading import KnownPairs, PairBatches, open_field_pairs
from scripts.supervised.pair_store import PairStore


def settings(store, **changes) -> TrainFieldsConfig:
    return TrainFieldsConfig.load({"pairs": str(store), "device": "cpu", **changes})


def test_an_item_holds_the_pair_its_targets_and_the_swapped_ones(make_store):
    store = PairStore(make_store())
    item = KnownPairs(store, [4, 2], inverse=True)[1]
    stored = store.read(2)
    assert item["subject"] == "pair 2"
    np.testing.assert_allclose(item["pair"][0], stored.reference / 255, atol=1e-6)
    np.testing.assert_allclose(item["pair"][1], stored.moving / 255, atol=1e-6)
    torch.testing.assert_close(item["field"], torch.from_numpy(stored.field))
    torch.testing.assert_close(item["inverse"], torch.from_numpy(stored.inverse))
    moved = warp_image(item["moving"][None], item["field"][None])[0]
    torch.testing.assert_close(item["registered"], moved)
    assert np.corrcoef(item["registered"].ravel(), item["reference"].ravel())[0, 1] > 0.97
    assert "inverse" not in KnownPairs(store, [0])[0]


@pytest.mark.parametrize("name", FIELD_AUGMENTATIONS)
@pytest.mark.parametrize("side", [0, 1])
def test_each_augmentation_changes_one_image_and_no_target(make_store, name, side):
    store = PairStore(make_store(count=2))
    key = ("augment_ref", "augment_mov")[side]
    augment = TrainFieldsAugmentConfig.load({key: [name], "probability": 1.0})
    plain, changed = KnownPairs(store, [0])[0], KnownPairs(store, [0], augment)[0]
    assert not torch.equal(changed["pair"][side], plain["pair"][side])
    torch.testing.assert_close(changed["pair"][1 - side], plain["pair"][1 - side])
    for target in ("reference", "moving", "registered", "field"):
        torch.testing.assert_close(changed[target], plain[target])
    assert changed["pair"].min() >= 0
    assert changed["pair"].max() <= 1


def test_augmentation_depends_on_seed_epoch_and_pair_alone(make_store):
    store = PairStore(make_store())
    augment = TrainFieldsAugmentConfig.load({"augment_mov": ["noise", "gain"], "probability": 1.0})
    data = KnownPairs(store, range(6), augment, seed=3)
    first = data[(1, 2)]["pair"]
    data[(0, 0)], data[(5, 1)]  # in between others
    torch.testing.assert_close(data[(1, 2)]["pair"], first)
    assert not torch.equal(data[(1, 3)]["pair"], first)
    assert not torch.equal(KnownPairs(store, range(6), augment, seed=4)[(1, 2)]["pair"], first)


def test_batches_are_the_same_with_and_without_workers(make_store):
    store = PairStore(make_store())
    augment = TrainFieldsAugmentConfig.load({"augment_ref": ["noise"], "probability": 1.0})
    result = []
    for workers in (0, 2):
        loader = DataLoader(
            KnownPairs(store, range(6), augment), batch_sampler=PairBatches(6, 4, seed=1),
            num_workers=workers,
        )  # fmt: skip
        result.append([batch["pair"] for batch in itertools.islice(loader, 5)])
    assert [len(one) for one in result[0]] == [4, 2, 4, 2, 4]
    for one, other in zip(*result, strict=True):
        torch.testing.assert_close(one, other)


def test_each_epoch_is_shuffled_anew_and_a_resumed_one_continues():
    batches = PairBatches(6, 4, seed=0)
    first = list(itertools.islice(batches, 6))
    assert sorted(n for batch in first[:2] for n, _ in batch) == list(range(6))
    assert [epoch for batch in first for _, epoch in batch] == [0] * 6 + [1] * 6 + [2] * 6
    assert first[:2] != first[2:4]
    batches.first_epoch = 1
    assert list(itertools.islice(batches, 2)) == first[2:4]
    assert len(next(iter(PairBatches(3, 4)))) == 3


def with_specimens(store, target, specimens):
    return copied(store, target, dataset_id=np.array(specimens))


def test_no_specimen_is_on_both_sides_of_a_fold(make_store, tmp_path):
    store = with_specimens(make_store(count=8), tmp_path / "s.h5", [3, 3, 5, 5, 7, 7, 9, 9])
    held = []
    for fold in range(2):
        pairs = open_field_pairs(settings(store, folds=2, fold=fold))
        ids = pairs.store.numbers["dataset_id"]
        assert not set(ids[list(pairs.training)]) & set(ids[list(pairs.held_out)])
        assert sorted(pairs.training + pairs.held_out) == list(range(8))
        held += pairs.held_out
    assert sorted(held) == list(range(8))
    with pytest.raises(CohortError, match=r"4 different values, fewer than .*\.folds = 5"):
        open_field_pairs(settings(store, fold=0))


def test_indexes_leave_out_what_shares_a_specimen_with_them(make_store, tmp_path):
    store = with_specimens(make_store(), tmp_path / "s.h5", [1, 1, 2, 2, 3, 3])
    pairs = open_field_pairs(settings(store, indexes=[0, 2, 3]))
    assert pairs.training == (0, 2, 3)
    assert pairs.held_out == (4, 5)
    with pytest.raises(ConfigurationError, match=r"train_fields\.indexes has 6: must be 0 to 5"):
        open_field_pairs(settings(store, indexes=[6]))


def test_another_store_to_measure_with_has_the_same_size(make_store):
    store, other = make_store(), make_store("other", count=3, seed=5)
    pairs = open_field_pairs(settings(store, validation=str(other)))
    assert (len(pairs.training), len(pairs.held_out)) == (6, 3)
    assert pairs.for_measurement()[2]["field"].shape == (2, *SHAPE)
    small = make_store("small", shape=(36, 40), count=2)
    with pytest.raises(CohortError, match=r"have shape \(36, 40\), those of .* \(40, 56\)"):
        open_field_pairs(settings(store, validation=str(small)))


def test_memory_does_not_hold_the_store(make_store):
    """What a dataset keeps is the same for 3 and for 30 pairs."""
    sizes = []
    for count in (3, 30):
        store = PairStore(make_store(f"n{count}", count=count))
        data = KnownPairs(store, range(count))
        for index in range(count):
            data[index]
        kept = [one for one in vars(store).values() if isinstance(one, np.ndarray)]
        sizes.append(sum(one.nbytes for one in kept))
    assert sizes == [0, 0]


def test_a_store_that_changes_is_another_one(make_store, tmp_path):
    store = make_store()
    first = open_field_pairs(settings(store)).identity()
    assert open_field_pairs(settings(store)).identity() == first
    assert open_field_pairs(settings(store, indexes=[0, 1])).identity() != first
    with h5py.File(store) as file:
        changed = file["img"][...] // 2
    other = copied(store, tmp_path / "c.h5", img=changed)
    assert open_field_pairs(settings(other)).identity() != first
