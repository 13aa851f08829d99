"""The examples in the docstrings of the three verbs' code give what they say."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest


@pytest.mark.parametrize(
    "name",
    [
        "losses.images", "metrics.fields", "settings.field_losses", "supervised.layers",
        "supervised.making", "supervised.reference_volume",
    ],
)  # fmt: skip
def test_examples_of_docstrings(name):
    module = importlib.import_module(f"scripts.{name}")
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted > 0
    assert result.failed == 0
