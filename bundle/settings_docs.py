"""Writes the settings page of the docs from the schema, so that it can't be outdated."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.settings import BLOCKS

INTRODUCTION = """\
# Settings

This page lists the settings of all jobs, with their defaults and rules. The settings of a job are
in blocks of its configuration. A missing key has the default below; a shipped configuration may set
another value. Any setting can be given on the command line, with `#` between section and key:

    python -m monai.bundle run training --config_file configs/train.yaml \\
        --learned_atlas#optimizer#epochs 20 --learned_atlas#loss#smoothness_weight 1.0

A block is checked as a whole before any data is read (`python -m bundle` checks it even before
torch is loaded). An unknown key or a value that breaks its rule ends the run with exit code 2 and
one line each: key path, value, rule. Numbers may be written as text (`1e-4` is text in YAML 1.1);
booleans, `nan` and `inf` are never numbers.

`python -m bundle settings-docs` writes this page from the schemas in `scripts/settings/`: to change
it, change a schema. `python -m bundle settings-docs --check` fails while the two differ.
"""


def settings_page() -> str:
    """The whole page, Markdown: a table of the blocks, then each block section by section."""
    pages = [INTRODUCTION, _contents()]
    for name, block in BLOCKS.items():
        schema = block.schema().model_json_schema()
        for path, section in _sections(name, schema, schema.get("$defs", {})):
            rows = [_row(key, field) for key, field in section["properties"].items()]
            lines = [f"## `{path}`", "", _one_line(section["description"]), ""]
            if path == name:
                files = ", ".join(f"`configs/{config}.yaml`" for config in block.configs)
                lines += [f"In {files}.", ""]
            head = ["| key | type | default | rule | what it does |", "|---|---|---|---|---|"]
            pages.append("\n".join([*lines, *head, *filter(None, rows), ""]))
    return "\n".join(pages)


def _contents() -> str:
    lines = ["| block | configurations |", "|---|---|"]
    for name, block in BLOCKS.items():
        files = ", ".join(f"`{config}.yaml`" for config in block.configs)
        lines.append(f"| [`{name}`](#{name}) | {files} |")
    return "\n".join([*lines, ""])


def _sections(
    path: str, section: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A section, then those nested in it, each with its key path."""
    yield path, section
    for key, field in section["properties"].items():
        if "$ref" in field:
            nested = definitions[field["$ref"].rsplit("/", 1)[-1]]
            # The description comes from the field; that of the class is more general.
            described = {**nested, "description": field.get("description", nested["description"])}
            yield from _sections(f"{path}#{key}", described, definitions)


def _row(key: str, field: Mapping[str, Any]) -> str | None:
    """A row of the table for a setting, or None for a nested section."""
    if "$ref" in field:
        return None
    cells = [
        f"`{key}`",
        _type(field),
        f"`{json.dumps(field['default'], ensure_ascii=False)}`",
        field["rule"],
        field["description"],
    ]
    return f"| {' | '.join(_one_line(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _type(field: Mapping[str, Any]) -> str:
    """The type as text."""
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field or "const" in field:
        return "choice"
    if "prefixItems" in field:
        return f"[{', '.join(_type(item) for item in field['prefixItems'])}]"
    if field["type"] == "array":
        items = _type(field["items"])
        return f"list of {items}" if items == "text" else f"list of {items}s"
    return {
        "integer": "integer",
        "number": "number",
        "boolean": "true/false",
        "string": "text",
        "null": "null",
        "object": "mapping",
    }[field["type"]]


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
