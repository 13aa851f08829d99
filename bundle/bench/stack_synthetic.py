"""Benchmarks over stacks whose transforms are known; parts of `bundle.bench.stack`."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from bundle.bench.em_sections import EmSections
from bundle.bench.stack_measures import (
    Chain,
    deviations,
    images_of,
    methods,
    pair_errors,
    rows_of,
    second_difference,
)
from scripts.phantom.serial_sections import SerialSections
from scripts.stack.placement import follow
from scripts.stack.planar import PlanarModel

__all__ = ["banana", "em", "long", "straight"]


def straight(options: argparse.Namespace) -> list[dict[str, Any]]:
    """40 sections of 512x512, one of which half is gone, one that shows something else."""
    torn, ruined = (13,), (27,)
    size = options.size or 512
    sections = SerialSections(
        options.count or 40, (size, size), seed=3, angle=2.0, shift=10.0 * size / 512, torn=torn,
        ruined=ruined,
    )  # fmt: skip
    chain, damaged = Chain(images_of(sections)), {*torn, *ruined}
    truth, rows = sections.composed, []
    for name, estimate, seconds, failures in rows_of(chain, methods(chain, "rigid")):
        near = pair_errors(estimate, truth, 1, chain.plane)
        over = pair_errors(estimate, truth, 2, chain.plane)
        sound = [z for z in range(len(near)) if not damaged & {z, z + 1}]
        kept = [z for z in range(len(truth)) if z not in damaged]
        rows.append(
            {
                "method": name,
                "pair error, median": float(np.median(near[sound])),
                "worst": float(near[sound].max()),
                "over damage, worst": float(max(over[z - 1] for z in damaged)),
                "deviation, r.m.s.": float(
                    np.sqrt((deviations(estimate[kept], truth[kept], chain.plane) ** 2).mean())
                ),
                "second difference": second_difference(estimate, truth, chain.plane, [*damaged]),
                "CPU-s a pair": seconds,
                "failures": failures,
            }
        )
    return rows


def long(options: argparse.Namespace) -> list[dict[str, Any]]:
    """100 sections of 256x256: drift of a chain."""
    sections = SerialSections(options.count or 100, (256, 256), seed=5, shift=5.0)
    chain = Chain(images_of(sections))
    truth, rows = sections.composed, []
    wanted = methods(chain, "rigid")
    for name in ("SimpleITK Mattes", "Adam loop", "OpenCV ECC"):  # minutes, and known by `straight`
        wanted.pop(name)
    for name, estimate, seconds, failures in rows_of(chain, wanted):
        near = pair_errors(estimate, truth, 1, chain.plane)
        rows.append(
            {
                "method": name,
                "step, median": float(np.median(near)),
                "worst": float(near.max()),
                "end": float(deviations(estimate, truth, chain.plane, centred=False)[-1]),
                "CPU-s a pair": seconds,
                "failures": failures,
            }
        )
    return rows


def em(options: argparse.Namespace) -> list[dict[str, Any]]:
    """20 sections of 512x512 like electron micrographs: see `EmSections`."""
    size = options.size or 512
    sections = EmSections(options.count or 20, (size, size), seed=2)
    chain = Chain(images_of(sections))
    rows = []
    for name, result, seconds, failures in rows_of(chain, methods(chain, "rigid")):
        near = pair_errors(result, sections.composed, 1, chain.plane)
        rows.append(
            {
                "method": name,
                "pair error, median": float(np.median(near)),
                "worst": float(near.max()),
                "CPU-s a pair": seconds,
                "failures": failures,
            }
        )
    return rows


def banana(options: argparse.Namespace) -> list[dict[str, Any]]:
    """An organ that bends by 60 pixels: what the chain takes away, and what placements keep."""
    sections = SerialSections(
        options.count or 60, (256, 256), seed=11, angle=1.0, shift=2.0, bend=options.bend
    )
    straight_one = SerialSections(sections.count, (256, 256), seed=11, angle=1.0, shift=2.0)
    random = np.random.default_rng(0)
    rows = []
    for anatomy, stack in (("bent", sections), ("straight", straight_one)):
        chain = Chain(images_of(stack))
        truth = stack.composed
        known = [chain.plane.physical_matrix(one) for one in truth]
        model = PlanarModel("rigid")
        noisy = {}
        for z, one in enumerate(known):
            by = np.array([np.radians(random.normal(0, 1.0)), *random.normal(0, 4.0, 2)])
            by[1:] /= chain.plane.half_width
            noisy[z] = model.matrix(by, chain.plane) @ one
        every = {z: known[z] for z in range(0, stack.count, 8)}
        still = {z: np.eye(3) for z in range(stack.count)}
        chained = np.stack([chain.plane.physical_matrix(one) for one in chain.ours()])
        placed = {
            "none": chained,
            **{
                name: follow(chained, placements, model, chain.plane, options.sigma)
                for name, placements in (
                    ("scanner", still), ("1 degree, 4 px noise", noisy), ("every 8th known", every),
                )
            },
        }  # fmt: skip
        for name, matrices in placed.items():
            estimate = np.stack([chain.plane.pixel_matrix(one) for one in matrices])
            off = deviations(estimate, truth, chain.plane)
            rows.append(
                {
                    "anatomy": anatomy,
                    "placement": name,
                    "off, r.m.s.": float(np.sqrt((off**2).mean())),
                    "worst": float(off.max()),
                    "second difference": second_difference(estimate, truth, chain.plane, []),
                }
            )
    return rows
