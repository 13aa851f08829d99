"""Covariates: what tables may say, how it is coded, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.cohort import CovariateCoding, parse_values, read_cohort, read_participants
from scripts.errors import CohortError, ConfigurationError
from scripts.phantom import write_demo_cohort
from scripts.settings.atlas import LearnedAtlasConfig
from scripts.settings.cohort import CohortRequest

PEOPLE = [
    {"age": 20.0, "site": "B"},
    {"age": 30.0, "site": "A"},
    {"age": 40.0, "site": "C"},
    {"age": 70.0, "site": "A"},
    {"age": 44.0, "site": "B"},
]


def config(*covariates: str, **cohort: Any) -> CohortRequest:
    categorical = [name for name in covariates if name == "site"]
    return LearnedAtlasConfig.load(
        {
            "device": "cpu",
            "min_subjects": 3,
            "model": {"covariates": list(covariates), "categorical_covariates": categorical},
            "refine": {"rounds": 1},
            "cohort": cohort,
        }
    ).cohort_request()


def coding(*covariates: str) -> CovariateCoding:
    return CovariateCoding.of_cohort(PEOPLE, config(*covariates))


def table(folder: Path, *lines: str) -> Path:
    path = folder / "participants.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# -- coding ----------------------------------------------------------------------------------


def test_columns_are_zero_at_the_cohorts_mean_and_numbers_have_unit_spread() -> None:
    made = coding("age", "site")
    design = np.stack([made.code(one) for one in PEOPLE])
    assert made.columns == ["age", "site=B", "site=C"]
    np.testing.assert_allclose(design.mean(0), 0, atol=1e-6)
    assert design[:, 0].std() == pytest.approx(1)
    # Two people of different sites differ by one in the sites' columns.
    np.testing.assert_allclose(design[0, 1:] - design[1, 1:], [1, 0], atol=1e-6)
    np.testing.assert_allclose(design[2, 1:] - design[1, 1:], [0, 1], atol=1e-6)


def test_a_value_left_out_is_the_mean() -> None:
    made = coding("age", "site")
    assert not made.code({}).any()
    assert made.code({"age": 30})[0] == made.code({"age": 30, "site": "A"})[0]


def test_coding_survives_the_checkpoint() -> None:
    made = coding("age", "site")
    assert CovariateCoding.from_list(made.as_list()) == made


def test_only_what_lies_outside_the_range_is_an_extrapolation() -> None:
    made = coding("age")
    assert made.beyond({"age": 20.0}) == made.beyond({"age": 70.0}) == made.beyond({}) == []
    (warning,) = made.beyond({"age": 90.0})
    assert "90" in warning
    assert "20 to 70" in warning
    assert "extrapolation" in warning


@pytest.mark.parametrize(
    ("people", "covariates", "message"),
    [
        ([{"age": 30.0}] * 5, ["age"], "age is 30 in every subject"),
        ([{"site": "A"}] * 5, ["site"], "site is A in every subject"),
        (PEOPLE[:2], ["age"], "2 usable subjects are too few"),
        (
            [{"age": float(i), "years": float(2 * i)} for i in range(6)],
            ["age", "years"],
            "are linearly dependent",
        ),
    ],
)
def test_cohorts_that_fix_no_slope_are_refused(people: Any, covariates: Any, message: str) -> None:
    with pytest.raises(CohortError, match=message):
        CovariateCoding.of_cohort(people, config(*covariates))


# -- chosen values ---------------------------------------------------------------------------


def test_values_are_read_from_text_and_from_mappings() -> None:
    made = coding("age", "site")
    assert parse_values("age=30,site=B", made) == {"age": 30.0, "site": "B"}
    assert parse_values({"age": 30, "site": "B"}, made) == {"age": 30.0, "site": "B"}
    assert parse_values(" site = B ", made) == {"site": "B"}
    assert parse_values("mean", made) == {}
    assert parse_values(None, made) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("age", "name=value"),
        ("", "name=value"),
        ("age=30,", "name=value"),
        ("height=3", "height is not a covariate of the model; its covariates are age, site"),
        ("age=30,age=31", "age is given twice"),
        ("age=old", "must be a number"),
        ("age=nan", "must be a number"),
        ("site=D", "unknown category; must be one of the cohort's, A, B, C"),
        ({"age": True}, "must be a number or a name"),
        (30, "must be text"),
    ],
)
def test_values_that_make_no_sense_are_reported(asked: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_values(asked, coding("age", "site"))


def test_an_unconditional_model_has_no_values_to_choose() -> None:
    assert parse_values(None, None) is None
    with pytest.raises(ConfigurationError, match="without covariates"):
        parse_values("age=30", None)


# -- participants.tsv ------------------------------------------------------------------------


def test_the_prefix_of_a_participant_may_be_left_out_on_either_side(tmp_path: Path) -> None:
    path = table(tmp_path, "participant_id\tage", "sub-01\t30", "02\t40")
    people = read_participants(path, ["age"])
    for name in ("01", "sub-01", "02", "sub-02"):
        assert people.reason_against(name) is None
    assert people.values(["01", "sub-02"]) == {"01": {"age": 30.0}, "sub-02": {"age": 40.0}}


def test_text_is_a_category_and_so_are_numbers_that_are_declared_to_be(tmp_path: Path) -> None:
    path = table(tmp_path, "participant_id\tsex\tsite", "a\tF\t1", "b\tM\t2")
    people = read_participants(path, ["sex", "site"])
    assert people.values(["a"])["a"] == {"sex": "F", "site": 1.0}
    assert people.values(["a"], ["site"])["a"] == {"sex": "F", "site": "1"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name\tage", "a\t1"], "no participant_id"),
        (["participant_id\tAge", "a\t1"], "no column age .*did you mean Age"),
        (["participant_id\tage\tage", "a\t1\t2"], "several columns age"),
        (["participant_id\tage", "a"], "line 2: has 1 cells"),
        (["participant_id\tage", "a\t1", "a\t2"], "line 3: a is listed twice"),
    ],
)
def test_tables_that_cannot_be_read_are_reported(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(CohortError, match=message):
        read_participants(table(tmp_path, *lines), ["age"])


def test_a_column_that_mixes_numbers_and_text_names_the_culprit(tmp_path: Path) -> None:
    path = table(tmp_path, "participant_id\tage", "a\t30", "b\t89+")
    with pytest.raises(CohortError, match=r"age of b is '89\+'.*categorical_covariates"):
        read_participants(path, ["age"]).values(["a", "b"])


# -- cohorts ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ageing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ageing") / "demo"
    write_demo_cohort(
        folder, subjects=5, held_out=0, shape=(16, 18, 16), streamlines=10, age_effect=4.0
    )
    return folder


def changed(folder: Path, *lines: str) -> str:
    """A table elsewhere, relative to the dataset folder."""
    return str(table(folder, "participant_id\tage\tsex", *lines))


FOUR = ("sub-02\t30\tF", "sub-03\t40\tM", "sub-04\t50\tF", "sub-05\t60\tM")


@pytest.mark.parametrize(
    ("first", "reason"),
    [("sub-01\tn/a\tF", "has no value of age"), ("sub-09\t20\tF", "is not in the table")],
)
def test_subjects_without_covariates_are_left_out_with_the_reason(
    ageing: Path, tmp_path: Path, first: str, reason: str
) -> None:
    path = changed(tmp_path, first, *FOUR)
    cohort = read_cohort(ageing, config("age", participants=path))
    assert [one.name for one in cohort.subjects] == ["sub-02", "sub-03", "sub-04", "sub-05"]
    (left_out,) = cohort.rejected
    assert left_out.subject == "sub-01"
    assert left_out.path == path
    assert reason in left_out.reason
    design = cohort.design()
    assert design is not None
    np.testing.assert_allclose(design.mean(0), 0, atol=1e-6)


def test_the_identity_holds_the_covariates_and_nothing_else_changes_it(
    ageing: Path, tmp_path: Path
) -> None:
    plain = read_cohort(ageing, config())
    assert plain.design() is None
    assert all("covariates" not in item for item in plain.datalist())
    one = read_cohort(ageing, config("age"))
    rows = [
        f"{name}\t{values['age'] + 1:g}\tF"
        for name, values in ((s.name, dict(s.covariates)) for s in one.subjects)
    ]
    other = read_cohort(ageing, config("age", participants=changed(tmp_path, *rows)))
    assert len({plain.identity(), one.identity(), other.identity()}) == 3
    assert one.datalist()[0]["covariates"].dtype == np.float32


def test_a_models_coding_is_kept_for_other_subjects(
    ageing: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = read_cohort(ageing, config("age", "sex")).coding
    assert made is not None
    path = changed(tmp_path, "sub-01\t200\tF", *FOUR)
    with caplog.at_level(logging.WARNING):
        read_cohort(ageing, config("age", "sex", participants=path), coding=made)
    assert "sub-01: age = 200 is outside the cohort's range" in caplog.text
    path = changed(tmp_path, "sub-01\t20\tX", *FOUR)
    with pytest.raises(CohortError, match="sub-01: sex = 'X': unknown category"):
        read_cohort(ageing, config("age", "sex", participants=path), coding=made)


def test_a_missing_table_is_one_line(ageing: Path) -> None:
    with pytest.raises(CohortError, match=r"other.tsv can't be read: No such file.*participants"):
        read_cohort(ageing, config("age", participants="other.tsv"))


@pytest.mark.parametrize(
    ("values", "plain"),
    [
        (["20,5", "31,25", "40"], "20.5"),
        (["20,5", "31,25", "40,1"], "20.5"),
        (["20 y", "31 y", "40 y", "28 y", "55 y"], "20"),
        (["031Y", "020Y", "040Y"], "031"),
        (["−1", "−2", "−3"], "-1"),  # the sign that typesetters use
        (["1.234,5", "2.234,5", "3.234,5"], "it like 20.5"),
        (["20;5", "31;2", "40;1"], "205"),
        (["20y 6m", "31y", "40y 1m"], "206"),
    ],
)
def test_a_column_that_is_nearly_numbers_is_asked_about(
    tmp_path: Path, values: list[str], plain: str
) -> None:
    rows = [f"p{i}\t{value}" for i, value in enumerate(values)]
    read = read_participants(table(tmp_path, "participant_id\tage", *rows), ["age"])
    names = [f"p{i}" for i in range(len(values))]
    with pytest.raises(CohortError, match=f"number or a category.*write {plain} .*categorical"):
        read.values(names)
    assert read.values(names, ["age"])["p0"] == {"age": values[0]}  # told: a category


def test_categories_with_a_digit_stay_categories(tmp_path: Path) -> None:
    rows = [f"p{i}\t{value}" for i, value in enumerate(["3T", "1.5T", "3T", "3T", "1.5T"])]
    read = read_participants(table(tmp_path, "participant_id\tfield", *rows), ["field"])
    assert read.values(["p0", "p1"])["p1"] == {"field": "1.5T"}
