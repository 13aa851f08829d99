"""Registration of two sections by other libraries, each as its users call it.

Each takes two images ``(rows, columns)`` float32, 0..1, and gives the map of ``(row, column, 1)``
from the first to the second. They are installed beside the bundle:

    pip install pystackreg SimpleITK opencv-python-headless
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["PEERS", "Register"]

Register = Callable[[np.ndarray, np.ndarray], np.ndarray]
_SWAP = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def _of_xy(matrix: np.ndarray) -> np.ndarray:
    """A map of ``(x, y, 1)`` as one of ``(row, column, 1)``."""
    whole = np.eye(3)
    whole[: len(matrix)] = matrix
    return _SWAP @ whole @ _SWAP


def _pystackreg(kind: str) -> Register:
    def register(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
        from pystackreg import StackReg

        method = StackReg(getattr(StackReg, kind))
        return _of_xy(method.register(fixed.astype(np.float64), moving.astype(np.float64)))

    return register


def _simpleitk(affine: bool) -> Register:
    def register(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        images = [sitk.GetImageFromArray(one.astype(np.float32)) for one in (fixed, moving)]
        kind = sitk.AffineTransform(2) if affine else sitk.Euler2DTransform()
        start = sitk.CenteredTransformInitializer(
            *images, kind, sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.2, seed=1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([8, 4, 2, 1])
        method.SetSmoothingSigmasPerLevel([4, 2, 1, 0])
        method.SetInitialTransform(start, inPlace=False)
        result = method.Execute(*images)
        origin = np.array(result.TransformPoint((0.0, 0.0)))
        columns = [np.array(result.TransformPoint(p)) - origin for p in ((1.0, 0.0), (0.0, 1.0))]
        return _of_xy(np.column_stack([*columns, origin]))

    return register


def _bytes(image: np.ndarray) -> np.ndarray:
    return (image * 255).clip(0, 255).astype(np.uint8)


def _ecc(affine: bool, from_phase: bool = False) -> Register:
    def register(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
        import cv2

        cv2.setNumThreads(1)
        start = np.eye(2, 3, dtype=np.float32)
        if from_phase:
            small = [cv2.resize(one, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
                     for one in (fixed, moving)]  # fmt: skip
            window = cv2.createHanningWindow(small[0].shape[::-1], cv2.CV_32F)
            shift, _ = cv2.phaseCorrelate(*small, window)
            start[:, 2] = np.array(shift) * 8
        motion = cv2.MOTION_AFFINE if affine else cv2.MOTION_EUCLIDEAN
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
        _, result = cv2.findTransformECC(fixed, moving, start, motion, criteria, None, 5)
        return _of_xy(result.astype(np.float64))

    return register


def _orb(affine: bool) -> Register:
    def register(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
        import cv2

        cv2.setNumThreads(1)
        orb = cv2.ORB_create(2000)
        (keys, marks), (others, other_marks) = (
            orb.detectAndCompute(_bytes(one), None) for one in (fixed, moving)
        )
        matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(marks, other_marks)
        a = np.array([keys[m.queryIdx].pt for m in matches], dtype=np.float32)
        b = np.array([others[m.trainIdx].pt for m in matches], dtype=np.float32)
        estimate = cv2.estimateAffine2D if affine else cv2.estimateAffinePartial2D
        result, _ = estimate(a, b, method=cv2.RANSAC, ransacReprojThreshold=3.0)
        return _of_xy(result)

    return register


def _adam_loop(affine: bool) -> Register:
    """The usual loop: Adam on the entries of ``affine_grid``, mean squares of correlation."""

    def register(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
        images = [torch.from_numpy(one)[None, None] for one in (fixed, moving)]
        free = torch.zeros(6 if affine else 3, requires_grad=True)

        def theta() -> torch.Tensor:
            if affine:
                return torch.eye(2, 3) + free.view(2, 3)
            c, s = torch.cos(free[0]), torch.sin(free[0])
            ratio = fixed.shape[0] / fixed.shape[1]
            rows = torch.stack([c, -s * ratio, free[1], s / ratio, c, free[2]])
            return rows.view(2, 3)

        for factor, rate in ((8, 1e-3), (4, 1e-3), (2, 5e-4), (1, 1e-4)):
            f, m = (F.avg_pool2d(one, factor) if factor > 1 else one for one in images)
            optimizer = torch.optim.Adam([free], lr=rate)
            recent: list[float] = []
            for _ in range(300):
                grid = F.affine_grid(theta()[None], list(f.shape), align_corners=False)
                moved = F.grid_sample(m, grid, padding_mode="border", align_corners=False)
                a, b = f - f.mean(), moved - moved.mean()
                loss = 1 - (a * b).sum() / (a.norm() * b.norm() + 1e-9)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recent = [*recent[-14:], float(loss.detach())]
                if len(recent) == 15 and max(recent) - min(recent) < 1e-5:
                    break
        rows, columns = fixed.shape
        scale = np.array([[columns / 2, 0, (columns - 1) / 2], [0, rows / 2, (rows - 1) / 2],
                          [0, 0, 1]])  # fmt: skip
        whole = np.eye(3)
        whole[:2] = theta().detach().double().numpy()
        return _of_xy((scale @ whole @ np.linalg.inv(scale))[:2])

    return register


PEERS: dict[str, dict[str, Register]] = {
    "rigid": {
        "pystackreg rigid": _pystackreg("RIGID_BODY"),
        "SimpleITK Mattes": _simpleitk(False),
        "OpenCV ECC": _ecc(False),
        "OpenCV ORB": _orb(False),
        "Adam loop": _adam_loop(False),
    },
    "affine": {
        "pystackreg affine": _pystackreg("AFFINE"),
        "SimpleITK Mattes": _simpleitk(True),
        "OpenCV ECC": _ecc(True),
        "OpenCV ECC from phase correlation": _ecc(True, True),
        "OpenCV ORB": _orb(True),
        "Adam loop": _adam_loop(True),
    },
}
