"""The job that makes a store of pairs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from scripts.errors import StorageError
from scripts.runtime.lock import locked_folders
from scripts.runtime.ownership import NAME
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import check_writable
from scripts.settings.make_pairs import MakePairsConfig
from scripts.supervised.atlas_pairs import AtlasSource
from scripts.supervised.generator import MadePair, PairGenerator
from scripts.supervised.loading import check_pairs
from scripts.supervised.pair_store import write_store
from scripts.supervised.report_folder import about_of
from scripts.supervised.sources import (
    ImageSource,
    SourcePair,
    StoreSource,
    chosen,
    open_source,
    reference_paths,
)

__all__ = ["PairMaker", "store_path"]

logger = logging.getLogger(__name__)

_KIND = "pairs"


def store_path(output: str | Path) -> Path:
    """``<output>.h5``.

    Example:
        >>> str(store_path("out/train")), str(store_path("out/train.h5"))
        ('out/train.h5', 'out/train.h5')
    """
    path = Path(output)
    return path if path.suffix == ".h5" else path.with_name(f"{path.name}.h5")


def _check_replaceable(path: Path, settings: MakePairsConfig) -> None:
    """Refuse to write over a file that isn't a store of this bundle, or over what is read.

    Raises:
        StorageError: naming the file.
    """
    if not os.path.lexists(path):
        return
    if any(path.resolve() == one.resolve() for one in reference_paths(settings)):
        raise StorageError(f"{path}: is read by this job; choose another output")
    if about_of(path).get("kind") != _KIND:
        raise StorageError(
            f"{path}: exists already and wasn't made by make-pairs; choose another "
            "output, or remove it"
        )


class _Pairs(Dataset[tuple[SourcePair, MadePair]]):
    """Pairs by their number, made in the process that reads them."""

    def __init__(self, source: Any, generator: PairGenerator | None, order: Sequence[int]) -> None:
        self.source = source
        self.generator = generator
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> tuple[SourcePair, MadePair]:
        pair = self.source[self.order[number]]
        if self.generator is None:
            return pair, MadePair(pair.moving, pair.field, pair.inverse, changed=True)
        torch.set_num_threads(1)
        return pair, self.generator(number, pair.moving, pair.field, pair.inverse)


class PairMaker:
    """Makes ``<output>.h5``, whole or not at all.

    Of reference images, each pair is a random one of them; of an atlas, each subject is a pair.

    Args:
        settings: of the job.
        output: where to, with or without ``.h5``.

    Raises:
        CohortError: the source can't be used.
        ConfigurationError: the settings don't fit it.
        StorageError: the place can't be written.
    """

    def __init__(self, settings: MakePairsConfig, output: str | Path) -> None:
        self.settings = settings
        self.path = store_path(output)
        check_writable(self.path.parent)
        _check_replaceable(self.path, settings)
        self.source: ImageSource | StoreSource | AtlasSource
        self.generator: PairGenerator | None = None
        if settings.atlas_dir is not None:
            self.source = AtlasSource(settings.atlas_dir)
            wanted = chosen(settings.indexes, len(self.source), "make_pairs.indexes")
            self.order = list(range(len(self.source))) if wanted is None else wanted
        else:
            self.source = open_source(settings)
            if isinstance(self.source, StoreSource):
                check_pairs(self.source.store, self.source.indexes)
            self.generator = PairGenerator(settings, self.source.shape)
            rng = np.random.default_rng([settings.seed, len(self.source)])
            rounds = -(-settings.count // len(self.source))
            # Every image as often as any other, but for the last round.
            order = np.concatenate([rng.permutation(len(self.source)) for _ in range(rounds)])
            self.order = order[: settings.count].tolist()

    def run(self) -> Path:
        """Make the pairs and write the store.

        Raises:
            CohortError: what the pairs are made of changed meanwhile.
            StorageError: it can't be written.
        """
        about = json.dumps({"name": NAME, "kind": _KIND, "settings": self.settings.as_dict()})
        loader = DataLoader(
            _Pairs(self.source, self.generator, self.order),
            batch_size=None,
            num_workers=min(self.settings.num_workers, len(self.order)),
        )
        count, unchanged, lengths = len(self.order), 0, 0.0
        with (
            locked_folders(self.path.parent),
            write_store(self.path, count, self.source.shape, about) as store,
            progress_bar(count, "pairs") as bar,
        ):
            for number, (pair, made) in enumerate(loader):
                store.write(
                    number, made.moving, pair.reference, made.field, made.inverse,
                    p=pair.p, image_id=pair.image_id, dataset_id=pair.dataset_id,
                )  # fmt: skip
                unchanged += not made.changed
                lengths += float(np.sqrt((made.field**2).sum(0)).mean())
                bar.update()
            self.source.check_unchanged()
        if unchanged:
            logger.warning(
                "%d of %d pairs were left unchanged: none of %d displacements passed the checks "
                "(folds, inverse); lower make_pairs#elastic#rms or raise make_pairs#elastic#width",
                unchanged, count, self.settings.trials,
            )  # fmt: skip
        logger.info(
            "%d pairs of %s pixels in %s, moved by %.2f pixels on average",
            count, " x ".join(map(str, self.source.shape)), self.path, lengths / count,
        )  # fmt: skip
        return self.path
