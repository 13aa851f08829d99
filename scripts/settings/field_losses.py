"""Names of the losses of images and fields, and mixtures of them; torch-free."""

from __future__ import annotations

import re

__all__ = ["FIELD_LOSSES", "IMAGE_LOSSES", "mixture_of"]

IMAGE_LOSSES = (
    "mae", "mse", "ncc_5", "ncc_9", "ncc_12", "ncc_20", "pearson", "psnr", "ssim",
    "perceptual_loss_net_alex", "perceptual_loss_net_vgg", "perceptual_loss_net-lin_alex",
    "perceptual_loss_net-lin_vgg",
)  # fmt: skip
"""Names of losses of an image; on a field they read its components as images."""
FIELD_LOSSES = (
    "vector_distance", "vdclip2", "vdclip3", "mse_po", "grad", "jacobian", "jacobian_distance",
    "mae", "mse",
)  # fmt: skip
"""Names of losses of a field; `mae` and `mse` then compare components."""

_CLIPPED = re.compile(r"vdclip([0-9]{1,2})(?::([0-9]{1,6}(?:\.[0-9]{1,6})?))?")


def mixture_of(text: str, field: bool) -> list[tuple[float, str]]:
    """The losses that an expression mixes, each with its share.

    ``a&b`` is the mean of both; ``0.2*a&0.8*b`` weighs them as written.

    Example:
        >>> mixture_of("ncc_9&mse", field=False)
        [(0.5, 'ncc_9'), (0.5, 'mse')]
        >>> mixture_of("0.2*vector_distance&0.8*jacobian", field=True)
        [(0.2, 'vector_distance'), (0.8, 'jacobian')]

    Args:
        text: names joined by ``&``, each maybe with a weight and ``*`` before it.
        field: whether the output is a field; an image has no field losses.

    Raises:
        ValueError: a name or a weight is unknown, or only some of the names have a weight.
    """
    parts = [part.strip() for part in text.split("&")]
    terms: list[tuple[float | None, str]] = []
    for part in parts:
        weight, star, name = part.rpartition("*")
        share: float | None = None
        if star:
            if re.fullmatch(r"\s*[0-9]{0,6}\.?[0-9]{1,6}\s*", weight) is None:
                raise ValueError(f"has {weight.strip()!r} where a weight >= 0 belongs")
            share = float(weight)
        name = name.strip()
        known = (*FIELD_LOSSES, *IMAGE_LOSSES) if field else IMAGE_LOSSES
        clipped = _CLIPPED.fullmatch(name) if field else None
        wrong_clip = clipped is not None and (
            int(clipped[1]) < 1 or (clipped[2] is not None and float(clipped[2]) <= 0)
        )
        if wrong_clip or (name not in known and clipped is None):
            kind = "field" if field else "image"
            raise ValueError(
                f"names {name!r}, which is not a loss of {'a' if field else 'an'} {kind}"
            )
        terms.append((share, name))
    given = [share for share, _ in terms if share is not None]
    if given and len(given) < len(terms):
        raise ValueError("has a weight for some of its losses and none for others")
    if given and sum(given) == 0:
        raise ValueError("has weights that are all 0")
    return [(1 / len(terms) if share is None else share, name) for share, name in terms]
