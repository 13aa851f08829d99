"""From a store to batches: pairs as tensors, their targets, and changes of intensity."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset

from scripts.data.sampling import EpochBatches
from scripts.engines.opening import reserved
from scripts.errors import CohortError
from scripts.networks.precision import open_device
from scripts.pairwise.augmentation import intensity_augmentation
from scripts.runtime.progress import progress_bar
from scripts.settings.pair_selection import PairSelection
from scripts.settings.train_fields import TrainFieldsAugmentConfig, TrainFieldsConfig
from scripts.supervised.layers import warp_image
from scripts.supervised.orientation import check_orientation
from scripts.supervised.pair_store import PairStore
from scripts.supervised.reference_volume import ReferenceVolume, read_reference_volume, to_bytes
from scripts.supervised.sources import chosen

__all__ = [
    "FieldPairs",
    "KnownPairs",
    "PairBatches",
    "check_pairs",
    "open_field_pairs",
    "open_store",
]

logger = logging.getLogger(__name__)

_FOLD_SEED = 0  # folds don't change with the training's seed


def open_store(settings: PairSelection, path: str, needs_fields: bool = True) -> PairStore:
    """A store, with the references that the settings name.

    Raises:
        CohortError: it can't be used.
    """
    volume: ReferenceVolume | None = None
    if settings.reference is not None:
        volume = read_reference_volume(
            settings.reference, settings.reference_axis, settings.reference_step
        )
    store = PairStore(Path(path), volume, needs_fields)
    store.require_references()
    if store.half:
        logger.warning(
            "%s: its fields are float16, which rounds 40 pixels to 1/32 of a pixel", store.path
        )
    return store


def check_pairs(store: PairStore, indexes: Sequence[int]) -> None:
    """Read every pair once, so that a bad one is reported before training; then check the order.

    Raises:
        CohortError: a pair can't be used, or the fields fit only swapped or negated.
    """
    with progress_bar(len(indexes), "checking pairs") as bar:
        for index in indexes:
            store.read(index)
            bar.update()
    check_orientation(store, indexes)
    store.close()


class KnownPairs(Dataset[dict[str, Any]]):
    """Pairs of a store as tensors.

    Args:
        store: of pairs.
        indexes: which of them.
        augment: changes of intensity; None: none.
        seed: of those; a pair's depend on it, on the pair and on the epoch alone.
        inverse: give the field back too.
    """

    def __init__(
        self,
        store: PairStore,
        indexes: Sequence[int],
        augment: TrainFieldsAugmentConfig | None = None,
        seed: int = 0,
        inverse: bool = False,
    ) -> None:
        self.store = store
        self.indexes = list(indexes)
        self.seed = seed
        self.inverse = inverse
        self.augmentations: list[Compose | None] = [None, None]
        if augment is not None:
            self.augmentations = [
                intensity_augmentation(names, store.shape, augment.probability) if names else None
                for names in (augment.augment_ref, augment.augment_mov)
            ]

    def __len__(self) -> int:
        """Pairs."""
        return len(self.indexes)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """A pair.

        Args:
            key: its number among the indexes, or that and the epoch.

        Returns:
            ``subject``: name for messages; ``number``; ``pair``: ``(2, *shape)`` reference and
            moving, 0 to 1; ``reference``, ``moving``: the same without augmentation, ``(1,
            *shape)``. With fields ``field``: ``(d, *shape)``; ``registered``: the moving image
            warped by it; ``inverse``: the field back.
        """
        place, epoch = key if isinstance(key, tuple) else (key, 0)
        index = self.indexes[place]
        pair = self.store.read(index)
        assert pair.reference is not None
        reference, moving = (
            torch.from_numpy(np.ascontiguousarray(one)).float().div_(255)[None]
            for one in (to_bytes(pair.reference), pair.moving)
        )
        augmented = [
            self._augmented(image, [self.seed, epoch, index, which], augmentation)
            for which, (image, augmentation) in enumerate(
                zip((reference, moving), self.augmentations, strict=True)
            )
        ]
        item: dict[str, Any] = {
            "subject": f"pair {index}",
            "number": index,
            "pair": torch.cat(augmented),
            "reference": reference,
            "moving": moving,
        }
        if pair.field is not None:
            item["field"] = torch.from_numpy(pair.field)
            item["registered"] = warp_image(moving[None], item["field"][None])[0]
            if self.inverse and pair.inverse is not None:
                item["inverse"] = torch.from_numpy(pair.inverse)
        return item

    @staticmethod
    def _augmented(
        image: torch.Tensor, key: list[int], augmentation: Compose | None
    ) -> torch.Tensor:
        if augmentation is None:
            return image
        seed = np.random.SeedSequence(key).generate_state(1, np.uint32)[0]
        augmentation.set_random_state(seed=int(seed))
        # A copy: some of the transforms write into what they are given.
        changed = convert_to_tensor(
            augmentation(image.clone()), dtype=torch.float32, track_meta=False
        )
        return changed.clamp(0, 1)


class PairBatches(EpochBatches):
    """`EpochBatches` whose entries are (number, epoch): what is made of a pair depends on both."""

    def __iter__(self) -> Iterator[list[Any]]:
        """Batches from `first_epoch` on."""
        for count, batch in enumerate(super().__iter__()):
            epoch = self.first_epoch + count // len(self)
            yield [(number, epoch) for number in batch]


# ---------------------------------------------------------------------------------------------
# Which pairs are trained on, and which are measured with
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FieldPairs:
    """The pairs of a training.

    Attributes:
        store: to train on.
        training: which of its pairs.
        other: to measure with, maybe the same.
        held_out: which of its pairs.
    """

    store: PairStore
    training: tuple[int, ...]
    other: PairStore
    held_out: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images."""
        return self.store.shape

    def identity(self) -> str:
        """SHA-256 over what training depends on."""
        return self.store.identity(self.training)

    def check_unchanged(self) -> None:
        """Make sure that the stores are still the files that were opened.

        Raises:
            CohortError: naming the one that isn't.
        """
        for store in (self.store, self.other):
            store.check_unchanged()

    def for_training(self, settings: TrainFieldsConfig) -> KnownPairs:
        """The pairs to train on."""
        inverse = len(settings.loss_names()) == 3
        return KnownPairs(
            self.store, self.training, settings.augment, settings.optimizer.seed, inverse
        )

    def for_measurement(self) -> KnownPairs:
        """The pairs to measure with."""
        return KnownPairs(self.other, self.held_out, inverse=True)


def open_field_pairs(settings: TrainFieldsConfig, written: Sequence[str | Path] = ()) -> FieldPairs:
    """The pairs to learn from, after what can be known beforehand of the run's end.

    Args:
        settings: of the run.
        written: folders that the run will write to; locked while the result is in use.

    Raises:
        ConfigurationError: the machine lacks the device, or an index is out of range.
        StorageError: a folder can't be written, or another run uses it.
        CohortError: a store can't be used, or nothing is left to train on.
    """
    open_device(settings.device, settings.key("device"))
    with reserved(written) as users:
        store = open_store(settings, settings.pairs)
        training, held_out = _split(settings, store)
        other = store
        if settings.validation is not None:
            other = open_store(settings, settings.validation)
            held_out = list(range(len(other)))
            if other.shape != store.shape:
                raise CohortError(
                    f"{other.path}: its images have shape {other.shape}, those of {store.path} "
                    f"{store.shape}"
                )
        check_pairs(store, sorted({*training, *(held_out if other is store else ())}))
        if other is not store:
            check_pairs(other, held_out)
        result = FieldPairs(store, tuple(training), other, tuple(held_out))
        logger.info(
            "%d pairs of %s pixels to train on, %d to measure with",
            len(training), " x ".join(map(str, store.shape)), len(held_out),
        )  # fmt: skip
        users.append(result)
    return result


def _split(settings: TrainFieldsConfig, store: PairStore) -> tuple[list[int], list[int]]:
    """Pairs to train on and to measure with; no specimen is on both sides."""
    specimens = store.numbers["dataset_id"]
    wanted = chosen(settings.indexes, len(store), settings.key("indexes"))
    if settings.fold is not None:
        names = np.unique(specimens)
        if len(names) < settings.folds:
            raise CohortError(
                f"{store.path}: dataset_id has {len(names)} different values, fewer than "
                f"{settings.key('folds')} = {settings.folds}: lower it, or measure with another "
                f"store by {settings.key('validation')}"
            )
        order = np.random.default_rng(_FOLD_SEED).permutation(len(names))
        out = {int(names[i]) for turn, i in enumerate(order) if turn % settings.folds
               == settings.fold}  # fmt: skip
        held = [i for i in range(len(store)) if int(specimens[i]) in out]
        return [i for i in range(len(store)) if int(specimens[i]) not in out], held
    if wanted is None or settings.validation is not None:
        return list(range(len(store))) if wanted is None else wanted, []
    trained = {int(specimens[i]) for i in wanted}
    rest = sorted(set(range(len(store))) - set(wanted))
    held = [i for i in rest if int(specimens[i]) not in trained]
    if len(held) < len(rest):
        logger.info(
            "%d pairs that %s leaves out are not used for measurements: their specimens are "
            "trained on",
            len(rest) - len(held), settings.key("indexes"),
        )  # fmt: skip
    return wanted, held
