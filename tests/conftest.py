"""What tests of several floors share: a small purifier in a folder of its own, a Hub, and what reaches the disk."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run on CPU tensors, in its interpreter
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: threads that wait for one another would stall all
    torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job, and tests of Ctrl-C would wait for nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
# Files that take half a minute to minutes, the longest first: begun first, so that no process is left alone with one at the end.
LONG = (
    "tests/test_packaging.py",
    "tests/kernels/test_ahead_of_time.py",
    "tests/test_fake_gpu.py",
    "tests/test_bench.py",
    "tests/test_bench_opponents.py",
    "tests/engine/test_gradients.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / name: place for place, name in enumerate(LONG)}
    assert all(path.is_file() for path in places)
    items.sort(key=lambda item: places.get(item.path, len(LONG)))  # a stable sort: all else stays in its order


@pytest.fixture(autouse=True)
def _under_a_debugger_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested of replays is tested under a debugger or a coverage tool, too, where purifiers would run their loop."""
    from purify_engine.engine.trace_functions import is_python_traced

    if is_python_traced():
        monkeypatch.setattr("purify_engine.engine.purification.is_python_traced", lambda: False)


@pytest.fixture(scope="session")
def small_purifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved purifier for 1x8x8 images: random weights, three steps, guided, with a classifier beside it."""
    from purify_engine import (
        Classifier,
        ClassifierConfig,
        Denoiser,
        GuidanceConfig,
        GuidedPurifier,
        PurifierConfig,
        UNet,
        UNetConfig,
    )
    from purify_engine.folders import write_config
    from purify_engine.models.checkpoints import save_safetensors

    folder = tmp_path_factory.mktemp("small") / "purifier"
    grey = {"in_channels": 1, "mean": (0.3,), "std": (0.4,)}
    network = ClassifierConfig(architecture="cifar_resnet", depth=8, width=8, activation="silu", **grey)
    small = {"image_size": 8, "in_channels": 1, "base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
    unet = UNetConfig(**small, attention_resolutions=(), norm_groups=4)
    config = PurifierConfig(t_star=30, num_steps=3, sampler="ddim", eta=1.0, guidance=GuidanceConfig(scale=1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        purifier = GuidedPurifier(Denoiser(UNet(unet)), Classifier(network), config)
        classifier = Classifier(network).eval()
    purifier.save_pretrained(folder)
    save_safetensors(classifier, folder / "classifier.safetensors")
    trained = {"guide": {"attack": {"norm": "linf", "epsilon": 0.15}}}  # what evaluations take for the radius
    write_config(folder, unet=unet, guide=network, classifier=network, purifier=config, training=trained)
    return folder


@pytest.fixture
def disk_calls(monkeypatch):
    """What reaches the disk, in order: ("fsync", path of a file or folder) and ("rename", from, to)."""
    seen = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor):
        seen.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def noted_replace(path, target):
        seen.append(("rename", Path(path), Path(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return seen


@pytest.fixture
def hub(monkeypatch):
    """A Hub that gives the folders of its attribute, by revision, and notes what it is asked for."""
    fake = SimpleNamespace(folders={}, asked=[])

    def snapshot_download(repo_id, *, revision, **how):
        fake.asked.append((repo_id, revision, how))
        if revision not in fake.folders:
            raise OSError(f"404: Revision Not Found for {revision}\n\nCheck the name.")  # as huggingface_hub's errors are
        return str(fake.folders[revision])

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return fake
