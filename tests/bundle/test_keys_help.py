"""The keys in a job's help: its own, all accepted, with the values that the configuration has."""

from __future__ import annotations

import copy

import pytest

from bundle import cli
from bundle.jobs import JOBS
from bundle.keys_help import shown_keys
from bundle.overrides import apply_overrides, read_config


@pytest.mark.parametrize("verb", JOBS)
def test_every_key_that_a_help_shows_is_accepted(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    config = read_config([cli.ROOT / name for name in JOBS[verb].files])
    keys = dict(shown_keys(config))
    assert {"output_dir", "output"} & set(keys)
    for key, value in keys.items():
        assert f"    --{key} " in shown
        apply_overrides(copy.deepcopy(config), {key: value})
    listed = {line.split()[0][2:] for line in shown.splitlines() if line.startswith("    --")}
    assert listed - set(keys) <= {"config_file", "KEY", "refine"}
    assert ("--learned_atlas#" in shown) is ("learned_atlas" in config)


def test_a_folder_below_another_key_is_reported(capsys):
    with pytest.raises(SystemExit):
        cli.main(["carry", "--help"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "--atlas_dir <output_dir>/learned_atlas" in lines
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    assert "--carried_dir  " in (shown := capsys.readouterr().out)
    assert "<output_dir>\n" in shown


def test_a_help_says_where_values_come_from(capsys):
    with pytest.raises(SystemExit):
        cli.main(["register-elastic", "--help"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "--output_dir <root>/output",
        "--device_name cuda if there is a GPU, else cpu",
        "--register_elastic#start null",
        "every setting, with its rule: docs/settings.md#register_elastic",
    ):
        assert line in lines
    assert not any("dataset_dir" in line or "handlers" in line for line in lines)
