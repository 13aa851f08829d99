"""Records of the log show names from outside as escapes, in every handler and in the file."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.runtime import run_log
from scripts.runtime.terminal import LastingStream

NAME = "a\nb\x1b[2J\u202e"
SHOWN = r"a\nb\x1b[2J\u202e"


@pytest.fixture
def factory() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.fixture
def closed() -> Iterator[None]:
    yield
    assert run_log._kept is not None
    logging.getLogger().removeHandler(run_log._kept)
    run_log._kept.close()


def test_a_record_of_ours_is_one_line(factory: None, caplog: pytest.LogCaptureFixture) -> None:
    run_log.escape_records()
    once = logging.getLogRecordFactory()
    run_log.escape_records()
    assert logging.getLogRecordFactory() is once
    logging.getLogger("scripts.cohort").warning("subject %s is left out", NAME)
    logging.getLogger("elsewhere").warning("two\nlines of %s", "others")
    assert caplog.messages == [f"subject {SHOWN} is left out", "two\nlines of others"]


def test_the_log_file_is_safe_to_look_at(tmp_path: Path, closed: None) -> None:
    run_log.keep_log(tmp_path)
    logging.getLogger("elsewhere").warning("\x1b[2J of another library")
    text = (tmp_path / run_log.LOG_FILE).read_text()
    assert r"\x1b[2J of another library" in text


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "device"])
def test_the_log_does_not_go_through_a_link_or_a_pipe(
    tmp_path: Path, closed: None, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    other, path = tmp_path / "precious", tmp_path / run_log.LOG_FILE
    other.write_text("mine")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        targets = {"link": other, "broken link": tmp_path / "new", "device": "/dev/null"}
        path.symlink_to(targets[kind])
    run_log.keep_log(tmp_path)
    logging.getLogger("scripts.x").warning("told")
    assert other.read_text() == "mine"
    assert not (tmp_path / "new").exists()
    assert any("no log is kept" in message for message in caplog.messages)


def test_a_log_that_fails_takes_no_record_from_the_handler_after_it(
    tmp_path: Path, closed: None
) -> None:
    run_log.keep_log(tmp_path / "gone")
    output = io.StringIO()
    after = logging.StreamHandler(output)
    logging.getLogger().addHandler(after)
    try:
        logging.getLogger("scripts.x").warning("told")
    finally:
        logging.getLogger().removeHandler(after)
    assert run_log._kept not in logging.getLogger().handlers
    first, second = output.getvalue().splitlines()
    assert first.startswith("no log is kept in ") and second == "told"


def test_a_stream_shows_what_a_terminal_would_obey() -> None:
    stream = io.StringIO()
    assert LastingStream(stream).write(f"{NAME}\r\tend") == len(f"{NAME}\r\tend")
    assert stream.getvalue() == "a\nb\\x1b[2J\\u202e\r\tend"
