"""A field continued into a region: closed forms, and what must not have any influence."""

from __future__ import annotations

import pytest
import torch

from scripts.spatial.field_extension import extended_field


def ball(shape, centre, radius):
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    away = places - torch.tensor(centre).view(-1, *[1] * len(shape))
    return (away.square().sum(0) < radius**2)[None, None]


@pytest.mark.parametrize("shape", [(18, 17, 16), (22, 19)])
def test_a_linear_field_is_continued_exactly(shape):
    d = len(shape)
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    matrix = torch.randn(d, d, generator=torch.Generator().manual_seed(0)) / 4
    field = torch.einsum("ij,j...->i...", matrix, places)[None]
    hole = ball(shape, [9.0] * d, 5)
    result = extended_field(torch.where(hole, 1e6, field), ~hole)
    assert torch.allclose(result, field, atol=2e-2)


def test_what_is_unknown_has_no_influence_and_what_is_known_stays():
    field = torch.randn(2, 3, 12, 13, 11, generator=torch.Generator().manual_seed(0))
    hole = torch.cat([ball((12, 13, 11), [6.0, 6.0, 5.0], 3), ball((12, 13, 11), [0.0, 2, 2], 2)])
    first = extended_field(field, ~hole)
    for value in (7.0, torch.nan, torch.inf):
        assert torch.equal(extended_field(torch.where(hole, value, field), ~hole), first)
    assert torch.equal(first.where(~hole, 0), field.where(~hole, 0))


def test_the_continuation_has_no_extremum_inside():
    field = torch.randn(1, 1, 14, 14, 14, generator=torch.Generator().manual_seed(1))
    hole = ball((14, 14, 14), [7.0, 7.0, 7.0], 4)
    result = extended_field(field, ~hole)
    rim = field[ball((14, 14, 14), [7.0, 7.0, 7.0], 5.5) & ~hole]
    assert result[hole].min() >= rim.min()
    assert result[hole].max() <= rim.max()


def test_everything_and_nothing_known():
    field = torch.randn(1, 2, 6, 5)
    assert extended_field(field, torch.ones(1, 1, 6, 5, dtype=torch.bool)) is field
    assert not extended_field(field, torch.zeros(1, 1, 6, 5, dtype=torch.bool)).any()
