"""Purification in a `torch.utils.data` pipeline: the same images whatever the number of workers, the order, or the process.

`purified(loader, purifier)` purifies whole batches in the main process: for GPUs, and wherever the purifier is most of the work.
`PurifiedDataset` does so in the loader's workers, on CPUs, beside decoding and augmentation. `PurifyTransform` is for pipelines
that hand over an image and nothing else. Noise is named by the item's index, or by the image itself: none of them takes fresh
draws, which every worker would count on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from purify_engine.config import require
from purify_engine.types import Ids, Images

if TYPE_CHECKING:
    from purify_engine.purifier import GuidedPurifier


class PurifiedDataset(Dataset):
    """`dataset` with every image purified, by noise of its index: safe in any number of a DataLoader's workers.

    dataset: its items are images, float [C, H, W] as the purifier takes them, or hold one at `image`: a place in a tuple, or a
    key of a dictionary. draw: which independent draw of each item's noise; set it between epochs (`data.draw = epoch`) for
    others. Workers that persist over epochs keep theirs.

    A loader asks for whole batches, which are purified in one call. Each worker computes in one thread, as PyTorch sets it; a
    purifier on a GPU is refused there with RuntimeError (use `purified`). Where the main process has differentiated on a GPU
    before, PyTorch refuses autograd, and so guidance, in forked workers: give the loader multiprocessing_context="spawn".
    """

    def __init__(self, dataset: Dataset, purifier: GuidedPurifier, *, draw: int = 0, image: int | str = 0) -> None:
        self.dataset, self.purifier, self.draw, self.image = dataset, purifier, draw, image

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        _refuse_gpus_in_workers(self.purifier)
        numbers = [range(len(self))[int(index)] for index in indices]  # from the end, too; beyond it an IndexError
        items = [self.dataset[number] for number in numbers]
        images = [_single(_image_of(item, self.image)) for item in items]
        for shape in dict.fromkeys(image.shape for image in images):
            same = [place for place, image in enumerate(images) if image.shape == shape]
            batch = torch.stack([images[place] for place in same])
            ids = torch.tensor([numbers[place] for place in same], device=batch.device)
            for place, image in zip(same, _purify(self.purifier, batch, ids, self.draw), strict=True):
                items[place] = _with_image(items[place], self.image, image)
        return items


class PurifyTransform:
    """Image in, purified image out, float [C, H, W], as in `Compose([ToTensor(), PurifyTransform(p)])`.

    A transform knows no index: the noise is named by a hash of the image's bytes, so that equal images become equal images, in
    any worker and process. For what is prepared beforehand, not for a defence that is attacked: there, noise must not follow from
    the image. One image a call, which costs more than batches do; a purifier on a GPU is refused in workers.
    """

    def __init__(self, purifier: GuidedPurifier, *, draw: int = 0) -> None:
        self.purifier, self.draw = purifier, draw

    def __call__(self, image: Tensor) -> Tensor:
        _refuse_gpus_in_workers(self.purifier)
        values = _single(image).detach().cpu().contiguous().flatten().view(torch.uint8)
        digest = hashlib.blake2b(values.numpy().tobytes(), digest_size=8).digest()
        ids = torch.tensor([int.from_bytes(digest, "big") >> 1], device="cpu")
        return _purify(self.purifier, image.unsqueeze(0), ids, self.draw)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(draw={self.draw})"


class Numbered(Dataset):
    """`dataset` whose items come with their index before them: (index, item). `purified` names the noise by it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, Any]:
        number = range(len(self))[int(index)]
        return number, self.dataset[number]


class purified:  # noqa: N801 - it reads as a verb where it is used: for images, labels in purified(loader, purifier)
    """The batches of `loader`, their images purified in this process, on the purifier's device, where they stay.

    loader: a DataLoader with any number of workers, of a `Numbered` dataset: (index, item) become the item, and the noise is
    named by the index, so that no order, batch size or number of workers changes an image (but for rounding). Raises TypeError
    for any other dataset. draw, image: as for `PurifiedDataset`.
    """

    def __init__(self, loader: DataLoader, purifier: GuidedPurifier, *, draw: int = 0, image: int | str = 0) -> None:
        dataset = loader.dataset if isinstance(loader, DataLoader) else None
        if not isinstance(dataset, Numbered):
            kind = type(dataset or loader).__name__
            raise TypeError(f"loader must be of a numbered dataset, DataLoader(Numbered(dataset), ...), got one of {kind}")
        self.loader, self.purifier, self.draw, self.image = loader, purifier, draw, image

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for ids, batch in self.loader:
            images = _image_of(batch, self.image).to(self.purifier.device)
            yield _with_image(batch, self.image, _purify(self.purifier, images, ids, self.draw))


def _purify(purifier: GuidedPurifier, images: Images, ids: Ids, draw: int) -> Images:
    with torch.no_grad():
        return purifier(images, ids=ids.to(images.device), draw=draw)


def _refuse_gpus_in_workers(purifier: GuidedPurifier) -> None:
    device = purifier.device
    if get_worker_info() is not None and device.type != "cpu":
        mend = "use purified(DataLoader(Numbered(dataset), ...), purifier), in the main process, or purifier.to('cpu')"
        raise RuntimeError(f"purifier must be on the CPU in a DataLoader's workers, got {device}; {mend}")


def _single(image: Any) -> Tensor:
    if not isinstance(image, Tensor):
        kind = type(image).__name__
        raise TypeError(f"images must be float tensors [C, H, W], got {kind}; convert them in the dataset's transform")
    require(image.ndim == 3, "images", "[C, H, W] each", list(image.shape))
    return image


def _image_of(item: Any, place: int | str) -> Any:
    return item if isinstance(item, Tensor) else item[place]


def _with_image(item: Any, place: int | str, image: Tensor) -> Any:
    if isinstance(item, Tensor):
        return image
    if isinstance(item, Mapping):
        return {**item, place: image}
    values = list(item)
    values[int(place)] = image
    if hasattr(item, "_fields"):  # a named tuple
        return type(item)(*values)
    return values if isinstance(item, list) else tuple(values)
