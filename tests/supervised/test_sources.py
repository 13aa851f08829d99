"""Sources of pairs: every kind of image, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from small_pairs import sections

from scripts.cohort import DensityMap, Subject
from scripts.cohort.density import subject_density
from scripts.errors import CohortError, ConfigurationError, StorageError
from scripts.runtime.storage import file_hash
from scripts.settings.make_pairs import MakePairsConfig
from scripts.spatial.fields import field_names, read_field, write_field
from scripts.supervised.loading import check_pairs
from scripts.supervised.making import PairMaker
from scripts.supervised.pair_store import PairStore
from scripts.supervised.sources import chosen, open_source, resized

ATLAS = Path(__file__).resolve().parents[1] / "data" / "before_the_rebuild" / "learned_atlas"


def opened(*reference: Path, **changes):
    block = {"reference": [str(one) for one in reference], **changes}
    return open_source(MakePairsConfig.load(block))


def test_sections_of_every_kind_of_file_are_the_same_images(tmp_path):
    images = sections(3)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "b.npz", images=images, other=np.zeros(4))
    nib.save(nib.Nifti1Image(images, np.eye(4)), tmp_path / "c.nii.gz")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"s{9 + number}.png")  # s9, s10, s11
        Image.fromarray(image).save(tmp_path / f"one{number}.tif")
    for source in (
        opened(tmp_path / "a.npy"),
        opened(tmp_path / "b.npz"),
        opened(tmp_path / "c.nii.gz", dims=2),
        opened(folder),
        opened(tmp_path / "one*.tif"),
        opened(*[tmp_path / f"one{n}.tif" for n in range(3)]),
    ):
        assert len(source) == 3
        for number, image in enumerate(images):
            np.testing.assert_array_equal(source[number].reference, image)
    source = opened(tmp_path / "a.npy", section_step=50)
    assert [source[n].p for n in range(3)] == [0, 50, 100]
    assert [source[n].image_id for n in range(3)] == [0, 1, 2]
    assert {source[n].dataset_id for n in range(3)} == {0}
    assert {opened(tmp_path / "one*.tif")[n].dataset_id for n in range(3)} == {0, 1, 2}


def test_files_of_one_subject_are_one_specimen(tmp_path):
    for name, image in zip(("p01_t1", "p01_t2", "p02_t1"), sections(3), strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.tif")
    source = opened(tmp_path / "*.tif", specimen="{subject}_{run}")
    assert [source[n].dataset_id for n in range(3)] == [0, 0, 1]
    with pytest.raises(CohortError, match=r"p01_t1\.tif: is not named as make_pairs\.specimen"):
        opened(tmp_path / "*.tif", specimen="{subject}-{run}")
    with pytest.raises(ConfigurationError, match=r"make_pairs\.specimen = 'a': has no \{subject\}"):
        opened(tmp_path / "*.tif", specimen="a")


def test_sections_lie_along_the_axis_that_is_named(tmp_path):
    images = sections(3)
    np.save(tmp_path / "a.npy", np.moveaxis(images, 0, 2))
    source = opened(tmp_path / "a.npy", axis=2)
    np.testing.assert_array_equal(source[1].reference, images[1])


def test_a_volume_is_one_image_where_it_is_nifti_or_dims_is_3(tmp_path):
    volume = sections(1, (20, 18, 16))[0]
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    np.save(tmp_path / "v.npy", volume)
    assert opened(tmp_path / "v.nii.gz").shape == (20, 18, 16)
    assert opened(tmp_path / "v.npy", dims=3).shape == (20, 18, 16)
    assert opened(tmp_path / "v.npy").shape == (18, 16)


def test_ome_zarr_is_read_at_full_resolution(tmp_path):
    zarr = pytest.importorskip("zarr")
    images = sections(3)
    group = zarr.open_group(str(tmp_path / "v.zarr"), mode="w")
    level = group.create_array("s0", shape=images.shape, dtype="u1")
    level[...] = images
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"datasets": [{"path": "s0"}]}]}
    source = opened(tmp_path / "v.zarr")
    np.testing.assert_array_equal(source[2].reference, images[2])
    group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": "../../etc"}]}]}
    with pytest.raises(CohortError, match=r"the array '\.\./\.\./etc' contains '\.\.'"):
        opened(tmp_path / "v.zarr")


def test_other_types_are_stretched_to_bytes(tmp_path):
    deep = sections(1)[0].astype(np.float32) * 7.5 - 3
    np.save(tmp_path / "deep.npy", deep)
    result = opened(tmp_path / "deep.npy")[0].reference
    assert (result.min(), result.max()) == (0, 255)
    assert np.corrcoef(result.ravel(), deep.ravel())[0, 1] > 0.99


def test_images_are_resampled_centre_to_centre():
    line = np.arange(40, dtype=np.float64)
    image = np.rint(np.broadcast_to(5 * line[:, None], (40, 40))).astype(np.uint8)
    half = resized(image, (20, 20))
    inner = slice(4, 16)
    wanted = 5 * (2 * np.arange(20) + 0.5)
    assert np.abs(half[inner, 10].astype(float) - wanted[inner]).max() <= 0.51
    np.testing.assert_array_equal(resized(image, (40, 40)), image)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (lambda p: np.save(p / "a.npy", np.full((2, 30, 30), 7)), {}, "is constant"),
        (lambda p: np.save(p / "a.npy", np.full((2, 30, 30), np.nan)), {}, "is not finite"),
        (lambda p: np.save(p / "a.npy", np.zeros(5)), {}, r"has shape \(5,\)"),
        (lambda p: np.save(p / "a.npy", np.array([{"x": 1}])), {}, "can't be read"),
        (lambda p: (p / "a.npy").write_text("x"), {}, r"a\.npy: can't be read"),
        (lambda p: None, {}, "No such file"),
    ],
)
def test_files_that_hold_no_images_are_refused(tmp_path, make, changes, message):
    make(tmp_path)
    with pytest.raises(CohortError, match=message) as raised:
        opened(tmp_path / "a.npy", **changes)
    assert "\n" not in str(raised.value)


def test_more_refusals_name_file_and_rule(tmp_path):
    np.savez(tmp_path / "two.npz", x=sections(2), y=sections(2))
    with pytest.raises(CohortError, match=r"2 volumes among x, y; name one with make_pairs#array"):
        opened(tmp_path / "two.npz")
    assert len(opened(tmp_path / "two.npz", array="y")) == 2
    with pytest.raises(CohortError, match="has no array 'z'"):
        opened(tmp_path / "two.npz", array="z")
    np.save(tmp_path / "small.npy", sections(1, (30, 30)))
    with pytest.raises(CohortError, match=r"has shape \(30, 30\), the first image has \(40, 56\)"):
        opened(tmp_path / "two.npz", tmp_path / "small.npy", array="x")
    both = opened(tmp_path / "two.npz", tmp_path / "small.npy", array="x", shape=[20, 24])
    assert both.shape == (20, 24)
    assert len(both) == 3
    (tmp_path / "folder").mkdir()
    with pytest.raises(CohortError, match="folder: contains no image"):
        opened(tmp_path / "folder")
    (tmp_path / "x.doc").write_text("x")
    with pytest.raises(CohortError, match="not a known kind of image"):
        opened(tmp_path / "x.doc")
    with pytest.raises(CohortError, match=r"none\*\.png: no file has such a name"):
        opened(tmp_path / "none*.png")
    with pytest.raises(ConfigurationError, match=r"make_pairs\.indexes has 5: must be 0 to 0"):
        opened(tmp_path / "small.npy", indexes=[0, 5])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(CohortError, match="can't be read as an image"):
        opened(tmp_path / "bad.png")


def test_indexes_come_from_a_list_or_a_file(tmp_path):
    np.save(tmp_path / "i.npy", np.array([2, 0]))
    assert chosen(str(tmp_path / "i.npy"), 3, "k") == [2, 0]
    np.save(tmp_path / "mask.npy", np.array([True, False, True]))
    assert chosen(str(tmp_path / "mask.npy"), 3, "k") == [0, 2]
    assert chosen(None, 3, "k") is None
    np.save(tmp_path / "f.npy", np.array([0.5]))
    with pytest.raises(CohortError, match="must be one list of whole numbers"):
        chosen(str(tmp_path / "f.npy"), 3, "k")


def test_the_store_is_the_same_whatever_the_number_of_workers(make_store):
    stores = [make_store(f"w{n}", num_workers=n) for n in (0, 2)]
    with h5py.File(stores[0]) as first, h5py.File(stores[1]) as second:
        for name in first:
            np.testing.assert_array_equal(first[name][...], second[name][...])


def test_only_a_store_of_this_bundle_is_replaced(make_store, tmp_path):
    store = make_store()
    assert make_store() == store
    settings = MakePairsConfig.load({"reference": [str(store)]})
    with pytest.raises(StorageError, match="is read by this job; choose another output"):
        PairMaker(settings, store)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["img"] = np.zeros(3)
    (tmp_path / "text.h5").write_text("notes")
    for name in ("foreign", "text"):
        with pytest.raises(StorageError, match=rf"{name}\.h5: exists already and wasn't made"):
            PairMaker(settings, tmp_path / name)


def test_an_earlier_store_is_deformed_further(make_store, tmp_path):
    first = make_store()
    settings = MakePairsConfig.load(
        {"reference": [str(first)], "count": 5, "seed": 3, "affine": {"translation": 2.0},
         "elastic": {"rms": 1.0, "width": 8.0, "anchor": 0.25}}
    )  # fmt: skip
    second = PairStore(PairMaker(settings, tmp_path / "second").run())
    assert len(second) == 5
    before = PairStore(first)
    assert set(second.numbers["image_id"]) <= set(before.numbers["image_id"])
    with pytest.raises(ConfigurationError, match="shape is for images"):
        open_source(MakePairsConfig.load({"reference": [str(first)], "shape": [20, 20]}))
    with pytest.raises(ConfigurationError, match="must be the only entry"):
        open_source(MakePairsConfig.load({"reference": [str(first), "b.png"]}))


def test_a_pattern_that_finds_the_output_is_reported(make_store, tmp_path):
    store = make_store()
    settings = MakePairsConfig.load({"reference": [str(tmp_path / "*.h5")]})
    with pytest.raises(StorageError, match="is read by this job; choose another output"):
        PairMaker(settings, store)


# -- a published atlas -----------------------------------------------------------------------


@pytest.fixture
def atlas(tmp_path, make_grid):
    """An atlas folder whose subject's field is known."""
    grid = make_grid((18, 16, 14))
    density = sections(1, (18, 16, 14))[0] / 255 * 0.02
    moved = np.roll(density, 1, axis=1)
    folder = tmp_path / "atlas"
    (folder / "fields").mkdir(parents=True)
    maps = tmp_path / "sub-1.nii.gz"
    nib.save(nib.Nifti1Image((moved * 50).astype(np.float32), grid.affine), maps)
    nib.save(nib.Nifti1Image(density.astype(np.float32), grid.affine), folder / "atlas_mean.nii.gz")
    field = np.zeros((3, *grid.shape), np.float32)
    field[1] = 1.0
    names = field_names("sub-1")
    write_field(folder / "fields" / names[0], field, grid)
    write_field(folder / "fields" / names[1], -field, grid)
    about = {
        "name": "tract_density_atlas", "kind": "learned", "log_offset": 0.001, "mixture": None,
        "cohort": {
            "crop": {"start": [1, 0, 1], "stop": [18, 16, 13]},
            "grid": grid.as_dict(), "tracts": [],
            "subjects": [{"subject": "sub-1", "maps": [
                {"path": str(maps), "channel": 0, "divisor": 50.0, "sha256": file_hash(maps)}]}],
        },
    }  # fmt: skip
    (folder / "atlas.json").write_text(json.dumps(about))
    return folder


def made_of(atlas: Path, tmp_path: Path) -> PairStore:
    settings = MakePairsConfig.load({"atlas_dir": str(atlas)})
    return PairStore(PairMaker(settings, tmp_path / "of_atlas").run())


def test_an_atlas_gives_its_subjects_with_their_fields(atlas, tmp_path):
    store = made_of(atlas, tmp_path)
    assert store.shape == (17, 16, 12)
    check_pairs(store, [0])
    pair = store.read(0)
    np.testing.assert_allclose(pair.field[1], 1.0, atol=1e-6)
    np.testing.assert_allclose(pair.inverse[1], -1.0, atol=1e-6)
    inner = (slice(None), slice(1, -2), slice(None))
    shifted = np.roll(pair.moving, -1, axis=1)
    assert np.abs(shifted[inner].astype(int) - pair.reference[inner]).max() <= 1


def test_an_atlas_of_an_earlier_version_is_read(tmp_path):
    """Fields of the file, and densities by the cohort's reader."""
    about = json.loads((ATLAS / "atlas.json").read_text())
    folder = tmp_path / "atlas"
    folder.mkdir()
    cohort = ATLAS.parent / "cohort"
    for one in about["cohort"]["subjects"]:
        one["maps"][0]["path"] = str(cohort / Path(one["maps"][0]["path"]).name)
    (folder / "atlas.json").write_text(json.dumps(about))
    shutil.copy(ATLAS / "atlas_mean.nii.gz", folder)
    shutil.copytree(ATLAS / "fields", folder / "fields")
    store = made_of(folder, tmp_path)
    assert len(store) == 3
    wanted = read_field(ATLAS / "fields" / field_names("sub-2")[0])[:, 0:12, 1:9, 1:10]
    np.testing.assert_allclose(store.read(1).field, wanted, atol=1e-5)
    entry = about["cohort"]["subjects"][1]["maps"][0]
    subject = Subject("sub-2", (DensityMap(Path(entry["path"]), 0, entry["divisor"],
                                           entry["sha256"]),))  # fmt: skip
    density = subject_density(subject, 1, (12, 10, 11))[0][0:12, 1:9, 1:10]
    moving = store.read(1).moving
    assert np.corrcoef(np.log1p(density / about["log_offset"]).ravel(), moving.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("what", ["atlas.json", "atlas_mean.nii.gz", "a field", "a map"])
def test_an_atlas_that_changes_while_it_is_read_is_reported(atlas, tmp_path, what):
    settings = MakePairsConfig.load({"atlas_dir": str(atlas)})
    maker = PairMaker(settings, tmp_path / "of_atlas")
    files = {
        "a field": atlas / "fields" / field_names("sub-1")[0],
        "a map": tmp_path / "sub-1.nii.gz",
    }
    path = files.get(what, atlas / what)
    content = path.read_bytes()
    packed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(gzip.decompress(content), 1) if packed else content + b"\n")
    with pytest.raises(CohortError, match=rf"{path.name}: .*(changed|is not the map)"):
        maker.run()
    assert not (tmp_path / "of_atlas.h5").exists()


def test_a_link_that_leads_out_of_an_atlas_is_refused(atlas, tmp_path):
    (atlas / "fields").rename(tmp_path / "elsewhere")
    (atlas / "fields").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CohortError, match="leads out"):
        made_of(atlas, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(kind="averaged"), "kind 'averaged'; only a learned one has fields"),
        (lambda a: a.update(mixture={"sub-1": [0.5, 0.5]}), "mixture of templates"),
        (lambda a: a.update(name="other"), "not the description of an atlas of this bundle"),
        (lambda a: a["cohort"].pop("crop"), "not the description of an atlas with fields"),
        (
            lambda a: a["cohort"]["subjects"][0].update(subject="../x"),
            "can't be a folder name: '../x'",
        ),
        (lambda a: a["cohort"]["subjects"][0].update(subject="sub-9"), "sub-9.*: is missing"),
        (lambda a: a["cohort"]["grid"].update(shape=[50, 50, 50]), "atlas.json has"),
        (lambda a: a["cohort"]["grid"].update(shape=[5, 5, 5]), "crop must be within"),
        (lambda a: a["cohort"]["crop"].update(start=[-3, 0, 0]), "crop must be within"),
        (lambda a: a["cohort"].update(tracts=["a"] * 10**5), "has 1 channels, atlas.json names"),
        (lambda a: a.update(log_offset=float("inf")), "log_offset must be > 0"),
        (
            lambda a: a["cohort"]["grid"].update(shape=[float("inf")] * 3),
            "not the description of an atlas with fields",
        ),
    ],
)
def test_what_is_no_atlas_with_fields_is_refused(atlas, tmp_path, change, message):
    about = json.loads((atlas / "atlas.json").read_text())
    change(about)
    (atlas / "atlas.json").write_text(json.dumps(about))
    with pytest.raises(CohortError, match=message):
        made_of(atlas, tmp_path)
    assert not (tmp_path / "of_atlas.h5").exists()
