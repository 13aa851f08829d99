"""Endings of image and tractogram files: which are read, and which belong to other programs.

Case doesn't matter: some systems write ``.NII.GZ``.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "FOREIGN",
    "FOREIGN_IMAGES",
    "FOREIGN_TRACTOGRAMS",
    "IMAGES",
    "TRACTOGRAMS",
    "ending_of",
    "is_image_name",
    "is_tractogram_name",
    "stem_of",
]

IMAGES = (".nii.gz", ".nii", ".mgz", ".mgh.gz", ".mgh", ".img.gz", ".img", ".hdr.gz", ".hdr")
TRACTOGRAMS = (
    ".trk.gz", ".trk", ".tck.gz", ".tck", ".trx", ".vtk.gz", ".vtk", ".fib.gz", ".fib",
)  # fmt: skip
FOREIGN_IMAGES = {
    ".mif": "an MRtrix image; mrconvert makes a .nii.gz of it",
    ".mif.gz": "an MRtrix image; mrconvert makes a .nii.gz of it",
    ".mih": "an MRtrix image; mrconvert makes a .nii.gz of it",
    ".head": "an AFNI image; 3dAFNItoNIFTI makes a .nii of it",
    ".brik": "an AFNI image; 3dAFNItoNIFTI makes a .nii of it",
    ".brik.gz": "an AFNI image; 3dAFNItoNIFTI makes a .nii of it",
    ".nrrd": "an NRRD image; 3D Slicer or SimpleITK makes a .nii.gz of it",
    ".nhdr": "an NRRD image; 3D Slicer or SimpleITK makes a .nii.gz of it",
    ".mha": "a MetaImage; SimpleITK makes a .nii.gz of it",
    ".mhd": "a MetaImage; SimpleITK makes a .nii.gz of it",
    ".mnc": "a MINC image; mnc2nii makes a .nii of it",
    ".nii.bz2": "a bzip2 file; pack it with gzip instead",
    ".nii.xz": "an xz file; pack it with gzip instead",
    ".nii.zst": "a Zstandard file; pack it with gzip instead",
    ".nii.zip": "a zip file; pack it with gzip instead",
}
"""By their ending, files of other programs that may be a map, and what to do."""
FOREIGN_TRACTOGRAMS = {
    ".vtp": "an XML VTK file; save it as legacy .vtk, or as .trk",
    ".tt.gz": "a DSI Studio file; export the tracts as .trk.gz or .tck",
    ".fz": "a DSI Studio file; export the tracts as .trk.gz or .tck",
    ".pdb": "a CINCH file; save the tracts as .trk or .tck",
    ".dpy": "a dipy file; save the tracts as .trk or .trx",
    ".xfib.gz": "a Camino file; save the tracts as legacy .vtk",
}
"""Likewise, that may be a tractogram."""
FOREIGN = FOREIGN_IMAGES | FOREIGN_TRACTOGRAMS

_LONGEST_FIRST = sorted((*IMAGES, *TRACTOGRAMS, *FOREIGN), key=len, reverse=True)


def ending_of(path: str | Path) -> str:
    """The ending of a name in lower case; empty for any other kind of file.

    Example:
        >>> ending_of("sub-01.NII.GZ"), ending_of("notes.txt")
        ('.nii.gz', '')
    """
    name = Path(path).name.lower()
    return next((one for one in _LONGEST_FIRST if name.endswith(one) and name != one), "")


def stem_of(path: str | Path) -> str:
    """A file's name without that ending.

    Example:
        >>> stem_of("a/sub-01.nii.gz"), stem_of("notes.txt")
        ('sub-01', 'notes.txt')
    """
    name = Path(path).name
    return name[: len(name) - len(ending_of(name))]


def is_image_name(path: str | Path) -> bool:
    """Whether a file is named like an image that is read here."""
    return ending_of(path) in IMAGES


def is_tractogram_name(path: str | Path) -> bool:
    """Whether a file is named like a tractogram that is read here."""
    return ending_of(path) in TRACTOGRAMS
