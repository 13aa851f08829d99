"""Nonsense in an ``atlas.json``: each is one line that says where and why."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from edited_records import Edit, at

from bundle import cli
from scripts.errors import CohortError, VerificationError
from scripts.publishing.description_rules import (
    opened_description,
    require_verifiable,
    verifiable_jacobians,
)
from scripts.publishing.published_atlas import open_atlas
from scripts.publishing.verification import verify_atlas

OLD = Path(__file__).resolve().parents[1] / "data" / "before_the_rebuild" / "learned_atlas"
ABOUT: dict[str, Any] = json.loads((OLD / "atlas.json").read_text())

FIRST = ("cohort", "subjects", 0)
MAP = (*FIRST, "maps", 0)
CLAIMS: dict[str, Edit] = {
    "a grid beyond any memory": at("cohort", "grid", "shape", value=[100_000] * 3),
    "a grid of nothing": at("cohort", "grid", "shape", value=[0, 16, 16]),
    "a negative grid": at("cohort", "grid", "shape", value=[-5, 16, 16]),
    "a grid of texts": at("cohort", "grid", "shape", value=["12", "10", "11"]),
    "a grid of four axes": at("cohort", "grid", "shape", value=[2, 2, 2, 2]),
    "channels beyond any memory": at("settings", "model", "channels", value=10**12),
    "no channel": at("settings", "model", "channels", value=0),
    "templates beyond any memory": at("settings", "model", "n_templates", value=10**9),
    "a threshold that is text": at("cov_mean_threshold_pct", value="x"),
    "a threshold that is nothing": at("presence_value", value=None),
    "a threshold that is not a number": at("presence_value", value=float("nan")),
    "an infinite threshold": at("presence_value", value=float("inf")),
    "an unknown normalisation": at("normalisation", value="xx"),
    "nobody": at("cohort", "subjects", value=[]),
    "a hash that is a number": at(*MAP, "sha256", value=5),
    "files as a list": at("files", value=["a"]),
    "a map outside": at("settings", "emit_baseline_maps", value=["../../../etc/x"]),
    "a path with a zero byte": at(*MAP, "path", value="a\0b"),
    "a divisor of 0": at(*MAP, "divisor", value=0),
    "a channel beyond": at(*MAP, "channel", value=7),
    "a negative channel": at(*MAP, "channel", value=-1),
    "an unknown kind": at("kind", value="other"),
    "versions with odd names": at("versions", value={"../x": "1", "": "2", "a b": "3"}),
    "a hash of the description that is a number": at("description_sha256", value=7),
    "a box below 0": at("cohort", "crop", "start", value=[-3, 0, 0]),
    "a box beyond the grid": at("cohort", "crop", "stop", value=[99, 9, 9]),
    "an empty box": at("cohort", "crop", "stop", value=[0, 1, 1]),
    "a box of two axes": at("cohort", "crop", "start", value=[0, 1]),
    "a mixture of others": at("mixture", value={"nobody": [1.0]}),
    "code that is text": at("code", value="x"),
    "settings that are a list": at("settings", value=[]),
    "a subject without maps": at(*FIRST, "maps", value=[]),
}
NAMES = [
    "../../home/me",
    "/etc",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    ".hidden",
    "x" * 300,
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_refused_in_one_line(claim: str) -> None:
    about = copy.deepcopy(ABOUT)
    CLAIMS[claim](about)
    with pytest.raises((ValueError, CohortError)) as caught:
        require_verifiable(Path("atlas.json"), about)
    assert len(str(caught.value).splitlines()) == 1


def test_the_description_of_an_old_atlas_is_sound() -> None:
    require_verifiable(Path("atlas.json"), copy.deepcopy(ABOUT))
    assert opened_description(OLD) == ABOUT


@pytest.mark.parametrize("name", [*NAMES, 3, None, ["a"]])
def test_a_name_that_is_no_folders_opens_nothing(tmp_path: Path, name: object) -> None:
    about = copy.deepcopy(ABOUT)
    about["cohort"]["subjects"][0]["subject"] = name
    (tmp_path / "atlas.json").write_text(json.dumps(about))
    with pytest.raises(CohortError, match=r"cohort\.subjects\[0\]\.subject = ") as caught:
        open_atlas(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["$__import__('os').mkdir('PWNED')", "@x", "%x", "{}", "{patient}"]
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    about = copy.deepcopy(ABOUT)
    about["cohort"]["subjects"][0]["subject"] = name
    (tmp_path / "atlas.json").write_text(json.dumps(about))
    assert open_atlas(tmp_path).subjects[0] == name


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"x"', "[" * 100_000, '{"a": 1e400}', "{" + '"a":{' * 500, "\0",
     '{"name": "tract_density_atlas"}', '{"a": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_what_is_no_description_is_detected_by_status_8(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "atlas.json").write_text(text)
    assert cli.main(["verify", str(tmp_path)]) == 8
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert len(output.splitlines()) == 1
    with pytest.raises(CohortError):
        open_atlas(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "zero", "outside", "folder"])
def test_a_description_that_is_no_file_of_the_folder_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "atlas"
    folder.mkdir()
    path = folder / "atlas.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "outside":
        shutil.copy(OLD / "atlas.json", tmp_path / "other.json")
        path.symlink_to("../other.json")
    else:
        path.mkdir()
    with pytest.raises(VerificationError, match=r"atlas\.json"):
        verify_atlas(folder)
    with pytest.raises(CohortError, match=r"atlas\.json"):
        open_atlas(folder)


@pytest.mark.parametrize(
    "content", [[], {"a": 1}, {"a": {"b": {"min": "x"}}}, {"a": {"b": {"m": None}}}]
)
def test_jacobians_that_are_none_are_refused(content: Any) -> None:
    with pytest.raises(ValueError):
        verifiable_jacobians(content)


# ---------------------------------------------------------------------------------------------
# What was added to a published folder
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """A copy of the old atlas; its inputs aren't where it says."""
    return Path(shutil.copytree(OLD, tmp_path / "atlas"))


@pytest.mark.parametrize("kind", ["file", "link", "link to a folder", "pipe", "empty folder"])
def test_what_was_added_is_unexpected(atlas: Path, kind: str) -> None:
    path = atlas / "fields" / "added"
    if kind == "file":
        path.write_text("x")
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "link to a folder":
        path.symlink_to("/")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    result = {(one.name, one.outcome) for one in verify_atlas(atlas).failures if one.kind == "file"}
    assert result == {("fields/added", "unexpected")}


@pytest.mark.parametrize("name", ["atlas_std.nii.gz", "jacobian.json", "fields"])
def test_a_link_in_place_of_what_was_published_differs(atlas: Path, name: str) -> None:
    (atlas / name).rename(atlas.with_name("moved"))
    (atlas / name).symlink_to("../moved")
    failures = verify_atlas(atlas).failures
    assert any(one.name.startswith(name) and one.kind == "file" for one in failures)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "/", "/proc/kmsg", "nowhere"])
def test_an_input_that_is_no_file_is_missing(atlas: Path, tmp_path: Path, target: str) -> None:
    if target == "pipe":
        os.mkfifo(tmp_path / "pipe")
        target = str(tmp_path / "pipe")
    about = copy.deepcopy(ABOUT)
    about["cohort"]["subjects"][0]["maps"][0]["path"] = target
    (atlas / "atlas.json").write_text(json.dumps(about))
    result = {one.name for one in verify_atlas(atlas).failures if one.kind == "input"}
    assert f"sub-1 {target}" in result


def test_a_file_larger_than_any_of_its_grid_is_not_read(atlas: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.nii.gz"
    with huge.open("wb") as file:
        file.truncate(1 << 42)  # 4 TB, of which nothing is stored
    about = copy.deepcopy(ABOUT)
    about["cohort"]["subjects"][0]["maps"][0]["path"] = str(huge)
    (atlas / "atlas.json").write_text(json.dumps(about))
    (atlas / "atlas_std.nii.gz").unlink()
    (atlas / "atlas_std.nii.gz").symlink_to(huge)
    details = [one.detail for one in verify_atlas(atlas).failures]
    assert any("GB, more than any file of such an atlas" in detail for detail in details)
