"""Writing beside: everything is written, errors arrive, few calls wait at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from scripts.runtime.write_behind import WriteBehind


def test_everything_is_written_when_the_block_ends(tmp_path: Path) -> None:
    with WriteBehind(threads=2, pending=3) as behind:
        for i in range(20):
            behind.write((tmp_path / str(i)).write_text, str(i * i))
    assert {int(p.name): p.read_text() for p in tmp_path.iterdir()} == {
        i: str(i * i) for i in range(20)
    }


def test_an_error_of_a_writer_is_the_blocks() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind() as behind:
        behind.write(fail)


def test_an_error_stops_the_next_write_and_what_only_waits_never_runs() -> None:
    ran: list[int] = []

    def fail() -> None:
        raise OSError("disk full")

    with (
        pytest.raises(OSError, match="disk full"),
        WriteBehind(threads=1, pending=1) as behind,
    ):
        behind.write(fail)
        behind.write(ran.append, 1)
    assert ran == []


def test_no_more_than_pending_calls_are_held() -> None:
    go, held = threading.Event(), []
    with WriteBehind(threads=1, pending=2) as behind:
        behind.write(go.wait, 60)
        behind.write(held.append, 1)
        third = threading.Thread(target=behind.write, args=(held.append, 2))
        third.start()
        third.join(0.2)
        assert third.is_alive()  # two are held already: it waits
        go.set()
        third.join(60)
        assert not third.is_alive()
    assert held == [1, 2]
