"""The settings page follows the schema."""

import json

import pytest

from bundle import cli
from bundle.settings_docs import settings_page
from scripts.settings.atlas import LearnedAtlasConfig


def fields(model=LearnedAtlasConfig, path="learned_atlas"):
    """Key path, key and field of every plain setting."""
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from fields(field.annotation, f"{path}#{key}")
        else:
            yield path, key, field


def test_page_in_the_repository_is_current():
    assert cli.SETTINGS_PAGE.read_text(encoding="utf-8") == settings_page()


def test_every_setting_has_its_line_with_default_rule_and_description():
    sections = {
        part.split("`", 1)[0]: part.splitlines() for part in settings_page().split("\n## `")[1:]
    }
    defaults = LearnedAtlasConfig.load({}).as_dict()
    seen = 0
    for path, key, field in fields():
        (line,) = [line for line in sections[path] if line.startswith(f"| `{key}` |")]
        section = defaults
        for part in path.split("#")[1:]:
            section = section[part]
        assert f"`{json.dumps(section[key])}`" in line
        assert " ".join(field.description.split()) in line
        assert field.json_schema_extra["rule"] in line
        seen += 1
    assert seen > 40
    assert sum(line.startswith("| `") for lines in sections.values() for line in lines) == seen


@pytest.mark.parametrize("stale", [None, "# Settings\n"])
def test_check_fails_on_a_stale_page_and_writes_nothing(tmp_path, monkeypatch, capsys, stale):
    page = tmp_path / "settings.md"
    if stale is not None:
        page.write_text(stale, encoding="utf-8")
    monkeypatch.setattr(cli, "SETTINGS_PAGE", page)
    assert cli.main(["settings-docs", "--check"]) == 1
    assert "python -m bundle settings-docs" in capsys.readouterr().err
    assert (page.read_text(encoding="utf-8") if page.exists() else None) == stale
    assert cli.main(["settings-docs"]) == 0
    assert cli.main(["settings-docs", "--check"]) == 0
