"""NumPy's files as they come: larger than memory, damaged, hostile; labels and names of classes beside the images."""

import io
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from purify_engine.config import RANGE_ROUNDING, PurifierConfig
from purify_engine.data import ImageShape, ItemError, Part, open_sink, open_source
from purify_engine.data.sources.npy import open_rows
from purify_engine.images import check_images
from tests.data.access import item_of, read

GREY = ImageShape(1)
LEVELS = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def header_of(shape, descr="|u1", order="False"):
    """A .npy file's beginning, whatever it says."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"


def npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_an_array_larger_than_memory_is_read_row_by_row(tmp_path):
    shape = (2**24, 64, 64, 1)  # 64 GiB, of which the disk holds one row
    row, start = np.arange(64 * 64, dtype=np.uint8), header_of(shape)
    path = tmp_path / "in.npy"
    with path.open("wb") as file:
        file.write(start)
        file.seek(len(start) + (2**24 - 1) * 64 * 64)
        file.write(row.tobytes())
    source = open_source(path, GREY)
    assert len(source) == 2**24
    (item,) = source.items(Part(0, 2**24 - 1, 1))
    assert (source.decode(item).ravel() == row).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_an_archive_are_read_wherever_they_lie(save, order, tmp_path):
    save(tmp_path / "in.npz", other=np.ones(7), images=np.asarray(LEVELS, order=order))
    source = open_source(tmp_path / "in.npz", GREY)
    for part in (*reversed(source.parts(1)), source.parts(256)[0]):
        for item in source.items(part):
            assert (source.decode(item)[0] == LEVELS[item.id]).all()


@pytest.mark.parametrize("end", ["in the header", "in a row", "after the last byte but one"])
def test_an_array_that_is_cut_short_is_refused(end, tmp_path):
    content = as_npy(LEVELS)
    (tmp_path / "in.npy").write_bytes(content[: {"in the header": 40, "in a row": 150}.get(end, -1)])
    with pytest.raises(ValueError, match="^source must be a readable .npy or .npz file without pickles, got .*$"):
        open_source(tmp_path / "in.npy", GREY)


def test_rows_that_are_cut_off_later_fail_alone(tmp_path):
    np.save(tmp_path / "in.npy", LEVELS)
    source = open_source(tmp_path / "in.npy", GREY)
    with (tmp_path / "in.npy").open("r+b") as file:
        file.truncate(source.header.size + 50)
    read_rows = [item.content for item in source.items(source.parts(256)[0])]
    assert [isinstance(row, ItemError) for row in read_rows] == [False, False, True]
    assert str(read_rows[2]) == "cannot be read: the file ends within row 2"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_is_damaged_anywhere_is_refused_or_reads_the_same(compression, tmp_path):
    path = npz(tmp_path / "in.npz", [("images.npy", as_npy(LEVELS)), ("note.npy", as_npy(np.ones(2)))], compression)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            source = open_source(path, GREY)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all((read(source, id)[0].numpy() * 255 == LEVELS[id]).all() for id in range(3)), place
    assert refused > len(whole) / 6, "most of the bytes matter"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("images.npy", header_of((2**62, 4, 4)))], "images must hold"),
        ([("images.npy", header_of((-1, -4, 4)))], "its shape is"),
        ([("images.npy", header_of((2, 4, 4), "|O") + b"cos\nsystem\n")], "pickles are never loaded"),
        ([("images.npy", as_npy(LEVELS)), ("images.npy", as_npy(LEVELS))], "two arrays are named images"),
        ([("images.npy", as_npy(LEVELS)), ("images", as_npy(LEVELS))], "two arrays are named images"),
        ([("images.npy", as_npy(LEVELS) + b"x")], "images must hold"),
        ([("images.npy", as_npy(LEVELS)), ("note.txt", b"a note")], "magic string"),
        ([("images.npy", as_npy(LEVELS)), ("object.npy", header_of((1,), "|O") + b"cos\nsystem\n")], "pickles are never loaded"),
    ],
    ids=["huge", "negative", "pickle", "twice", "twice by another name", "more than said", "no array", "pickle beside"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_archive_is_refused_in_a_line(members, says, tmp_path):
    with pytest.raises(ValueError, match=f"^source must be a readable .npy or .npz file without pickles, got .*{says}.*$"):
        open_source(npz(tmp_path / "in.npz", members), GREY)


def test_what_cannot_be_inflated_for_want_of_room_says_where_and_what_helps(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "in.npz", images=LEVELS)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device \(inflating in.npz takes 188 bytes: .*TMPDIR"):
        open_source(tmp_path / "in.npz", GREY)


EDGES = [edge + sign * step for edge in (-RANGE_ROUNDING, 1 + RANGE_ROUNDING) for sign in (-1, 1) for step in (1e-6, 1e-7, 0)]


@pytest.mark.parametrize("value", EDGES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_values_are_taken_as_by_a_purifier(value, dtype, tmp_path):
    array = np.full((1, 1, 2, 2), value, dtype)
    np.save(tmp_path / "in.npy", array)
    bridge = SimpleNamespace(taken="2, 2", refusal=lambda height, width: None)
    source = open_source(tmp_path / "in.npy", GREY)
    try:
        check_images(torch.from_numpy(array.astype(np.float32)), 1, bridge, torch.device("cpu"), PurifierConfig())
    except ValueError:
        with pytest.raises(ItemError, match="^lies in"):
            read(source, 0)
    else:
        assert read(source, 0).unique().tolist() == [min(max(value, 0), 1)]


def test_a_row_that_is_no_image_fails_alone(tmp_path):
    array = np.full((4, 2, 2), 0.5)
    array[1, 0, 0], array[2, 1, 1] = np.nan, 1e300
    np.save(tmp_path / "in.npy", array)
    source = open_source(tmp_path / "in.npy", GREY)
    for id in (1, 2):
        with pytest.raises(ItemError, match="^holds NaN or infinity$"):
            source.decode(item_of(source, id))
    assert all((read(source, id) == 0.5).all() for id in (0, 3))


@pytest.mark.parametrize("name", ["classes", "class_names"])
def test_names_of_classes_are_read(name, tmp_path):
    np.savez(tmp_path / "in.npz", images=LEVELS, labels=np.array([0, -100, 1]), **{name: np.array(["cat", "Käfer"])})
    source = open_source(tmp_path / "in.npz", GREY)
    assert source.classes == ("cat", "Käfer")
    assert source.labels.tolist() == [0, -100, 1], "whether a label is one of the classes is asked by those who use it"


def test_classes_that_are_no_names_are_none(tmp_path):
    np.savez(tmp_path / "in.npz", images=LEVELS, classes=np.arange(3))
    assert open_source(tmp_path / "in.npz", GREY).classes is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_an_archive_is_read_through_once_until_it_changes(save, tmp_path):
    save(tmp_path / "a.npz", images=LEVELS)
    first = open_rows(tmp_path / "a.npz", "images")
    assert open_rows(tmp_path / "a.npz", "images") is first
    save(tmp_path / "b.npz", images=LEVELS + 1)
    (tmp_path / "b.npz").replace(tmp_path / "a.npz")
    assert (open_rows(tmp_path / "a.npz", "images").read(0, 3) == LEVELS + 1).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_other_processes_read_the_same(save, tmp_path):
    save(tmp_path / "in.npz", images=LEVELS)
    source = open_source(tmp_path / "in.npz", GREY)
    sink = pickle.loads(pickle.dumps(open_sink(source, tmp_path / "out.npz")))
    assert all((read(sink.source, id)[0].numpy() * 255 == LEVELS[id]).all() for id in range(3))


def test_other_content_has_another_fingerprint(tmp_path):
    prints = []
    for change in (0, 1):
        changed = LEVELS.copy()
        changed[2, 3, 4] ^= change
        np.save(tmp_path / "in.npy", changed)
        np.savez(tmp_path / "in.npz", images=changed)
        prints.append([open_source(tmp_path / f"in.{suffix}", GREY).fingerprint() for suffix in ("npy", "npz")])
    assert prints[0][0] != prints[1][0] and prints[0][1] != prints[1][1]
