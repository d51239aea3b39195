"""Memory runs out at each of the first 50 operations of PyTorch that a run's purifier computes, each of which allocates."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine import GuidedPurifier
from purify_engine.config.offline import OfflineConfig
from purify_engine.data import ImageShape, open_sink, open_source
from purify_engine.data.compute import PurifierCompute
from purify_engine.data.run import run
from tests.output_trees import files
from tests.soak.torch_run import make_purifier
from tests.soak.torchless_run import make_folder

ALLOCATIONS = 50


class RunsOut(TorchDispatchMode):
    """Operation `at` finds no memory."""

    def __init__(self, at):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += 1
        if self.count == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return function(*arguments, **(options or {}))


class Starved(PurifierCompute):
    """A purifier whose memory runs out once."""

    def __init__(self, purifier, at):
        super().__init__(purifier)
        self.mode = RunsOut(at)

    def start(self, images, ids):
        with self.mode:
            return super().start(images, ids)


def purify(purifier, source, output, at):
    events, opened = [], open_source(source, ImageShape(1))
    compute = Starved(purifier, at)
    config = OfflineConfig(part_size=8, batch_size=4, decoders=1)
    told = lambda event, **facts: events.append(event)  # noqa: E731
    summary = run(compute, opened, open_sink(opened, output), config=config, told=told)
    return summary, events.count("out_of_memory"), compute.mode.count


def levels(output):
    return {name: pixels(content) for name, content in files(output).items() if name.endswith(".png")}


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image).astype(int)


def test_the_same_images_are_tried_again_and_none_is_lost(tmp_path, reached):
    purifier = GuidedPurifier.from_pretrained(make_purifier(tmp_path / "purifier"))
    source = make_folder(tmp_path / "in", count=8)
    summary, ran_out, count = purify(purifier, source, tmp_path / "whole", -1)
    assert summary.ok == 8 and ran_out == 0 and count > ALLOCATIONS
    whole = levels(tmp_path / "whole")
    for at in range(1, ALLOCATIONS + 1):
        output = tmp_path / str(at)
        summary, ran_out, _ = purify(purifier, source, output, at)
        assert summary.ok == 8 and not summary.failed and ran_out == 1, f"at operation {at}"
        found = levels(output)
        # A level: convolutions of another batch size round otherwise.
        assert found.keys() == whole.keys() and all(abs(found[name] - whole[name]).max() <= 1 for name in whole)
    reached("out of memory", ALLOCATIONS, asked=50, of="allocations of PyTorch", case="PyTorch")
