"""Presence: values known by hand, and what must cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scripts.losses import PresenceLoss, soft_presence

loss = PresenceLoss()


def block(*where: slice, shape: tuple[int, ...] = (8, 8, 8), value: float = 3.0) -> torch.Tensor:
    image = torch.zeros(1, 1, *shape)
    place: Any = (..., *where)
    image[place] = value
    return image


def test_presence_is_half_at_the_offset_zero_at_zero_and_below_one() -> None:
    offset = 1e-3
    density = torch.tensor([0.0, offset, 9 * offset, 1e9 * offset], dtype=torch.float64)
    presence = soft_presence(torch.log1p(density / offset))
    torch.testing.assert_close(presence, density / (density + offset))
    assert presence[0] == 0
    assert presence[1] == pytest.approx(0.5)


def test_equal_images_cost_nothing_disjoint_ones_one() -> None:
    a, b = block(slice(0, 3)), block(slice(4, 8))
    assert float(loss(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(loss(a, b)) == 1
    assert float(loss(b, a)) == 1


def test_two_empty_images_cost_nothing_and_one_empty_costs_one() -> None:
    empty, full = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 2.0)
    assert float(loss(empty, empty)) == 0
    assert float(loss(full, empty)) == 1
    assert float(loss(empty, full)) == 1


def test_by_hand() -> None:
    """1 - 2 sum(w p q) / sum(w (p^2 + q^2)), w = q on the support and 1 off it."""
    p, q = [0.5, 0.2, 0.4], [0.8, 0.0, 0.1]
    w = [0.8, 1.0, 0.1]
    shared = 2 * sum(wi * pi * qi for wi, pi, qi in zip(w, p, q, strict=True))
    total = sum(wi * (pi**2 + qi**2) for wi, pi, qi in zip(w, p, q, strict=True))
    logs = [-torch.log1p(-torch.tensor(x)).view(1, 1, 3, 1) for x in (p, q)]
    assert float(loss(*logs)) == pytest.approx(1 - shared / total, abs=1e-6)


def test_a_template_that_is_everywhere_is_worse_than_the_right_one() -> None:
    """Restricted to the subject's support the term would be blind to it."""
    subject = block(slice(2, 5), slice(2, 5), slice(2, 5))
    everywhere = torch.full_like(subject, 3.0)
    a_little = block(slice(2, 6), slice(2, 5), slice(2, 5))
    assert float(loss(subject, subject)) < float(loss(a_little, subject)) - 0.05
    assert float(loss(a_little, subject)) < float(loss(everywhere, subject)) - 0.3


def test_the_body_weighs_more_than_the_fringe() -> None:
    subject = torch.zeros(1, 1, 20)
    subject[..., 5:10], subject[..., 10:15] = 4.0, 0.1
    no_body, no_fringe = subject.clone(), subject.clone()
    no_body[..., 5:10], no_fringe[..., 10:15] = 0, 0
    assert float(loss(no_fringe, subject)) < 0.01
    assert float(loss(no_body, subject)) > 0.9


def test_subjects_and_channels_count_alike_whatever_their_size() -> None:
    small, large = block(slice(0, 1)), block(slice(0, 6))
    right = torch.cat([small, large])
    wrong = torch.cat([block(slice(6, 7)), large])
    assert float(loss(wrong, right)) == pytest.approx(0.5, abs=1e-6)
    assert float(loss(wrong.movedim(0, 1), right.movedim(0, 1))) == pytest.approx(0.5, abs=1e-6)


def test_gradient_pulls_the_template_off_the_background_and_onto_the_subject() -> None:
    subject = block(slice(2, 5))
    template = torch.full_like(subject, 0.5).requires_grad_(True)
    loss(template, subject).backward()
    assert template.grad is not None
    assert (template.grad[subject > 0] < 0).all()
    assert (template.grad[subject == 0] > 0).all()


def test_an_empty_pair_has_a_finite_gradient() -> None:
    template = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss(template, torch.zeros(1, 1, 4, 4)).backward()
    assert template.grad is not None
    assert torch.isfinite(template.grad).all()
