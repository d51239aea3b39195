"""CIFAR as published, hostile and damaged batches, and folders of .npz files: which rows, which labels, and one line each."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from purify_engine.cli.labelled import labelled
from purify_engine.data import ImageShape
from purify_engine.data.cifar import CIFAR10, CIFAR100, read_cifar

TWELVE = np.random.RandomState(0).randint(256, size=(12, 3072)).astype(np.uint8)
LABELS = [number % 10 for number in range(12)]
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = ImageShape(3, 32)


def text(said: bytes) -> bytes:
    """A `str` of Python 2, whose pickles have opcodes of their own for it."""
    return b"U" + bytes([len(said)]) + said if len(said) < 256 else b"T" + struct.pack("<i", len(said)) + said


def numbers(values) -> bytes:
    return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def array(rows: np.ndarray) -> bytes:
    """As NumPy pickled it under Python 2: _reconstruct(ndarray, (0,), 'b'), then its state."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    state = b"(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R" + state
    shape = b"".join(b"M" + struct.pack("<H", length) for length in rows.shape) + b"\x86"
    return made + b"(K\x01" + shape + kind + b"\x89" + text(rows.tobytes()) + b"tb"


def published(**entries: bytes) -> bytes:
    """The pickle of a dictionary, in protocol 2, as the author's Python 2 wrote it."""
    return b"\x80\x02}(" + b"".join(text(name.encode()) + value for name, value in entries.items()) + b"u."


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """CIFAR-10 with two images a batch: the first ten to train on, the last two to test."""
    root = tmp_path_factory.mktemp("cifar") / CIFAR10.folder
    root.mkdir()
    for place, name in enumerate((*CIFAR10.files["train"], "test_batch")):
        rows = slice(2 * place, 2 * place + 2)
        held = {"batch_label": text(b"a batch"), "labels": numbers(LABELS[rows]), "data": array(TWELVE[rows])}
        (root / name).write_bytes(published(**held))
    names = b"](" + b"".join(text(name.encode()) for name in NAMES) + b"e"
    (root / "batches.meta").write_bytes(published(label_names=names, num_vis=b"M\x00\x0c"))
    return root


@pytest.fixture(scope="module")
def archive(batches, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        packed.add(batches, CIFAR10.folder)
    return path


def test_the_batches_are_the_same_from_the_folder_the_one_around_it_and_the_archive(batches, archive):
    for path in (batches, batches.parent, archive):
        train, test = (labelled(str(path), SHAPE, split=split) for split in ("train", "test"))
        assert train.labels.tolist() == LABELS[:10] and test.labels.tolist() == LABELS[10:]
        assert train.classes == test.classes == NAMES
        for data, rows in ((train, TWELVE[:10]), (test, TWELVE[10:])):
            assert np.array_equal((data.images * 255).round().numpy(), rows.reshape(-1, 3, 32, 32))
        assert np.array_equal((train.rows([7, 1]) * 255).round().numpy(), TWELVE[[7, 1]].reshape(-1, 3, 32, 32))


def test_the_labels_of_cifar_100_are_the_fine_ones_and_python_3_may_have_pickled_them_again(tmp_path):
    for name, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        held = {b"fine_labels": LABELS[rows], b"coarse_labels": [0] * len(LABELS[rows]), b"data": TWELVE[rows]}
        (tmp_path / name).write_bytes(pickle.dumps(held, protocol=2))
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": [*NAMES], "coarse_label_names": ["all"]}, protocol=2))
    found = read_cifar(tmp_path, "train")
    assert found.labels.tolist() == LABELS[:8] and found.classes == NAMES
    assert np.array_equal(found.images.reshape(8, -1), TWELVE[:8])
    assert read_cifar(tmp_path, "test").labels.tolist() == LABELS[8:] and CIFAR100.files["train"] == ("train",)


HOSTILE = {
    "code": (b"\x80\x02cos\nsystem\nU\x04true\x85R.", "holds os.system, which only running code could read"),
    "cut": (published(data=array(TWELVE[:2]))[:-40], "is damaged or cut short"),
    "other": (b"\x80\x02]q\x00.", "must be a dictionary, as published, got 'list'"),
    "lacking": (published(labels=numbers([1])), "with images (data) and a list of numbers (labels), got [b'labels']"),
    "short": (published(labels=numbers([1, 2, 3]), data=array(TWELVE[:2])), "is damaged (cannot reshape"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_batch_is_refused_in_one_line_that_names_it(case, batches, tmp_path):
    content, said = HOSTILE[case]
    for name in (*CIFAR10.files["train"], "batches.meta"):
        (tmp_path / name).write_bytes((batches / name).read_bytes())
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_cifar(tmp_path, "train")
    assert said in str(raised.value) and "data_batch_3" in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_batch_a_cut_archive_and_images_of_another_network_are_told_of(batches, archive, tmp_path):
    (tmp_path / "data_batch_1").write_bytes((batches / "data_batch_1").read_bytes())
    with pytest.raises(FileNotFoundError, match="lacks data_batch_2 of cifar-10-batches-py: download it again"):
        read_cifar(tmp_path, "train")
    whole = archive.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged or cut short"):
        read_cifar(tmp_path / "cut.tar.gz", "train")
    with pytest.raises(ValueError, match="of images of 1 channels, as the network takes"):
        labelled(str(batches), ImageShape(1, 32))
    with pytest.raises(ValueError, match="of other images than 32x32: the network takes 8x8"):
        labelled(str(batches), ImageShape(3, 8))


def test_links_in_an_archive_are_not_followed(batches, tmp_path):
    (tmp_path / "secret").write_bytes((batches / "data_batch_1").read_bytes())
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as packed:
        link = tarfile.TarInfo(f"{CIFAR10.folder}/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        packed.addfile(link, io.BytesIO())
    with pytest.raises(FileNotFoundError, match="lacks data_batch_1"):
        read_cifar(tmp_path / "evil.tar.gz", "train")


def test_a_folder_of_npz_files_is_joined_by_number_and_knows_its_splits(tmp_path):
    pixels = TWELVE.reshape(12, 3, 32, 32)
    for number in range(11):
        kept = pixels[number : number + 1]
        images = kept.transpose(0, 2, 3, 1) if number % 2 else kept
        np.savez(tmp_path / f"train-{number}.npz", images=images, labels=LABELS[number : number + 1])
    np.savez(tmp_path / "test-first.npz", images=pixels[11:], labels=LABELS[11:])
    train, test = (labelled(str(tmp_path), SHAPE, split=split) for split in ("train", "test"))
    assert train.labels.tolist() == LABELS[:11] and train.count == 11 and test.labels.tolist() == LABELS[11:]
    assert np.array_equal((train.images * 255).round().numpy(), pixels[:11])
    assert np.array_equal((train.rows([10, 2, 9]) * 255).round().numpy(), pixels[[10, 2, 9]])
    (tmp_path / "test-first.npz").unlink()
    with pytest.raises(ValueError, match=r"a folder with test-0\.npz, test-1\.npz, \.\.\., got "):
        labelled(str(tmp_path), SHAPE, split="test")
    np.savez(tmp_path / "train-5.npz", images=pixels[:1])
    with pytest.raises(ValueError, match=r"train-5\.npz must be with labels where train-0\.npz has them"):
        labelled(str(tmp_path), SHAPE)
