"""An archive that is checked under MONAI Label is unpacked into its folder or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from bundle.monai_label.check import unpack
from bundle.monai_label.environment import LabelCheckError
from scripts.runtime.ownership import NAME


def archive(path: Path, *members: str | zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for member in (f"{NAME}/models/model.pt", *members):
            packed.writestr(member, b"content")
    return path


def test_what_lies_in_the_bundles_folder_is_unpacked(tmp_path: Path) -> None:
    unpack(archive(tmp_path / "a.zip", f"{NAME}/configs/x.json"), tmp_path / "out")
    result = sorted(path.relative_to(tmp_path / "out") for path in tmp_path.rglob("out/**/*.*"))
    assert [path.as_posix() for path in result] == [
        f"{NAME}/configs/x.json",
        f"{NAME}/models/model.pt",
    ]


@pytest.mark.parametrize(
    "name", ["../x", "/x", f"{NAME}/../../x", "x", f"{NAME}/..\\x", "C:\\x", f"{NAME}x/y"]
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LabelCheckError, match="nothing is unpacked"):
        unpack(archive(tmp_path / "in.zip", name), tmp_path / "a" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo(f"{NAME}/link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with pytest.raises(LabelCheckError, match="link"):
        unpack(archive(tmp_path / "in.zip", link), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), b"text"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.zip").write_bytes(content)
    with pytest.raises(LabelCheckError, match="can't be unpacked"):
        unpack(tmp_path / "in.zip", tmp_path / "out")


def test_a_damaged_archive_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = archive(tmp_path / "in.zip", f"{NAME}/x")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"content", b"cOntent", 1))
    with pytest.raises(LabelCheckError, match="damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
