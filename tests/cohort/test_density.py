"""One map: what is read exactly, what is refused and why, and what it is divided by."""

import gzip
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort import (
    DensityError,
    check_density,
    density_divisor,
    load_density,
    read_density,
    waytotal_file,
)
from scripts.cohort.density import CleaningRule, clean_density, zeroed
from scripts.errors import CohortError


def save(path: Path, data: np.ndarray, kind=nib.Nifti1Image, **header: object) -> Path:
    image = kind(data, np.diag([2.0, 2, 2, 1]))
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    "stored, shape",
    [
        ((4, 5, 6), (4, 5, 6)),
        ((4, 5, 6, 1), (4, 5, 6)),
        ((4, 5, 6, 1, 1), (4, 5, 6)),
        ((4, 5, 1), (4, 5)),
        ((4, 5), (4, 5)),
        ((1, 5, 6), (1, 5, 6)),
        ((4, 1, 6), (4, 1, 6)),
    ],
)
def test_singleton_axes(tmp_path, stored, shape):
    values = np.arange(np.prod(stored), dtype=np.float32).reshape(stored)
    data, grid = read_density(save(tmp_path / "a.nii.gz", values))
    assert data.shape == grid.shape == shape
    assert np.array_equal(data, values.reshape(shape))


@pytest.mark.parametrize("stored", [(4, 5, 6, 2), (4, 5, 1, 2), (4, 5, 6, 1, 3), (7,)])
def test_other_shapes_are_refused(tmp_path, stored):
    path = save(tmp_path / "a.nii.gz", np.ones(stored, dtype=np.float32))
    with pytest.raises(CohortError, match=r"a\.nii\.gz: has shape .* must be \(X, Y, Z\)"):
        read_density(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_byte_order_and_type(tmp_path, kind, order, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    path = tmp_path / "a.nii"
    nib.save(kind(values, np.eye(4), header), path)
    assert path.read_bytes()[0] == (0 if order == ">" else kind.header_class.sizeof_hdr % 256)
    data, _ = read_density(path)
    assert data.dtype == np.float64
    assert np.array_equal(data, values)


@pytest.mark.parametrize(
    "slope, intercept, expected", [(0.5, 0, 0.5), (2, 1, 2), (0, 0, 1), (float("nan"), 0, 1)]
)
def test_scaling_of_the_header(tmp_path, slope, intercept, expected):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = save(tmp_path / "a.nii", values)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, intercept], dtype="<f4").tobytes()
    path.write_bytes(bytes(raw))
    data, _ = read_density(path)
    assert np.array_equal(data, values * expected + intercept)


def test_counts_beyond_float32_are_exact(tmp_path):
    values = np.full((2, 2, 2), 2**24 + 1, dtype=np.int32)
    data, _ = read_density(save(tmp_path / "a.nii.gz", values))
    assert (data == 2**24 + 1).all()


def test_header_affine_and_hash_are_kept(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.ones((2, 3, 4), dtype=np.float32), xyzt_units=2)
    loaded = load_density(path)
    assert loaded.grid.header["xyzt_units"] == 2
    assert np.array_equal(loaded.grid.affine, np.diag([2, 2, 2, 1]))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.remarks == ()


def good_bytes(tmp_path: Path) -> bytes:
    values = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    return save(tmp_path / "good.nii", values).read_bytes()


def changed(raw: bytes, offset: int, value: bytes) -> bytes:
    return raw[:offset] + value + raw[offset + len(value) :]


DAMAGE = {
    "truncated gzip": (lambda raw: gzip.compress(raw)[:-100], "damaged gzip"),
    "gzip without its end": (lambda raw: gzip.compress(raw)[:-4], "damaged gzip"),
    "flipped byte in gzip": (lambda raw: changed(gzip.compress(raw), 500, b"\0\0\0"), "gzip"),
    "truncated": (lambda raw: raw[:-1], "truncated, 2047 bytes of voxels, expected 2048"),
    "header alone": (lambda raw: raw[:348], "truncated"),
    "half a header": (lambda raw: raw[:200], "not a NIfTI file"),
    "empty file": (lambda raw: b"", "not a NIfTI file"),
    "text": (lambda raw: b"fdt_paths\n" * 100, "not a NIfTI file"),
    "zeros": (lambda raw: bytes(2400), "not a NIfTI file"),
    "unknown type": (lambda raw: changed(raw, 70, b"\x07\x00"), "data code 7"),
    "huge dimensions": (lambda raw: changed(raw, 42, b"\xff\x7f" * 3), "truncated"),
    "no dimension": (lambda raw: changed(raw, 40, b"\0\0"), "no voxel"),
    "negative dimension": (lambda raw: changed(raw, 42, b"\xff\xff"), "no voxel"),
    "affine of zeros": (lambda raw: changed(raw, 280, bytes(48)), "affine that can't be inverted"),
    "affine not finite": (
        lambda raw: changed(raw, 280, b"\x00\x00\xc0\x7f"),
        "affine that can't be inverted",
    ),
    "infinite data offset": (lambda raw: changed(raw, 108, b"\0\0\x80\x7f"), "can't be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_with_their_name(tmp_path, damage):
    spoil, reason = DAMAGE[damage]
    path = tmp_path / "fdt_paths.nii.gz"
    path.write_bytes(spoil(good_bytes(tmp_path)))
    with pytest.raises(DensityError) as caught:
        read_density(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_values_that_are_no_real_numbers(tmp_path, dtype):
    path = save(tmp_path / "a.nii.gz", np.ones((2, 2, 2), dtype=dtype))
    with pytest.raises(CohortError, match="not real numbers"):
        read_density(path)


def test_missing_file_folder_and_broken_link(tmp_path):
    link = tmp_path / "annexed.nii.gz"
    link.symlink_to(tmp_path / "nowhere")
    for path, reason in [
        (tmp_path / "none.nii.gz", "No such file"),
        (tmp_path, "Is a directory"),
        (link, "is a broken link"),
    ]:
        with pytest.raises(CohortError, match=reason):
            read_density(path)


def test_sform_and_qform_that_disagree_are_remarked_upon(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.float32), None)
    image.set_sform(np.diag([2.0, 2, 2, 1]), 4)
    image.set_qform(np.diag([-2.0, 2, 2, 1]), 1)
    nib.save(image, tmp_path / "a.nii.gz")
    loaded = load_density(tmp_path / "a.nii.gz")
    assert np.array_equal(loaded.grid.affine, np.diag([2, 2, 2, 1]))
    assert len(loaded.remarks) == 1
    assert "sform and qform disagree; the sform is used" in loaded.remarks[0]


def test_an_impossible_qform_is_remarked_upon(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.float32), None)
    image.set_sform(np.diag([2.0, 2, 2, 1]), 4)
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[256:268] = np.ones(3, dtype="<f4").tobytes()  # a quaternion longer than 1
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    loaded = load_density(tmp_path / "a.nii")
    assert "its qform is damaged" in loaded.remarks[0]


def test_a_rounded_qform_agrees(tmp_path):
    angle = 0.3
    affine = np.eye(4)
    affine[:2, :2] = 1.25 * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    image = nib.Nifti1Image(np.ones((90, 90, 90), dtype=np.uint8), affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    nib.save(image, tmp_path / "a.nii.gz")
    assert load_density(tmp_path / "a.nii.gz").remarks == ()


@pytest.mark.parametrize(
    "value, reason",
    [
        (np.nan, "is not finite in 1 voxels"),
        (np.inf, "is not finite in 1 voxels"),
        (-np.inf, "is not finite in 1 voxels"),
        (-1e-30, r"has negative density in 1 voxels \(down to -1e-30\)"),
    ],
)
def test_values_that_are_no_density(value, reason):
    data = np.ones((3, 3, 3))
    data[1, 1, 1] = value
    rule = CleaningRule("refuse", "refuse", "c#nan", "c#negative")
    with pytest.raises(DensityError, match=reason) as caught:
        clean_density(Path("x.nii.gz"), data, rule)
    option = "c#negative" if value == -1e-30 else "c#nan"
    assert np.isinf(value) or f"--{option} zero" in caught.value.reason


def test_values_that_are_no_density_are_read_as_0_where_that_is_asked_for():
    data = np.ones((3, 3, 3))
    data[0, 0, 0], data[1, 1, 1], data[2, 2, 2] = np.nan, -1e-12, -np.inf
    rule = CleaningRule("zero", "zero")
    with pytest.raises(DensityError, match="infinite"):  # nobody can say what was meant
        clean_density(Path("x.nii.gz"), data, rule)
    data[2, 2, 2] = 1
    result, kinds, remarks = clean_density(Path("x.nii.gz"), data, rule)
    assert result.sum() == 25 and result[0, 0, 0] == result[1, 1, 1] == 0
    assert kinds == ("nan", "negative") and len(remarks) == 2
    np.testing.assert_array_equal(result, zeroed(data, kinds))
    data[1, 1, 1] = -5
    assert "is this a density map?" in clean_density(Path("x.nii.gz"), data, rule)[2][-1]


def test_empty_maps():
    with pytest.raises(DensityError, match="is empty"):
        check_density(Path("x.nii.gz"), np.array([[0.0, -0.0]]))
    check_density(Path("x.nii.gz"), np.zeros((3, 3)), may_be_empty=True)


# -------------------------------------------------------------------------------------- divisors


@pytest.mark.parametrize(
    "method, divisor",
    [("none", 1.0), ("max", 4.0), ("streamline_density", 10.0), ("waytotal", 7.0)],
)
def test_divisors(tmp_path, method, divisor):
    (tmp_path / "waytotal").write_text("7\n")
    data = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert density_divisor(method, tmp_path / "fdt_paths.nii.gz", data) == divisor


def test_only_waytotal_reads_a_file(tmp_path):
    for method in ("none", "max", "streamline_density"):
        assert density_divisor(method, tmp_path / "a.nii.gz", np.ones((2, 2))) > 0


@pytest.mark.parametrize(
    "text, total",
    [
        ("5000\n", 5000),
        ("5000", 5000),
        ("5000  \r\n", 5000),
        ("100\n200\n300\n", 600),
        ("100 200\n\n300", 600),
        ("1.5e3", 1500),
        ("0\n40\n", 40),
    ],
)
def test_waytotal_sums_its_lines(tmp_path, text, total):
    (tmp_path / "waytotal").write_text(text)
    assert density_divisor("waytotal", tmp_path / "a.nii.gz", np.ones(1)) == total


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"0\n", "is zero"),
        (b"0\n0\n", "is zero"),
        (b"", "contains no number"),
        (b" \n", "contains no number"),
        (b"many\n", "contains 'many', not a number"),
        (b"100\nx\n", "contains 'x'"),
        (b"1,000\n", "contains '1,000'"),
        (b"1_000\n", "contains '1_000'"),
        (b"-5\n10\n", "contains '-5'"),
        (b"nan\n", "contains 'nan'"),
        (b"inf\n", "contains 'inf'"),
        (b"1e308 1e308\n", "sums to infinity"),
        (b"\x1f\x8b\x08\xff", "can't be read"),
        (None, "is missing .*learned_atlas#cohort#normalisation"),
    ],
)
def test_waytotals_that_are_none(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "waytotal").write_bytes(content)
    setting = "learned_atlas#cohort#normalisation"
    with pytest.raises(DensityError, match=reason) as caught:
        density_divisor("waytotal", tmp_path / "a.nii.gz", np.ones(1), setting)
    assert caught.value.path == tmp_path / "waytotal"


def test_waytotal_that_is_a_folder(tmp_path):
    (tmp_path / "waytotal").mkdir()
    with pytest.raises(DensityError, match="can't be read: Is a directory"):
        density_divisor("waytotal", tmp_path / "a.nii.gz", np.ones(1))


@pytest.mark.parametrize(
    "files, name, chosen",
    [
        (["waytotal", "sum_waytotal"], "sum_density.nii.gz", "sum_waytotal"),
        (["waytotal", "sum_waytotal"], "density.nii.gz", "waytotal"),
        (["waytotal", "sub-1_waytotal"], "sub-1.nii", "sub-1_waytotal"),
        (["waytotal", "sub-1.waytotal"], "sub-1.nii.gz", "sub-1.waytotal"),
        ([], "sub-1.nii.gz", "waytotal"),
    ],
)
def test_which_waytotal(tmp_path, files, name, chosen):
    for file in files:
        (tmp_path / file).write_text("1")
    assert waytotal_file(tmp_path / name) == tmp_path / chosen


def test_xtract_density_norm_is_not_divided_twice(tmp_path):
    (tmp_path / "waytotal").write_text("1000")
    assert density_divisor("waytotal", tmp_path / "densityNorm.nii.gz", np.ones(1)) == 1.0
    assert density_divisor("waytotal", tmp_path / "density.nii.gz", np.ones(1)) == 1000.0


@pytest.mark.parametrize("method", ["max", "streamline_density"])
@pytest.mark.parametrize("data", [np.zeros(3), np.full(3, 1.7e308) * np.array([1, 1, np.inf])])
def test_divisors_are_finite_and_positive(method, data):
    with pytest.raises(CohortError, match=f"can't be divided by its {method}"):
        density_divisor(method, Path("a.nii.gz"), data)


def test_an_unknown_method_is_a_bug():
    with pytest.raises(ValueError, match="median"):
        density_divisor("median", Path("a.nii.gz"), np.ones(1))


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # a test run by root could read anything
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(CohortError, match="can't be read: Permission denied"):
        read_density(tmp_path / "a.nii.gz")
