"""A MONAI reader of NIfTI files that opens them as the rest of the bundle does, with hashes."""

from __future__ import annotations

import copy
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.utils import ensure_tuple

from scripts.errors import CohortError
from scripts.runtime.file_names import is_image_name
from scripts.spatial.grid import Grid
from scripts.spatial.image_files import open_image_file

__all__ = ["HASHES", "MapsReader"]

_LOOSE = 0.5  # voxels: the largest grid_tolerance of a cohort
HASHES = "sha256"
"""Of an image's metadata: its files, and the hashes of their bytes."""


class _HashedImage:
    """What a file held, and the hash of its bytes; or why it can't be read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.error: CohortError | None = None
        try:
            opened = open_image_file(path)
        except CohortError as error:
            self.error = error
            return
        self.image, self.sha256 = opened.image, opened.sha256


class MapsReader(NibabelReader):
    """A MONAI reader of NIfTI files that opens them as the rest of the bundle does.

    So training sees what the inspection of a cohort saw: every format, unit and form of header, by
    the one rule of `scripts.spatial.orientation`. Maps of one call that are stored in another axis
    order than the first are reordered to its order.

    `NibabelReader` keeps the names of the files it read last in itself and pairs them with the
    images it is asked to unpack next. Where threads fill a cache through one reader, a subject of
    several maps then loses maps to another thread's shorter list (MONAI 1.6.1). Here each call
    takes the names from its images. Each file is read once, and its hash is recorded.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Whether all the names are those of images that are read here."""
        return all(is_image_name(name) for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Images whose voxels are in memory: what is unpacked later are the bytes of the hash.

        A file that can't be read is reported by `get_data`: MONAI drops errors raised here.

        Args:
            data: a file, or several.
            kwargs: of nibabel's loader; without effect.
        """
        images = [_HashedImage(str(name)) for name in ensure_tuple(data)]
        return images if len(images) > 1 else images[0]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The images' values, stacked as channels, and their metadata.

        ``meta[HASHES]`` lists each file and the SHA-256 of its bytes.

        Raises:
            CohortError: a file couldn't be read, or the images have different shapes.
        """
        reader, read = copy.copy(self), ensure_tuple(img)
        reader.filenames = tuple(one.path for one in read)
        for one in read:
            if one.error is not None:
                raise one.error
        first = read[0].image
        images = (first, *(_in_order_of(first, one.image) for one in read[1:]))
        for one, image in zip(read, images, strict=True):
            if image.shape != first.shape:
                raise CohortError(
                    f"{one.path}: has shape {image.shape}, {read[0].path} {first.shape}; the maps "
                    "of a subject must lie on one grid"
                )
        values, meta = NibabelReader.get_data(reader, images)
        meta[HASHES] = [[one.path, one.sha256] for one in read]
        return values, meta


def _in_order_of(first: nib.Nifti1Image, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """An image on the first one's grid, exactly; as it is if it lies on another grid."""
    wanted, stored = (
        Grid(tuple(one.shape[:3]), np.asarray(one.affine), one.header) for one in (first, image)
    )
    order = stored.order_onto(wanted, _LOOSE)
    if order is None or len(image.shape) != 3:
        return image
    values = order.of_array(np.asanyarray(image.dataobj))
    return nib.Nifti1Image(values, first.affine, first.header)
