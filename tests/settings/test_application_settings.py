"""Settings of the consumers: rules, and their place in the docs."""

from pathlib import Path

import pytest

from scripts.errors import ConfigurationError
from scripts.settings.applications import AtlasToPatientConfig, TractSimilarityConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "consumers.md"


@pytest.mark.parametrize(
    "kind", [AtlasToPatientConfig, TractSimilarityConfig], ids=lambda kind: kind.key_path
)
def test_every_setting_is_documented(kind):
    text = PAGE.read_text(encoding="utf-8")
    section = text.split(f"| `{kind.key_path}#` |")[1].split("\n\n")[0]
    assert set(kind.model_fields) == {
        line.split("`")[1] for line in section.splitlines() if line.startswith("| `")
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.nii.gz", [("a.nii.gz", False)]),
        ("[a.mat, 1]", [("a.mat", True)]),
        (["a.mat", 1], [("a.mat", True)]),
        (["a.nii.gz", "[b.mat,1]"], [("a.nii.gz", False), ("b.mat", True)]),
        (["a.nii.gz", ["b.mat", 0]], [("a.nii.gz", False), ("b.mat", False)]),
        (["a.mat", ["b.mat", 1]], [("a.mat", False), ("b.mat", True)]),
    ],
)
def test_transforms_are_written_as_for_ants(given, expected):
    result = AtlasToPatientConfig.load({"transforms": given}).transforms
    assert [(entry.path, entry.inverted) for entry in result] == expected


@pytest.mark.parametrize("given", [["a.mat", 2], [""], [3], {"a": 1}, [["a", 1, 2]], None])
def test_what_is_no_list_of_transforms_is_refused(given):
    with pytest.raises(ConfigurationError, match=r"atlas_to_patient\.transforms"):
        AtlasToPatientConfig.load({"transforms": given})


@pytest.mark.parametrize("given", [[], ["a", "a"], ["a/b"], [".."], ["learned_atlas"], "sub-01"])
def test_patients_are_folder_names(given):
    with pytest.raises(ConfigurationError, match=r"atlas_to_patient\.patients"):
        AtlasToPatientConfig.load({"patients": given})
