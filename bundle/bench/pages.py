"""The quality page of a large cohort: its size, what it costs, how fast a browser opens it.

    python -m bundle.bench.pages --work output/pages --subjects 1000

Makes densities like those of a whole brain at 145x174x145 voxels, and from them, by the code that
publishes an atlas, the page of a cohort with 136 labels. Prints CPU seconds for each subject that
the viewer contains and for the rest of the page, peak memory, and the size of the page. Then opens
the page in headless Chromium: seconds until it is loaded, until the viewer shows the template, and
until it shows another subject; writes a picture of the window. One thread.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from bundle.bench.browser import Browser
from bundle.bench.job_cost import Cost
from scripts.metrics.misfit import MISFIT_WINDOW, local_misfit
from scripts.publishing.quality_page import SubjectQuality, quality_page
from scripts.publishing.viewer import Shown, viewer
from scripts.publishing.viewer_volumes import SUBJECTS, ViewedSubject, ViewerGrid, WorstSubjects
from scripts.spatial.grid import CropBox, Grid
from scripts.spatial.jacobian import jacobian_determinant

FULL = (145, 174, 145)
OFFSET = 0.01


def brain(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """A density ``(1, *shape)`` with tracts in an ellipsoid and nothing outside."""
    rough = gaussian_filter(rng.normal(size=shape).astype(np.float32), 2)
    places = np.indices(shape, dtype=np.float32)
    middle = np.reshape([(n - 1) / 2 for n in shape], (-1, 1, 1, 1))
    inside = (((places - middle) / (0.9 * middle)) ** 2).sum(axis=0) < 1
    density = np.where(inside, np.maximum(rough / rough.std(), 0) ** 3, 0) / 20
    return np.asarray(density[None], np.float32)


def subject_layers(
    view: ViewerGrid, template: np.ndarray, rng: np.random.Generator, clock: Cost, name: str
) -> dict[str, Any]:
    """The layers of one subject, and their cost."""
    shape = template.shape[1:]
    image, before = brain(shape, rng), brain(shape, rng)
    field = np.stack([gaussian_filter(rng.normal(size=shape), 8) for _ in range(3)])
    field = (field * 4 / field.std()).astype(np.float32)

    def layers() -> dict[str, Any]:
        ratio = jacobian_determinant(torch.from_numpy(field)).numpy()
        misfit = local_misfit(image, template, OFFSET, MISFIT_WINDOW)
        return view.of_subject(name, image, before, field, ratio, misfit)

    return clock.time("subjects", layers)


def build(shape: tuple[int, ...], subjects: int, clock: Cost) -> str:
    """The page."""
    rng = np.random.default_rng(0)
    affine = np.diag([1.25, 1.25, 1.25, 1])
    grid = Grid(shape, affine, nib.Nifti1Header())
    view = ViewerGrid.of(grid, CropBox((0,) * len(shape), shape), OFFSET)
    template = brain(shape, rng)
    labels = np.kron(
        rng.integers(0, 137, [-(-n // 12) for n in shape]), np.ones((12, 12, 12), dtype=int)
    )[tuple(slice(n) for n in shape)]
    names = [f"sub-{number:04d}" for number in range(1, subjects + 1)]
    fits = rng.uniform(0.3, 0.9, subjects)
    rows: list[SubjectQuality] = [
        {"subject": name, "loss": 0.2, "overlap": 0.8, "correlation": float(fit),
         "smallest_jacobian": 0.4, "displacement": 2.0}
        for name, fit in zip(names, fits, strict=True)
    ]  # fmt: skip
    worst, made = WorstSubjects(), 0
    known: list[dict[str, Any]] = []
    for number in range(subjects):
        order = (True, float(fits[number]), number)
        if not worst.wants(order):
            continue
        if len(known) < SUBJECTS:  # more would only take longer
            known.append(subject_layers(view, template, rng, clock, names[number]))
            made += 1
        layers = known[number % len(known)]
        one = ViewedSubject(names[number], order, layers)
        clock.time("others", partial(worst.add, [one]))
    clock.seconds["subjects"] /= made

    def page() -> str:
        maps = dict.fromkeys(("mean", "std", "std_error", "cov", "prob_threshold"), template[0])
        images = [
            Shown("Atlas", view.density("template", template)),
            Shown("Atlas", view.density("plain average", template)),
            *(Shown("Maps", view.map(name, template)) for name in list(maps)[1:]),
        ]
        overlays = [Shown("Labels", view.labels("labels", labels, {}))]
        viewed = viewer(view, [], images, worst.sorted(), of=subjects, overlays=overlays)
        pictures = {
            title: np.log1p(template[0] / OFFSET)
            for title in ("template", "plain average", *names[:3])
        }
        grids = {name: np.zeros((3, *shape), np.float32) for name in names[:3]}
        about = {
            "n_subjects": subjects, "created": "", "training_space": "", "normalisation": "none",
            "fields": {"smallest_jacobian": 0.4, "folded": 0, "mean_displacement_rms_voxels": 0.1,
                       "displacement_rms_voxels": 2.0},
            "cohort": {"rejected": [{"subject": name, "reason": "is empty"} for name in names]},
            "settings": {}, "versions": {},
        }  # fmt: skip
        return quality_page(about, pictures, maps, rows, grids, [], viewed)

    return clock.time("rest of the page", page)


def open_in_browser(page: Path, picture: Path) -> dict[str, float]:
    """Seconds until the page is there, until it shows the template, and another subject."""
    start = time.monotonic()
    with Browser(page) as browser:
        loaded = time.monotonic() - start
        ready = "document.getElementById('viewer-frame').dataset.ready"
        browser.until(ready)
        shown = time.monotonic() - start
        start = time.monotonic()
        browser.click("#subjects button")
        browser.until(f"{ready} > 1")
        switched = time.monotonic() - start
        browser.choose("#viewer-overlay", "labels")
        browser.until(f"{ready} > 2")
        browser.picture(picture)
        if browser.events.errors:
            raise RuntimeError(f"{page}: {browser.events.errors[0]}")
    return {"loaded, s": loaded, "viewer shows the template, s": shown,
            "another subject, s": switched}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, open, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=1000)
    parser.add_argument("--shape", type=int, nargs=3, default=FULL)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    page, clock = options.work / "quality.html", Cost()
    page.write_text(build(tuple(options.shape), options.subjects, clock), encoding="utf-8")
    found = {
        "CPU-s for each subject in the viewer": clock.seconds["subjects"],
        "CPU-s to choose the subjects": clock.seconds["others"],
        "CPU-s for the rest of the page": clock.seconds["rest of the page"],
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "page, MB": page.stat().st_size / 1e6,
        **open_in_browser(page, options.work / "quality.png"),
    }
    for name, value in found.items():
        print(f"{name:45} {value:.2f}", flush=True)


if __name__ == "__main__":
    main()
