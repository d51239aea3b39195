"""Data sets with labels: which images by which numbers, and which of them where only some are wanted."""

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.cli.labelled import labelled, spread, stratified
from purify_engine.data import ImageShape, digits

SHAPE = ImageShape(1, 8)


@pytest.fixture
def source(tmp_path):
    images = np.random.RandomState(0).rand(5, 1, 8, 8).astype(np.float32)
    np.savez(tmp_path / "in.npz", images=images, labels=np.arange(5))
    return str(tmp_path / "in.npz"), torch.tensor(images)


def test_digits_are_the_split_that_is_named_and_the_training_ones_by_default():
    for got, split in ((labelled("digits", SHAPE), "train"), (labelled("digits", SHAPE, split="test"), "test")):
        images, labels = digits(split)
        assert torch.equal(got.images, images) and torch.equal(got.required_labels(), labels)
        assert got.classes == tuple("0123456789") and got.count == len(images)
        assert torch.equal(got.rows([7, 2]), images[[7, 2]])


def test_other_sources_are_read_whole_or_in_part(source):
    path, images = source
    data = labelled(path, SHAPE, split="test")
    assert torch.equal(data.images, images) and torch.equal(data.rows([3, 1]), images[[3, 1]])
    assert data.required_labels().tolist() == [0, 1, 2, 3, 4] and data.classes is None


def test_labels_are_asked_for(tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((2, 1, 8, 8), np.float32))
    wanted = r"class folders, an array `labels` in a .npz file, or a table's column `label`"
    with pytest.raises(ValueError, match=rf"^source must have labels \({wanted}\), got '"):
        labelled(str(tmp_path / "bare.npz"), SHAPE).required_labels()


def test_class_folders_name_the_labels_and_only_the_images_asked_for_are_opened(tmp_path):
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), 51).save(tmp_path / name / "a.png")
    (tmp_path / "cat" / "b.png").write_bytes(b"no image")
    data = labelled(str(tmp_path), SHAPE)
    assert data.classes == ("cat", "dog") and data.required_labels().tolist() == [0, 0, 1]
    assert torch.equal(data.rows([2, 0]), torch.full((2, 1, 8, 8), 0.2))
    with pytest.raises(ValueError, match=r"cat/b\.png"):
        data.rows([1])


def test_a_limit_takes_as_many_of_each_class_as_of_any_other():
    labels = torch.tensor([0] * 50 + [2] * 50 + [1] * 3)  # sorted class folders: the first six are of one class
    for limit, wanted in ((6, [2, 2, 2]), (30, [14, 3, 13]), (103, [50, 3, 50])):
        chosen = stratified(labels, limit)
        counts = torch.bincount(labels[chosen], minlength=3).tolist()
        assert sorted(counts) == sorted(wanted) and chosen == sorted(set(chosen))
    assert stratified(labels, None) == list(range(103)) == stratified(labels, 500)


def test_the_images_of_a_smaller_limit_are_among_those_of_a_larger_one():
    labels = torch.tensor([0, 1, 2, 3] * 25)
    choices = [stratified(labels, limit) for limit in range(1, 30)]
    assert all(set(less) < set(more) for less, more in zip(choices, choices[1:], strict=False))
    assert choices[3] != [0, 1, 2, 3], "by chance, not the first"


def test_a_spread_choice_is_of_all_rows_and_always_the_same():
    chosen = spread(1000, 100)
    assert chosen == sorted(set(chosen)) == spread(1000, 100) and len(chosen) == 100
    assert 5 <= sum(row < 100 for row in chosen) <= 20 and chosen[-1] < 1000
    assert spread(7, 100) == list(range(7))


def test_what_is_no_image_is_named_and_is_no_class(tmp_path, capsys):
    for name in ("a/1.png", "b/2.png", ".ipynb_checkpoints/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "b" / "notes\x1b[31m.txt").touch()
    assert labelled(str(tmp_path), SHAPE).classes == ("a", "b")
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 other things (.ipynb_checkpoints/: a hidden folder" in line and line.endswith(" skipped")
    assert "notes\\x1b[31m.txt: " in line
