"""Paths of the command line that are empty, or that nothing follows."""

from __future__ import annotations

from typing import Any

import pytest

from bundle.folders import check_folders
from bundle.overrides import UsageError

CONFIG: dict[str, Any] = {"output_dir": "out", "fixed": "", "dataset_dir": {"_target_": "x"}}


@pytest.mark.parametrize("value", ["", " ", "\t"])
@pytest.mark.parametrize("key", ["output_dir", "ckpt_dir", "dataset_dir", "atlas_dir"])
def test_an_empty_path_is_refused(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{key} is empty"):
        check_folders({**CONFIG, key: value}, {key: value})
    with pytest.raises(UsageError, match=f"--{key} is empty"):
        check_folders({**CONFIG, key: value}, {})  # in a file


def test_a_key_without_a_value_is_refused() -> None:
    with pytest.raises(UsageError, match="--output_dir needs a path"):
        check_folders({**CONFIG, "output_dir": True}, {"output_dir": True})


def test_what_a_configuration_leaves_to_the_user_is_reported_by_the_job() -> None:
    check_folders(CONFIG, {})
    with pytest.raises(UsageError, match="--fixed is empty"):
        check_folders(CONFIG, {"fixed": ""})
