"""Folders that a run reserves, and models that it opens."""

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
    """Folders that this run alone writes to, for as long as what the block lists is in use.

    Raises:
        StorageError: if one can't be written, or another run is at work there.
    """
    for folder in folders:
        check_writable(folder)
    # Several processes are one run: the first holds its locks.
    locks = lock_folders(tuple(folders)) if is_first() else []
    users: list[object] = []
    try:
        yield users
        for user in users:
            for lock in locks:
                # Also called at the interpreter's end. A killed run's locks end by themselves.
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
    """A published network, after what can be known beforehand of the run's end.

    Args:
        load: reads it.
        path: its file.
        device: of the job.
        key: dotted path of the setting that names it, for the message.
        written: folders that the run will write to; they are locked while the result is in use.

    Raises:
        ConfigurationError: if the machine lacks the device.
        StorageError: if something that is no writable folder stands in the way of ``written``,
            or another run is at work there.
    """
    end_with_parent()
    check_not_root(path)
    open_device(device, key)
    with reserved(written) as users:
        network = load(path)
        users.append(network)
    return network
