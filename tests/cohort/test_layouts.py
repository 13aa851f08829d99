"""Patterns: which alternatives are tried, and how a tract is dropped from a path."""

import pytest

from scripts.cohort import LAYOUTS, alternatives, drop_tract
from scripts.errors import ConfigurationError
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.cohort import LearnedAtlasCohortConfig, SubjectSearch


@pytest.mark.parametrize(
    "relpath, whole",
    [
        ("dwi/tdi.nii.gz", "dwi/tdi.nii.gz"),
        ("dwi/{tract}/tdi.nii.gz", "dwi/tdi.nii.gz"),
        ("{tract}/tdi.nii.gz", "tdi.nii.gz"),
        ("dwi/{tract}_tdi.nii.gz", "dwi/tdi.nii.gz"),
        ("dwi/tdi_{tract}.nii.gz", "dwi/tdi.nii.gz"),
        ("dwi/a_{tract}_tdi.nii.gz", "dwi/a_tdi.nii.gz"),
        ("dwi/sub_bundle-{tract}_tdi.nii.gz", "dwi/sub_tdi.nii.gz"),
        ("dwi/sub_bundle-{tract}.nii.gz", "dwi/sub.nii.gz"),
        ("bundle-{tract}/tdi.nii.gz", "tdi.nii.gz"),
        ("{tract}/{tract}_tdi.nii.gz", "tdi.nii.gz"),
        ("x{tract}y.nii.gz", "xy.nii.gz"),
    ],
)
def test_tract_is_dropped_with_its_separator(relpath, whole):
    assert drop_tract(relpath) == whole


@pytest.mark.parametrize("relpath", ["{tract}.nii.gz", "dwi/{tract}.nii.gz", "{tract}"])
def test_a_file_named_after_the_tract_alone_has_no_whole_map(relpath):
    with pytest.raises(ConfigurationError, match="consists of the tract only"):
        drop_tract(relpath)


def config(**values) -> SubjectSearch:
    return LearnedAtlasConfig.load(values).subject_search()


def test_every_layout_of_the_settings_is_there_and_valid():
    for name in LAYOUTS:
        assert config(cohort={"layout": name}).layout == name
        for alternative in LAYOUTS[name]:
            for pattern in alternative.patterns:
                LearnedAtlasCohortConfig.load({"pattern": pattern})
    rule = LearnedAtlasCohortConfig.model_json_schema()["properties"]["layout"]
    assert sorted(rule["enum"]) == sorted(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_maps_come_first_without_tracts(layout):
    tried = alternatives(config(cohort={"layout": layout}))
    assert sorted(map(str, tried)) == sorted(map(str, LAYOUTS[layout]))
    assert [one.names_tracts for one in tried] == sorted(one.names_tracts for one in tried)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "flat"])
def test_only_single_tracts_when_tracts_are_asked_for(layout):
    for values in (
        {"cohort": {"layout": layout, "tracts": ["af"]}},
        {"cohort": {"layout": layout}, "model": {"channels": 2}},
    ):
        assert all(one.names_tracts for one in alternatives(config(**values)))


@pytest.mark.parametrize(
    "values, named",
    [
        ({"cohort": {"layout": "flat", "tracts": ["af"]}}, "learned_atlas.cohort.layout = 'flat'"),
        ({"cohort": {"layout": "flat"}, "model": {"channels": 2}}, "learned_atlas.model.channels"),
        ({"cohort": {"pattern": "{subject}.nii", "tracts": ["af"]}}, "cohort.tracts = ['af']"),
        (
            {
                "training_space": "affine_native",
                "affine_native_relpath": "tdi.nii.gz",
                "cohort": {"tracts": ["af"]},
            },
            "learned_atlas.affine_native_relpath = 'tdi.nii.gz'",
        ),
    ],
)
def test_tracts_need_a_place_in_the_pattern(values, named):
    with pytest.raises(ConfigurationError) as caught:
        alternatives(config(**values))
    assert named in str(caught.value)
    assert "{tract}" in str(caught.value)


def test_affine_space_keeps_the_tract_only_when_one_is_asked_for():
    space = {
        "training_space": "affine_native",
        "affine_native_relpath": "dwi/{tract}/tdi.nii.gz",
    }
    assert str(alternatives(config(**space))[0]) == "{subject}/dwi/tdi.nii.gz"
    asked = config(**space, cohort={"tracts": ["af"]})
    assert str(alternatives(asked)[0]) == "{subject}/dwi/{tract}/tdi.nii.gz"
