"""JSON and YAML that would hang, grow or overflow are refused with a reason."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scripts.runtime.plain_data import DEEPEST, parse_json, parse_yaml, require_depth

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deep"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "levels deep"),
        ('{"a":' * 500 + "1" + "}" * 500, "levels deep"),
        ("[1e400]", "1e400"),
        ("[-1e999]", "too large for a floating-point"),
        ("9" * 400, "400 digits"),
        ("9" * 5000, "5000 digits"),
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[1,]", "Expecting|Illegal"),
        ("[" + "1," * 5_000_001 + "1]", "values"),
    ],
)
def test_json_beyond_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "levels deep"),
        ("a:\n" + "".join(" " * n + "a:\n" for n in range(1, 200)), "levels deep"),
        (LAUGHS, "values"),
        ("&a [*a]", "levels deep"),
        ("a: [1", "expected"),
        ("a: " + "9" * 6000, "too many digits"),
        ("!!python/object/apply:os.getcwd []", "constructor"),
        ("x" * (1 << 23), "million characters"),
        ("a: \x01", "unacceptable|special characters"),
    ],
)
def test_yaml_beyond_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_yaml(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(VALUES.filter(lambda value: "Infinity" not in json.dumps(value)))
def test_what_json_writes_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@given(VALUES)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value)) == yaml.safe_load(yaml.safe_dump(value))


def test_depth_is_counted_in_mappings_and_lists() -> None:
    value: object = 1
    for number in range(DEEPEST - 1):
        value = [value] if number % 2 else {"a": value}
    require_depth(value)
    with pytest.raises(ValueError, match="levels deep"):
        require_depth([[value]])
