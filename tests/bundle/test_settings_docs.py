"""The settings page follows the schemas."""

import json

import pytest

from bundle import cli, tools
from bundle.settings_docs import settings_page
from scripts.settings import BLOCKS


def fields(model, path):
    """Key path, key and field of every plain setting."""
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from fields(field.annotation, f"{path}#{key}")
        else:
            yield path, key, field


def sections():
    """Lines of the page by the key path of their section."""
    parts = settings_page().split("\n## `")[1:]
    return {part.split("`", 1)[0]: part.splitlines() for part in parts}


def test_page_in_the_repository_is_current():
    assert tools.SETTINGS_PAGE.read_text(encoding="utf-8") == settings_page()


@pytest.mark.parametrize("name", BLOCKS)
def test_every_setting_has_its_line_with_default_rule_and_description(name):
    page = sections()
    seen = 0
    for path, key, field in fields(BLOCKS[name].schema(), name):
        (line,) = [line for line in page[path] if line.startswith(f"| `{key}` |")]
        default = field.get_default(call_default_factory=True)
        assert f"`{json.dumps(default)}`" in line
        assert " ".join(field.description.split()) in line
        assert field.json_schema_extra["rule"].replace("|", "\\|") in line
        seen += 1
    own = [lines for path, lines in page.items() if path.split("#")[0] == name]
    assert sum(line.startswith("| `") for lines in own for line in lines) == seen > 0


def test_every_block_of_a_shipped_configuration_points_at_its_place_on_the_page():
    for name, block in BLOCKS.items():
        for config in block.configs:
            text = (cli.ROOT / "configs" / f"{config}.yaml").read_text(encoding="utf-8")
            assert f"\n{name}:" in text, (config, name)
            assert f"docs/settings.md#{name}" in text, (config, name)


@pytest.mark.parametrize("stale", [None, "# Settings\n"])
def test_check_fails_on_a_stale_page_and_writes_nothing(tmp_path, monkeypatch, capsys, stale):
    page = tmp_path / "settings.md"
    if stale is not None:
        page.write_text(stale, encoding="utf-8")
    monkeypatch.setattr(tools, "SETTINGS_PAGE", page)
    assert cli.main(["settings-docs", "--check"]) == 1
    assert "python -m bundle settings-docs" in capsys.readouterr().err
    assert (page.read_text(encoding="utf-8") if page.exists() else None) == stale
    assert cli.main(["settings-docs"]) == 0
    assert cli.main(["settings-docs", "--check"]) == 0
