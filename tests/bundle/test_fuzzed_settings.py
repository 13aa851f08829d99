"""Any value of any setting of any job is taken or refused in lines; never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from bundle import cli
from bundle.early_values import early_check
from bundle.jobs import JOBS
from bundle.overrides import read_config
from scripts import settings as blocks
from scripts.errors import ConfigurationError
from scripts.settings.section import Section

BLOCKS: dict[str, type[Section]] = {name: block.schema() for name, block in blocks.BLOCKS.items()}
FILES = sorted({job.config for job in JOBS.values()})
NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e-300, 1e308, -0.0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["nan", "inf", "-1", "1e400", "9" * 5000, "..", "../../x", "/etc/passwd", "\x00", "a\nb",
         "x" * 300, "{subject}", "{", "{}", "%s", "~", "cuda:99", "\ud800", "$1", "@x"]
    ),
    st.binary(max_size=4),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=4)), max_size=4),
    st.lists(st.lists(st.one_of(st.integers(), st.text(max_size=4)), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.one_of(st.none(), st.integers()), max_size=3),
)  # fmt: skip


def paths(kind: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every setting and every section of a block."""
    for name, field in kind.model_fields.items():
        yield (*before, name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from paths(inner, (*before, name))


def changed(block: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A block with one setting replaced."""
    name, *rest = path
    inner = block.get(name)
    new = changed(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value
    return {**block, name: new}


def sound(name: str) -> dict[str, Any]:
    """What the shipped configurations say in a block."""
    for file in FILES:
        config = read_config([cli.ROOT / file])
        if isinstance(config.get(name), dict):
            return config[name]
    raise LookupError(name)


def loads(name: str, block: Any) -> None:
    try:
        BLOCKS[name].load(block)
    except ConfigurationError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(line.startswith(f"{BLOCKS[name].key_path}") for line in lines), lines


@pytest.mark.parametrize("name", BLOCKS)
def test_any_value_of_one_setting_is_taken_or_refused(name: str) -> None:
    base = sound(name)

    @settings(max_examples=150, deadline=None)
    @given(path=st.sampled_from(sorted(paths(BLOCKS[name]))), value=NASTY)
    def load(path: tuple[str, ...], value: Any) -> None:
        loads(name, changed(base, path, value))

    load()


@pytest.mark.parametrize("name", BLOCKS)
def test_any_block_is_taken_or_refused(name: str) -> None:
    names = st.one_of(st.sampled_from(sorted(BLOCKS[name].model_fields)), st.text(max_size=6))

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(NASTY, st.dictionaries(names, NASTY, max_size=8)))
    def load(block: Any) -> None:
        loads(name, block)

    load()


def test_every_block_of_every_configuration_is_among_them() -> None:
    result = set()
    for file in FILES:
        config = read_config([cli.ROOT / file])
        result |= {key for key in config if key in BLOCKS}
        loading = [
            key
            for key, value in config.items()
            if isinstance(value, dict)
            and str(value.get("_target_", "")).rpartition(".")[2].startswith("load_")
            and str(value.get("block", "")).startswith("@")
            and value["block"][1:] not in BLOCKS
        ]
        assert not loading, (file, loading)
    assert result == set(BLOCKS)


@pytest.mark.parametrize("verb", sorted(JOBS))
def test_any_words_after_a_verb_start_it_or_are_refused(
    verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = []
    monkeypatch.setattr(cli, "_run_in_monai", lambda *call: started.append(call))
    monkeypatch.setattr(cli, "_check", lambda *call: 0)
    monkeypatch.setattr(cli.signal, "signal", lambda *call: None)
    config = read_config([cli.ROOT / JOBS[verb].config])
    keys = sorted(key for key in config if key != "imports")
    deep = [
        f"{name}#{'#'.join(path)}"
        for name in keys if name in BLOCKS for path in paths(BLOCKS[name])
    ]  # fmt: skip
    word = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
    value = st.one_of(word, NASTY.map(lambda one: repr(one)[:400]), st.sampled_from(EXPRESSIONS))
    key = st.one_of(st.sampled_from(keys + deep), word)
    words = st.lists(
        st.one_of(
            st.tuples(key, value).map(lambda pair: [f"--{pair[0]}", pair[1]]),
            st.tuples(key, value).map(lambda pair: [f"--{pair[0]}={pair[1]}"]),
            st.tuples(word).map(list),
        ),
        max_size=3,
    ).map(lambda lists: [one for part in lists for one in part])

    @settings(max_examples=25, deadline=None)
    @given(words)
    def run(arguments: list[str]) -> None:
        if any(one in ("-h", "--help") for one in arguments):
            return
        assert cli.main([verb, *arguments]) in (0, 2, 3)

    run()


EXPRESSIONS = [
    "$", "$1 +", "$@", "@", "@nothing", "@bundle_root", "$@bundle_root + 1", "$f'{1:>9}'",
    "$f'{@bundle_root:d}'", "%nothing.yaml::x", "%", "$" + "(" * 300, "$'a' + " * 9, "[1", "{'a':",
    "$'\\ud800'", "null", "true", "1e999", "$__import__('os')", "$(lambda: 1)()",
]  # fmt: skip


def test_a_block_that_early_checks_can_not_judge_is_left_to_monai() -> None:
    config = read_config([cli.ROOT / "configs" / "align.yaml"])
    config["align"]["rounds"] = "$1 + int('1')"
    assert early_check(config) is None
