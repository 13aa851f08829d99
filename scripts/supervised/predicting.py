"""The job that predicts fields: of a store's pairs, or of images."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from torch.utils.data import Dataset

from scripts.engines.opening import opened
from scripts.errors import CohortError, TrainingError
from scripts.networks.precision import autocast
from scripts.networks.unwrapping import unwrapped
from scripts.pairwise.network_grid import between_0_and_1
from scripts.registration.images import ReadImage
from scripts.registration.pair_output import (
    PairFields,
    check_pair_folders,
    require_no_fold,
    write_pair,
)
from scripts.runtime.input_files import read_json
from scripts.runtime.lock import locked_folders
from scripts.runtime.ownership import NAME
from scripts.runtime.progress import progress_bar
from scripts.runtime.storage import (
    check_space,
    publish_folder,
    write_whole,
)
from scripts.runtime.watched_files import WatchedFiles
from scripts.settings.image_pairs import image_name
from scripts.settings.predict_fields import PredictFieldsConfig
from scripts.spatial.jacobian import jacobian_summary
from scripts.spatial.transforms import resample
from scripts.supervised.field_metrics import label_metrics, mean_metrics, pair_metrics
from scripts.supervised.field_network import FieldNetwork
from scripts.supervised.loading import KnownPairs, open_store
from scripts.supervised.merging import MergedNetwork
from scripts.supervised.pair_store import field_names_of, to_store
from scripts.supervised.report_folder import check_report_folder
from scripts.supervised.saving import load_field_network, network_path
from scripts.supervised.sources import chosen

__all__ = [
    "FieldPredictor",
    "ImagePairFiles",
    "PredictionStep",
    "open_network",
    "prediction_dataset",
    "read_label_tree",
]

logger = logging.getLogger(__name__)

_ADVICE = "publish it with predict_fields#verify_jacobian false, or train for longer"


def open_network(
    settings: PredictFieldsConfig, ckpt_dir: str | Path, written: Sequence[str | Path] = ()
) -> FieldNetwork:
    """The network that predicts; see `opened`.

    Raises:
        CheckpointError: see `load_field_network`.
    """
    return opened(
        lambda path: load_field_network(path, settings.network),
        network_path(ckpt_dir, settings.network),
        settings.device,
        settings.key("device"),
        written,
    )


class ImagePairFiles(Dataset[dict[str, Any]]):
    """Moving images on the grid of a fixed one, from 0 to 1.

    Args:
        settings: of the job.
        network: whose dimensions the images must have.

    Raises:
        CohortError: the fixed image can't be used.
    """

    def __init__(self, settings: PredictFieldsConfig, network: FieldNetwork) -> None:
        self.settings = settings
        self.dims = len(_shape_of(network))
        self.watched = WatchedFiles([settings.fixed, *settings.moving])
        self.fixed = self.read(settings.fixed)

    def __len__(self) -> int:
        """Moving images."""
        return len(self.settings.moving)

    def read(self, path: str) -> ReadImage:
        """An image, checked."""
        image = ReadImage(path)
        if image.spatial_dims != self.dims:
            raise CohortError(
                f"{path}: has {image.spatial_dims} dimensions, the network {self.dims}"
            )
        if len(image.values) != 1:
            raise CohortError(f"{path}: has {len(image.values)} channels; must have one")
        return image

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A pair: ``subject``, ``number``, ``pair (2, *shape)``, ``moving (1, *shape)``."""
        path = self.settings.moving[index]
        moving = self.read(path)
        onto = resample(moving.values, moving.grid, [], self.fixed.grid)
        if not np.ptp(onto) > 0:
            raise CohortError(
                f"{path}: has no signal on the grid of {self.settings.fixed}; align it first "
                "with `align`, `estimate-affine` or its header"
            )
        pair = [
            torch.from_numpy(between_0_and_1(self._array(one), self.settings.log_share))[None]
            for one in (self.fixed.values[0], onto[0])
        ]
        return {
            "subject": image_name(path), "number": index, "pair": torch.cat(pair),
            "moving": pair[1],
        }  # fmt: skip

    def _array(self, values: np.ndarray) -> np.ndarray:
        return values[..., 0] if self.dims == 2 else values


def _shape_of(network: FieldNetwork) -> list[int]:
    description = network.description
    return list(description.get("shape") or description["global"]["shape"])


def prediction_dataset(
    settings: PredictFieldsConfig, network: FieldNetwork
) -> KnownPairs | ImagePairFiles:
    """The pairs that the settings name.

    Raises:
        CohortError: they can't be used, or are of other dimensions than the network.
        ConfigurationError: an index is out of range.
    """
    if not settings.pairs:
        return ImagePairFiles(settings, network)
    store = open_store(settings, settings.pairs, needs_fields=False)
    dims = len(_shape_of(network))
    if len(store.shape) != dims:
        raise CohortError(f"{store.path}: has {len(store.shape)} dimensions, the network {dims}")
    wanted = chosen(settings.indexes, len(store), settings.key("indexes"))
    return KnownPairs(store, range(len(store)) if wanted is None else wanted, inverse=True)


class PredictionStep:
    """The evaluator's ``iteration_update``: fields of pairs and their inverses.

    Args:
        dtype: of the convolutions.
    """

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """``pred``: the field; ``inverse``; ``registered``; of a merged network ``stage``."""
        assert engine.network is not None
        network: Any = unwrapped(engine.network, FieldNetwork)
        pair = torch.as_tensor(batch["pair"]).to(engine.state.device)
        moving = torch.as_tensor(batch["moving"]).to(engine.state.device)
        network.eval()
        more = {"expose_global": True} if isinstance(network, MergedNetwork) else {}
        with torch.no_grad(), autocast(pair.device, self.dtype):
            estimate = network.find(pair, inverse=True, **more)
        if not bool(torch.isfinite(estimate.field).all()):
            raise TrainingError(
                f"the field of {', '.join(map(str, batch['subject']))} is not finite; use "
                "predict_fields#dtype float32"
            )
        output = {
            "image": pair,
            "subject": batch["subject"],
            "pred": estimate.field,
            "inverse": estimate.inverse,
            "registered": network.warp(moving, estimate.field),
        }
        if estimate.global_field is not None:
            output["stage"] = estimate.global_field
        engine.state.output = output
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class FieldPredictor:
    """Predicts and publishes, below ``<output_dir>/fields/``.

    Of a store's pairs ``predictions.h5`` in the store's order and its order of channels, and
    ``metrics.csv``; of images a folder each, as `register_elastic` leaves them.

    Args:
        evaluator: iterates over the pairs.
        dataset: the pairs.
        settings: of the job.
        output_dir: destination.

    Raises:
        CohortError: the tree of labels can't be read.
        StorageError: the disk has too little room.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        dataset: KnownPairs | ImagePairFiles,
        settings: PredictFieldsConfig,
        output_dir: str | Path,
    ) -> None:
        self.evaluator = evaluator
        self.dataset = dataset
        self.settings = settings
        self.folder = Path(output_dir) / "fields"
        self.tree = None if settings.label_tree is None else read_label_tree(settings.label_tree)
        self.rows: list[dict[str, Any]] = []
        self._file: Any = None
        self._done = 0
        if isinstance(dataset, ImagePairFiles):
            names = [image_name(path) for path in settings.moving]
            check_pair_folders(self.folder, names, settings.fixed, settings.moving)
        else:
            check_report_folder(self.folder, settings.pairs)
            d = len(dataset.store.shape)
            voxels = len(dataset) * int(np.prod(dataset.store.shape))
            check_space({self.folder: {"predictions": voxels * (1 + 12 * d)}})

    def run(self) -> None:
        """Predict all pairs.

        Raises:
            FoldingError: a field folds, with verify_jacobian; that pair isn't published.
            CohortError: an input changed while it was read.
            StorageError: something can't be written.
        """
        with ExitStack() as stack:
            stack.enter_context(locked_folders(self.folder.parent))
            self._bar = stack.enter_context(progress_bar(len(self.dataset), "prediction"))
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._take)
            if isinstance(self.dataset, KnownPairs):
                staged = stack.enter_context(write_whole(self.folder / "predictions.h5"))
                self._file = stack.enter_context(h5py.File(staged, "w"))
                self._file.attrs["about"] = json.dumps(
                    {"name": NAME, "kind": "predictions",
                     "pairs": str(self.dataset.store.path), "settings": self.settings.as_dict()}
                )  # fmt: skip
            self.evaluator.run()
            if isinstance(self.dataset, KnownPairs):
                self.dataset.store.check_unchanged()
        if self._file is not None:
            self._write_metrics()

    def _take(self, engine: SupervisedEvaluator) -> None:
        outputs: Any = engine.state.output
        batch: Any = engine.state.batch
        items = batch if isinstance(batch, list) else None
        for i, output in enumerate(outputs):
            number = int(items[i]["number"]) if items is not None else int(batch["number"][i])
            fields = [torch.as_tensor(output[name]).cpu() for name in ("pred", "inverse")]
            if isinstance(self.dataset, KnownPairs):
                self._store(number, fields[0].numpy(), fields[1].numpy(), output)
            else:
                self._publish(number, fields[0][None], fields[1][None])
            self._bar.update()

    # -- pairs of a store --------------------------------------------------------------------

    def _store(
        self, index: int, field: np.ndarray, inverse: np.ndarray, output: dict[str, Any]
    ) -> None:
        assert isinstance(self.dataset, KnownPairs)
        store = self.dataset.store
        registered = torch.as_tensor(output["registered"]).cpu().numpy()[0]
        names = field_names_of(len(store.shape))
        values = {
            "img_registered": np.rint(255 * registered.clip(0, 1)).astype(np.uint8),
            names[0]: to_store(field),
            names[1]: to_store(inverse),
            "image_id": np.int64(store.numbers["image_id"][index]),
        }
        if "stage" in output:
            values[f"global_{names[0]}"] = to_store(torch.as_tensor(output["stage"]).cpu().numpy())
        for name, value in values.items():
            if name not in self._file:
                shape = (len(self.dataset), *np.shape(value))
                chunks = (1, *np.shape(value)) if np.shape(value) else None
                self._file.create_dataset(name, shape, value.dtype, chunks=chunks)
            self._file[name][self._done] = value
        self._done += 1
        pair = store.read(index)
        assert pair.reference is not None
        reference, moving = (
            one.astype(np.float32)[None] / 255 for one in (pair.reference, pair.moving)
        )
        numbers = pair_metrics(field, inverse, reference, moving, pair.field)
        numbers |= label_metrics(field, store.extras(index), self.tree)
        self.rows.append(
            {"pair": index, "image_id": int(store.numbers["image_id"][index]), **numbers}
        )

    def _write_metrics(self) -> None:
        """``metrics.csv``: a row a pair, the last one their means."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        means = mean_metrics(self.rows)
        with (
            write_whole(self.folder / "metrics.csv") as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(names), restval="")
            writer.writeheader()
            for row in [*self.rows, {"pair": "mean", "image_id": "", **means}]:
                writer.writerow(
                    {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                )
        if "distance_tissue" in means:
            logger.info(
                "%d pairs: error in tissue %.2f pixels, without a field %.2f; %.3f %% folded; "
                "error of the inverse %.2f pixels",
                len(self.rows), means["distance_tissue"], means["distance_tissue_zero"],
                100 * means["folded"], means["inverse"],
            )  # fmt: skip
        logger.info("predictions and metrics in %s", self.folder)

    # -- images ------------------------------------------------------------------------------

    def _publish(self, index: int, field: torch.Tensor, inverse: torch.Tensor) -> None:
        assert isinstance(self.dataset, ImagePairFiles)
        path = self.settings.moving[index]
        fixed, moving, name = self.dataset.fixed, self.dataset.read(path), image_name(path)
        watched = self.dataset.watched
        jacobian = {
            "displacement": jacobian_summary(field[0]),
            "inverse": jacobian_summary(inverse[0]),
        }
        if self.settings.verify_jacobian:
            require_no_fold(path, jacobian, _ADVICE)
        axes = torch.from_numpy(fixed.grid.affine[:3, : fixed.spatial_dims])
        moves = torch.einsum("ij,bj...->bi...", axes, field.double())
        report = {
            "name": NAME,
            "kind": "predicted fields",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fixed": {"path": self.settings.fixed, "sha256": watched.sha256(self.settings.fixed)},
            "moving": {"path": path, "sha256": watched.sha256(path)},
            "displacement_rms_mm": float(moves.square().sum(1).mean().sqrt()),
            "jacobian": jacobian,
            "settings": self.settings.as_dict(),
            "versions": {one: version(one) for one in ("monai", "nibabel", "numpy", "torch")},
        }
        with publish_folder(self.folder / name) as staging:
            write_pair(staging, name, fixed, moving, np.eye(4), PairFields(field, inverse))
            (staging / "predicted.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            watched.check()
        logger.info("%s: moved by %.2f mm r.m.s.", name, report["displacement_rms_mm"])


def read_label_tree(path: str | Path) -> dict[int, int | None]:
    """The parent of each label.

    Raises:
        CohortError: the file can't be read, or is not a tree of whole numbers.
    """
    try:
        content = read_json(Path(path))
        tree = {int(label): None if up is None else int(up) for label, up in content.items()}
    except (ValueError, AttributeError, TypeError, OverflowError) as error:
        raise CohortError(
            f'{path}: must be a JSON mapping of labels to their parents, such as {{"5": 1, "1": '
            f"null}}: {error}"
        ) from error
    for label in tree:
        up, steps = tree[label], 0
        while up is not None:
            up, steps = tree.get(up), steps + 1
            if steps > len(tree):
                raise CohortError(f"{path}: label {label} is an ancestor of itself")
    return tree
