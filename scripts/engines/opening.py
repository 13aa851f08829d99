"""Reserves the folders of a run, and opens models."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from scripts.engines.run_state import check_earlier_run
from scripts.networks.checkpoint import check_earlier_model
from scripts.networks.precision import open_device
from scripts.runtime.lock import lock_folders
from scripts.runtime.ownership import NeededFiles, check_earlier_report
from scripts.runtime.processes import end_with_parent, is_first
from scripts.runtime.storage import check_not_root, check_writable

__all__ = ["check_earlier_files", "opened", "reserved"]


Network = TypeVar("Network")


def check_earlier_files(paths: Iterable[str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Make sure that what a training replaces in ``ckpt_dir`` is an earlier training's.

    Args:
        paths: folders of run states; models (``.pt``); reports (``.json``).
        inputs: what the job reads; none of it may lie there.

    Raises:
        StorageError: something else is there, or an input.
    """
    needed = NeededFiles(inputs)
    for path in map(Path, paths):
        if path.suffix == ".pt":
            check_earlier_model(path)
        elif path.suffix == ".json":
            check_earlier_report(path, _is_of_a_training)
        else:
            needed.check(path.absolute())
            check_earlier_run(path)


def _is_of_a_training(report: Mapping[str, Any]) -> bool:
    return {"metrics", "settings", "versions"} <= report.keys()


@contextmanager
def reserved(folders: Sequence[str | Path]) -> Iterator[list[object]]:
    """Lock folders for this run while the result of the block is in use.

    Raises:
        StorageError: a folder can't be written, or another run is using it.
    """
    for folder in folders:
        check_writable(folder)
    # Several processes are one run; the first one holds its locks.
    locks = lock_folders(tuple(folders)) if is_first() else []
    users: list[object] = []
    try:
        yield users
        for user in users:
            for lock in locks:
                # Also called when the interpreter exits. The locks of a killed run end by
                # themselves.
                weakref.finalize(user, lock.release)
    finally:
        if not users:
            for lock in locks:
                lock.release()


def opened(
    load: Callable[[str | Path], Network],
    path: str | Path,
    device: str,
    key: str,
    written: Sequence[str | Path] = (),
) -> Network:
    """Load a published network, after early checks of the device and the output folders.

    Args:
        load: reads the network.
        path: of its file.
        device: of the job.
        key: dotted path of the setting that names the device, for messages.
        written: folders that the run will write to; locked while the result is in use.

    Raises:
        ConfigurationError: the machine doesn't have the device.
        StorageError: a folder in ``written`` can't be written, or another run is using it.
    """
    end_with_parent()
    check_not_root(path)
    open_device(device, key)
    with reserved(written) as users:
        network = load(path)
        users.append(network)
    return network
