"""Purified items of datasets: the same images whatever the number of workers, the batches, the order, or the process."""

from __future__ import annotations

import pickle
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from purify_engine.integrations import dataset as module
from purify_engine.integrations.dataset import Numbered, PurifiedDataset, PurifyTransform, purified
from tests.test_purifier import images, purifier
from tests.test_purifier_state import apart, assert_close

COUNT = 7
Labelled = namedtuple("Labelled", "image label")


class Items(Dataset):
    """Items of one's own kind, in a list."""

    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.fixture(scope="module")
def model():
    return purifier()


@pytest.fixture(scope="module")
def data():
    return TensorDataset(images(COUNT), torch.arange(COUNT))


@pytest.fixture(scope="module")
def expected(model, data):
    """Every image by noise of its own index."""
    return model(data.tensors[0], ids=torch.arange(COUNT), draw=0)


def test_an_item_is_purified_by_noise_of_its_index(model, data, expected):
    wrapped = PurifiedDataset(data, model)
    assert len(wrapped) == COUNT
    for index, (image, label) in enumerate(wrapped):
        assert_close(image, expected[index])
        assert label == index
    assert torch.equal(wrapped[-1][0], wrapped[COUNT - 1][0])
    with pytest.raises(IndexError):
        wrapped[COUNT]


def test_a_draw_names_others(model, data, expected):
    wrapped = PurifiedDataset(data, model, draw=3)
    assert_close(wrapped[2][0], model(data.tensors[0][2:3], ids=torch.tensor([2]), draw=3)[0])
    assert apart(wrapped[2][0], expected[2])


@pytest.mark.parametrize(
    "workers, start", [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.integration)], ids=str
)
def test_any_number_of_workers_gives_the_same_images(model, data, expected, workers, start):
    loader = DataLoader(PurifiedDataset(data, model), batch_size=3, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.tensors[1])
    assert_close(torch.cat([batch for batch, _ in batches]), expected)


def test_a_pickled_dataset_as_spawned_workers_get_it_gives_the_same_images(model, data, expected):
    assert_close(pickle.loads(pickle.dumps(PurifiedDataset(data, model)))[4][0], expected[4])


def test_whole_batches_in_the_main_process_are_the_same_images_in_any_order(model, data, expected):
    loader = DataLoader(Numbered(data), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))
    batches = purified(loader, model)
    assert len(batches) == 2
    for _ in range(2):
        found = {int(label): image for batch, labels in batches for image, label in zip(batch, labels, strict=True)}
        assert_close(torch.stack([found[index] for index in range(COUNT)]), expected)
    assert apart(next(iter(purified(DataLoader(Numbered(data)), model, draw=1)))[0][0], expected[0])


def test_a_loader_that_numbers_nothing_is_refused(model, data):
    with pytest.raises(TypeError, match=r"DataLoader\(Numbered\(dataset\), ...\), got one of TensorDataset"):
        purified(DataLoader(data), model)
    with pytest.raises(TypeError, match=r"DataLoader\(Numbered\(dataset\), ...\), got one of Numbered"):
        purified(Numbered(data), model)


def test_the_image_is_found_in_tensors_tuples_and_dictionaries(model, data, expected):
    image = data.tensors[0][1]
    kinds = [image, (image, "a"), [image, "a"], Labelled(image, "a"), {0: image, "label": "a"}]
    for item in kinds:
        found = PurifiedDataset(Items([None, item]), model)[1]
        assert type(found) is type(item)
        assert_close(found if isinstance(item, torch.Tensor) else found[0], expected[1])
        assert isinstance(item, torch.Tensor) or found[-1 if isinstance(item, tuple | list) else "label"] == "a"
    for place in (1, -1):
        assert_close(PurifiedDataset(Items([None, ("a", image)]), model, image=place)[1][1], expected[1])
    assert_close(PurifiedDataset(Items([None, {"pixels": image}]), model, image="pixels")[1]["pixels"], expected[1])


def test_images_of_several_sizes_are_purified_side_by_side():
    model = purifier(sizes="resize")
    items = [torch.rand(1, 8, 8), torch.rand(1, 12, 8), torch.rand(1, 8, 8)]
    found = PurifiedDataset(Items(items), model).__getitems__([2, 1, 0])
    for image, number in zip(found, [2, 1, 0], strict=True):
        assert_close(image, model(items[number][None], ids=torch.tensor([number]), draw=0)[0])


def test_equal_images_are_transformed_equally_and_others_by_other_noise(data):
    transform = PurifyTransform(purifier(scale=0.0))
    image = data.tensors[0][0]
    once = transform(image)
    assert torch.equal(transform(image.clone()), once)
    assert apart(PurifyTransform(transform.purifier, draw=1)(image), once)
    nearly = image.clone()
    nearly[0, 0, 0] = image[0, 0, 0].nextafter(torch.tensor(2.0))
    assert apart(transform(nearly), once)
    assert transform(image.double()).dtype == torch.float64


def test_what_is_no_image_tensor_is_refused_in_one_line(model):
    with pytest.raises(TypeError, match=r"images must be float tensors \[C, H, W\], got str"):
        PurifiedDataset(Items(["a"]), model)[0]
    with pytest.raises(ValueError, match=r"images must be \[C, H, W\] each, got \[1, 1, 8, 8\]"):
        PurifyTransform(model)(images(1))


def test_a_purifier_on_a_gpu_is_refused_in_workers(data, monkeypatch):
    monkeypatch.setattr(module, "get_worker_info", lambda: "a worker")
    elsewhere = purifier().to("meta")
    for use in (lambda: PurifiedDataset(data, elsewhere)[0], lambda: PurifyTransform(elsewhere)(images(1)[0])):
        with pytest.raises(RuntimeError, match=r"on the CPU in a DataLoader's workers, got meta; use purified\(DataLoader"):
            use()
