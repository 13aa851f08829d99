"""The store: its order of channels, its references, and what it refuses."""

from __future__ import annotations

import pickle

import h5py
import numpy as np
import pytest
from small_pairs import SHAPE, copied, sections

from scripts.errors import CohortError
from scripts.supervised.loading import check_pairs
from scripts.supervised.pair_store import PairStore, write_store
from scripts.supervised.reference_volume import ReferenceVolume, read_reference_volume


def test_columns_come_first_in_the_file_and_axes_in_memory(tmp_path):
    field = np.zeros((2, *SHAPE), np.float32)
    field[0], field[1] = 1.5, -2.0  # rows, columns
    with write_store(tmp_path / "a.h5", 1, SHAPE) as writer:
        image = sections(1)[0]
        writer.write(0, image, image, field, -field, p=25, image_id=7, dataset_id=3)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["deltas_xy"].shape == (1, *SHAPE, 2)
        assert file["deltas_xy"].dtype == np.float32
        assert file["deltas_xy"].chunks == (1, *SHAPE, 2)
        np.testing.assert_array_equal(file["deltas_xy"][0, ..., 0], -2.0)
        np.testing.assert_array_equal(file["deltas_xy"][0, ..., 1], 1.5)
    store = PairStore(tmp_path / "a.h5")
    np.testing.assert_array_equal(store.read(0).field, field)
    np.testing.assert_array_equal(store.read(0).inverse, -field)
    assert [int(store.numbers[name][0]) for name in ("p", "image_id", "dataset_id")] == [25, 7, 3]


def test_a_store_of_volumes_keeps_channels_along_the_axes(make_store):
    store = PairStore(make_store(shape=(20, 18, 24), elastic={"rms": 0.5, "width": 6.0}, count=2))
    with h5py.File(store.path) as file:
        raw = file["deltas"][1]
    np.testing.assert_array_equal(store.read(1).field, np.moveaxis(raw, -1, 0))


def test_pairs_are_read_in_any_order_and_again_and_by_other_processes(make_store):
    store = PairStore(make_store())
    there = [store.read(i).moving for i in (3, 0, 3, 5)]
    np.testing.assert_array_equal(there[0], there[2])
    other = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(other.read(5).moving, there[3])


def test_half_precision_is_read(make_store, tmp_path):
    store = make_store()
    with h5py.File(store) as file:
        halves = {name: file[name][...].astype(np.float16) for name in ("deltas_xy",)}
    read = PairStore(copied(store, tmp_path / "half.h5", **halves))
    assert read.half
    assert read.read(0).field.dtype == np.float32
    np.testing.assert_allclose(read.read(0).field, PairStore(store).read(0).field, atol=0.01)


def test_references_are_found_by_position_and_the_last_one_stands_for_those_beyond():
    volume = ReferenceVolume(np.arange(5, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2),
                             "v", step=25)  # fmt: skip
    assert [volume.at(p)[0, 0] for p in (0, 24, 25, 99, 100, 124, 5000)] == [0, 0, 1, 3, 4, 4, 4]
    with pytest.raises(CohortError, match="no section at p = -1"):
        volume.at(-1)


def test_a_store_without_ref_takes_a_volume_by_setting_or_its_own(make_store, tmp_path):
    store = make_store()
    images = sections()
    with h5py.File(store) as file:
        wanted = images[file["p"][2] // 25]
        np.testing.assert_array_equal(file["ref"][2], wanted)
    bare = copied(store, tmp_path / "bare.h5", without=("ref",))
    with pytest.raises(CohortError, match=r"bare\.h5: has neither ref nor reference"):
        PairStore(bare).require_references()
    np.savez(tmp_path / "volume.npz", images=images)
    volume = read_reference_volume(tmp_path / "volume.npz", 0, 25)
    np.testing.assert_array_equal(PairStore(bare, volume).read(2).reference, wanted)
    own = copied(store, tmp_path / "own.h5", without=("ref",), reference=images)
    np.testing.assert_array_equal(PairStore(own).read(2).reference, wanted)
    wrong = ReferenceVolume(images[:, :20], "volume.npz")
    with pytest.raises(CohortError, match=r"sections have shape \(20, 56\), the images of .*bare"):
        PairStore(bare, wrong)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda f: f.pop("img"), r"has no dataset img; has dataset_id, deltas_xy"),
        (lambda f: f.pop("inv_deltas_xy"),
         r"has no dataset inv_deltas_xy, of shape \(6, 40, 56, 2\)"),
        (lambda f: f.pop("dataset_id"), r"has no dataset dataset_id, of shape \(6,\)"),
        (lambda f: f.update(deltas_xy=f["deltas_xy"][:4]),
         r"deltas_xy has shape \(4, 40, 56, 2\); must be \(6, 40, 56, 2\)"),
        (lambda f: f.update(deltas_xy=f["deltas_xy"][..., :1]),
         r"deltas_xy has shape \(6, 40, 56, 1\)"),
        (lambda f: f.update(p=f["p"][:2]), r"p has shape \(2,\); must be \(6,\)"),
        (lambda f: f.update({k: v[:0] for k, v in f.items()}), "must have at least one pair"),
        (lambda f: f.update(img=f["img"].astype(np.float32)), "img has type float32"),
        (lambda f: f.update(deltas_xy=f["deltas_xy"].astype(np.int64)), "deltas_xy has type int"),
        (lambda f: f.update(ref=f["ref"][:, :20]), r"ref has shape \(6, 20, 56\)"),
        (lambda f: f["deltas_xy"].__setitem__((4, 3, 3, 0), np.nan),
         r"deltas_xy\[4\] of shape \(2, 40, 56\) has 1 values that aren't finite"),
        (lambda f: f["inv_deltas_xy"].__setitem__((2, 3, 3, 0), 70.0),
         r"inv_deltas_xy\[2\] moves by up to 70 pixels, more than an image of 40 x 56 has"),
    ],
)  # fmt: skip
def test_what_is_no_store_is_refused_by_dataset_and_shape(make_store, tmp_path, changed, message):
    with h5py.File(make_store()) as file:
        content = {name: file[name][...] for name in file}
    changed(content)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for name, value in content.items():
            file[name] = value
    with pytest.raises(CohortError, match=message) as raised:
        store = PairStore(tmp_path / "bad.h5")
        check_pairs(store, range(len(store)))
    assert "bad.h5: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_hdf5_or_cut_off_are_refused(make_store, tmp_path):
    store = make_store()
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "cut.h5").write_bytes(store.read_bytes()[:100_000])
    for name in ("text.h5", "cut.h5"):
        with pytest.raises(CohortError, match=rf"{name}: can't be read as HDF5"):
            check_pairs(PairStore(tmp_path / name), range(6))
    with pytest.raises(CohortError, match="No such file"):
        PairStore(tmp_path / "none.h5")


def test_links_out_of_the_file_are_not_followed(make_store, tmp_path):
    store = make_store()
    linked = copied(store, tmp_path / "linked.h5", without=("img",))
    with h5py.File(linked, "a") as file:
        file["img"] = h5py.ExternalLink(str(store), "img")
    with pytest.raises(CohortError, match="img leads to another file"):
        PairStore(linked)
    outside = copied(store, tmp_path / "outside.h5", without=("img",))
    (tmp_path / "raw").write_bytes(bytes(6 * 40 * 56))
    with h5py.File(outside, "a") as file:
        file.create_dataset("img", (6, *SHAPE), "u1", external=[(tmp_path / "raw", 0, 6 * 40 * 56)])
    with pytest.raises(CohortError, match="img is stored in other files"):
        PairStore(outside)
    roundabout = copied(store, tmp_path / "roundabout.h5", without=("img",))
    with h5py.File(roundabout, "a") as file:
        file["there"] = h5py.ExternalLink(str(store), "/")
        file["img"] = h5py.SoftLink("/there/img")
    with pytest.raises(CohortError, match="img is stored in other files"):
        PairStore(roundabout)


@pytest.mark.parametrize("count", [7, 10**6, 10**13])
def test_pairs_that_are_only_claimed_are_refused(make_store, tmp_path, count):
    claimed = copied(make_store(), tmp_path / "claimed.h5", without=("img",))
    with h5py.File(claimed, "a") as file:
        file.create_dataset("img", (count, *SHAPE), "u1", chunks=(1, *SHAPE))
    with pytest.raises(CohortError, match=r"img claims .* the file doesn.t hold"):
        PairStore(claimed)


@pytest.mark.parametrize("way", ["written to", "replaced"])
def test_a_store_that_changes_while_it_is_read_is_reported(make_store, tmp_path, way):
    store = PairStore(make_store())
    store.read(0)
    store.check_unchanged()
    other = copied(store.path, tmp_path / "other.h5", p=np.zeros(6, np.int64) + 7)
    if way == "replaced":
        other.replace(store.path)
    else:
        store.close()
        store.path.write_bytes(other.read_bytes())
    with pytest.raises(CohortError, match="changed while it was in use"):
        store.check_unchanged()


def flipped(fields):
    return np.ascontiguousarray(fields[..., ::-1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flipped, "only with its channels swapped:"),
        (np.negative, "only with its sign negated:"),
        (lambda f: -flipped(f), "only with its channels swapped and its sign negated:"),
    ],
)
def test_fields_that_fit_only_otherwise_are_refused_with_the_way(
    make_store, tmp_path, change, words
):
    store = make_store(count=8, elastic={"rms": 0.5}, affine={"rotation": 25.0, "translation": 5.0})
    check_pairs(PairStore(store), range(8))
    with h5py.File(store) as file:
        changed = {name: change(file[name][...]) for name in ("deltas_xy", "inv_deltas_xy")}
    with pytest.raises(CohortError, match=words):
        check_pairs(PairStore(copied(store, tmp_path / "bad.h5", **changed)), range(8))


def test_both_fields_exchanged_are_refused(make_store, tmp_path):
    store = make_store(count=8, elastic={"rms": 0.5}, affine={"rotation": 25.0, "translation": 5.0})
    with h5py.File(store) as file:
        fields = {"deltas_xy": file["inv_deltas_xy"][...], "inv_deltas_xy": file["deltas_xy"][...]}
    with pytest.raises(CohortError, match=r"both fields exchanged|sign negated"):
        check_pairs(PairStore(copied(store, tmp_path / "bad.h5", **fields)), range(8))


def test_still_fields_and_inverted_contrast_pass(make_store, tmp_path):
    store = make_store()
    with h5py.File(store) as file:
        zero = {name: np.zeros_like(file[name][...]) for name in ("deltas_xy", "inv_deltas_xy")}
        inverted = 255 - file["ref"][...]
    check_pairs(PairStore(copied(store, tmp_path / "zero.h5", **zero)), range(6))
    check_pairs(PairStore(copied(store, tmp_path / "inverted.h5", ref=inverted)), range(6))
