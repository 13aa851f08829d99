"""The docs point at files that exist and name commands that run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from bundle import cli
from bundle.jobs import JOBS
from bundle.overrides import apply_overrides, parse_overrides
from bundle.tools import TOOLS
from scripts.cohort import LAYOUTS
from scripts.settings import BLOCKS

ROOT = cli.ROOT
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ZOO_SECTIONS = [
    "Model Overview",
    "Data",
    "Training configuration",
    "Input",
    "Output",
    "Performance",
    "Commands",
    "References",
    "License",
]


def commands(page: Path) -> list[list[str]]:
    """Every command of this bundle in a page's blocks, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```\w*\n(.*?)```|((?:^ {4}.*\n)+)", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in "".join(block).splitlines()]
    ours = [line for line in lines if re.match(r"python3? (-m (monai\.)?bundle|bundle/)", line)]
    return [shlex.split(re.sub(r"<[a-z]+>|\.\.\.", "x", line), comments=False) for line in ours]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = [
        re.sub(r"[^\w\- ]", "", one.lower()) for one in re.findall(r"^#+ (.+)$", text, re.M)
    ]
    return {one.strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_heading_find_it(page):
    links = re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    wrong = [
        f"{file}#{anchor}"
        for file, anchor in links
        if anchor not in anchors(page.parent / file if file else page)
    ]
    assert not wrong


def is_setting(block: str, keys: list[str]) -> bool:
    section = BLOCKS[block].schema()
    for place, key in enumerate(keys):
        if key not in section.model_fields:
            return False
        kind = section.model_fields[key].annotation
        if not hasattr(kind, "model_fields"):
            return place == len(keys) - 1
        section = kind
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_named_in_the_text_exist(page):
    pattern = rf"\b({'|'.join(BLOCKS)})((?:#\w+)+)"
    named = set(re.findall(pattern, page.read_text(encoding="utf-8")))
    wrong = [block + keys for block, keys in named if not is_setting(block, keys.split("#")[1:])]
    assert not wrong


def test_model_card_has_the_zoo_sections_in_order():
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert [heading for heading in headings if heading in ZOO_SECTIONS] == ZOO_SECTIONS


def test_readme_lists_every_layout():
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(LAYOUTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_existing_jobs_files_and_keys(page):
    for words in commands(page):
        if words[1] == "bundle/workshop.py":
            assert words[2] in ("demo", "test")
            continue
        if words[2] == "bundle":
            job = JOBS.get(words[3])
            assert job or words[3] in TOOLS
            files, overrides = parse_overrides([word for word in words[4:] if job])
            files = files or ([job.config] if job else [])
        else:
            assert words[3] in ("run", "verify_net_in_out")
            files, overrides = parse_overrides(words[5:])
            content = yaml.safe_load((ROOT / files[0]).read_text(encoding="utf-8"))
            assert words[4] in content
        if files:
            config = yaml.safe_load((ROOT / files[0]).read_text(encoding="utf-8"))
            apply_overrides(config, overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_named_in_the_text_exist(page):
    named = re.findall(r"python -m bundle ([a-z][a-z-]*)", page.read_text(encoding="utf-8"))
    assert set(named) <= {*JOBS, *TOOLS}
