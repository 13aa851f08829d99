"""User errors: found inside other errors, shown in one line, each with its status."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import errors
from scripts.runtime import error_report

ROOT = Path(__file__).resolve().parents[1]


def wrapped(error: BaseException, *wrappers: BaseException) -> BaseException:
    for wrapper in wrappers:
        wrapper.__cause__ = error
        error = wrapper
    return error


def test_every_error_has_a_status_of_its_own():
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    statuses = [kind.exit_code for kind in kinds]
    assert len(set(statuses)) == len(statuses)
    assert 0 not in statuses


def test_configuration_error_is_a_value_error():
    assert issubclass(errors.ConfigurationError, ValueError)


def test_user_error_is_found_below_several_wrappers():
    cause = errors.CohortError("two grids")
    assert error_report.find_user_error(wrapped(cause, KeyError("a"), RuntimeError("b"))) is cause


def test_user_error_is_found_as_context():
    error = RuntimeError("while handling")
    error.__context__ = errors.StorageError("disk full")
    assert error_report.find_user_error(error) is error.__context__


def test_suppressed_context_is_not_searched():
    error = RuntimeError("on its own")
    error.__context__ = errors.StorageError("disk full")
    error.__suppress_context__ = True
    assert error_report.find_user_error(error) is None


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOSPC, errno.EACCES, errno.EMFILE])
def test_what_the_system_refuses_everywhere_is_a_storage_error(number):
    error = wrapped(OSError(number, os.strerror(number), "a" * 5000), RuntimeError("by MONAI"))
    result = error_report.find_user_error(error)
    assert isinstance(result, errors.StorageError)
    assert str(result).endswith(os.strerror(number))
    assert len(str(result)) < 300
    assert error_report.find_user_error(OSError(errno.EINVAL, "a bug")) is None


@pytest.mark.parametrize("other", [None, ValueError("bug"), KeyboardInterrupt()])
def test_other_errors_are_none(other):
    assert error_report.find_user_error(other) is None


def test_interruption_is_not_explained_by_an_earlier_error():
    interruption = KeyboardInterrupt()
    interruption.__context__ = errors.CohortError("before")
    assert error_report.find_user_error(interruption) is None


def test_a_chain_in_a_circle_ends():
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert error_report.find_user_error(one) is None


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"from scripts.errors import *\nfrom scripts.runtime.error_report import *\n{code}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_uncaught_user_error_is_one_line_and_its_own_status():
    done = run(
        "report_errors_in_one_line()\nreport_errors_in_one_line()\n"
        "try:\n    raise FoldingError('sub-01 folds')\n"
        "except FoldingError as error:\n    raise RuntimeError('wrapped by MONAI') from error"
    )
    assert done.stderr == "error: sub-01 folds\n"
    assert done.returncode == errors.FoldingError.exit_code


def test_uncaught_interruption_is_one_line_and_130():
    done = run("report_errors_in_one_line()\nraise KeyboardInterrupt")
    assert done.stderr == f"\n{error_report.INTERRUPTED}\n"
    assert done.returncode == error_report.EXIT_INTERRUPTED == 130


def test_other_exceptions_keep_their_traceback():
    done = run("report_errors_in_one_line()\nraise ValueError('a bug')")
    assert "Traceback" in done.stderr
    assert "ValueError: a bug" in done.stderr
    assert done.returncode == 1


def test_earlier_hook_still_gets_other_exceptions():
    done = run(
        "import sys\nsys.excepthook = lambda *args: print('earlier hook', args[1])\n"
        "report_errors_in_one_line()\nraise ValueError('a bug')"
    )
    assert done.stdout == "earlier hook a bug\n"


def test_submodules_are_reachable_after_a_plain_import_and_torch_stays_out():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, scripts\nprint(scripts.cohort.read_cohort.__name__)\n"
            "print(scripts.settings.atlas.LearnedAtlasConfig().min_subjects)\n"
            "print('torch' in sys.modules, 'monai' in sys.modules, hasattr(scripts, 'nonsense'))\n"
            "print('settings' in dir(scripts))",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.split() == ["read_cohort", "5", "False", "False", "False", "True"]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\u202eabc\u2066", r"\u202eabc\u2066"),
        ("a\u200bb\u2060c\ufeffd\u00ad", r"a\u200bb\u2060c\ufeffd\xad"),
        ("\x7f\x9b\x85\u2028\u2029", r"\x7f\x9b\x85\u2028\u2029"),
        ("\udcff\ud800", r"\xff\ud800"),
        ("a\u00a0b\u3000c", r"a\xa0b\u3000c"),
        ("\U000e0041\u115f\u3164\ufe0f", r"\U000e0041\u115f\u3164\ufe0f"),
        ("Müller, 東京, שלום, a_b {} $x @y %z", "Müller, 東京, שלום, a_b {} $x @y %z"),
        (Path("/a/b"), "/a/b"),
    ],
)
def test_what_a_terminal_obeys_or_does_not_show_is_shown_as_an_escape(text, seen):
    assert errors.shown(text) == seen
    assert errors.shown(errors.shown(text)) == seen


def test_a_message_is_one_line_whatever_it_names():
    error = errors.CohortError("/data/a\nerror: all is well\x1b[8m: can't be read")
    assert str(error) == r"/data/a\nerror: all is well\x1b[8m: can't be read"
    assert str(errors.ConfigurationError("one\n", "two")) == "one\\n\ntwo"


def test_an_error_without_a_message_has_none():
    assert str(errors.TrainingError()) == ""
