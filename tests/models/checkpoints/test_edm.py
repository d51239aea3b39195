"""EDM's pickles: read without running what they hold, recognised, and what the network makes of x_t is EDM's own eps."""

import contextlib
import os
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from purify_engine.config import ScheduleConfig
from purify_engine.engine.plan import write_plan
from purify_engine.models import Denoiser
from purify_engine.models.checkpoints.edm import EDM
from purify_engine.models.checkpoints.layout import shapes_of
from purify_engine.models.checkpoints.pickled import KNOWN, Recorded, read_pickle
from purify_engine.models.checkpoints.registry import recognised
from purify_engine.models.published import EDM_CIFAR10
from purify_engine.reference.schedules import make_schedule
from purify_engine.testing.published import edm as theirs
from purify_engine.testing.published.edm_pickle import pickled
from tests.models.checkpoints import plain_networks
from tests.models.checkpoints.translations import (
    comes_back,
    every_broken_shape_is_one_line,
    largest_difference,
    on_meta,
    our_unet,
)

RUNNING = {"exec", "compile", "import", "os.mkdir", "os.system", "subprocess.Popen"}
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tensors():
    return theirs.state_dict(**theirs.SMALL)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network-snapshot.pkl"


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
def test_the_denoiser_is_theirs(tensors, dtype, most):
    denoiser = Denoiser(our_unet(EDM, tensors, dtype=dtype))
    double = {name: tensor.double() for name, tensor in tensors.items()}
    plan = write_plan(make_schedule(ScheduleConfig()), 1000, 4)
    for step, (signal, sigma) in zip(plan.steps, plan.marginals.tolist(), strict=True):
        y, s = X / signal, sigma / signal  # x_t, scaled as EDM has it
        wanted = (y - plain_networks.edm(double, y, s, **theirs.SMALL)) / s
        assert largest_difference(denoiser(X.to(dtype), plan, step), wanted) < most


def test_a_broken_file_is_refused_in_one_line(tensors):
    assert every_broken_shape_is_one_line(EDM, tensors, {})


def test_what_was_read_is_written_back_to_the_bit(tensors):
    assert comes_back(EDM, our_unet(EDM, tensors, dtype=torch.float32), tensors)


def test_the_published_network_is_recognised_and_read_whole():
    tensors = theirs.state_dict(device="meta", **theirs.CIFAR10)
    config, parameters, unread = on_meta(EDM, tensors)
    assert (config, parameters) == (EDM_CIFAR10, 55_733_891 - 9 * 128)
    assert unread == {name for name in tensors if "resample_filter" in name or "map_augment" in name}


def test_other_sizes_are_read_off_the_names():
    config, *_ = on_meta(
        EDM,
        theirs.state_dict(
            device="meta", **{**theirs.SMALL, "img_resolution": 64, "channel_mult": (1, 2, 2), "attn_resolutions": (16,)}
        ),
    )
    assert (config.image_size, config.channel_mult, config.attention_resolutions) == (64, (1, 2, 2), (16,))


WATCHERS = []


@contextlib.contextmanager
def watched():
    """What is compiled, run or imported meanwhile. A hook cannot be taken out again: there is one."""
    if not WATCHERS:
        WATCHERS.append(None)
        sys.addaudithook(lambda event, _: event in RUNNING and WATCHERS[-1] is not None and WATCHERS[-1].append(event))
    WATCHERS.append([])
    try:
        yield WATCHERS[-1]
    finally:
        WATCHERS.pop()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_is_read_and_nothing_of_it_run(tensors, path, protocol):
    crater = path.with_name("crater")
    path.write_bytes(pickled(tensors, protocol=protocol, source=f"import os; os.mkdir({str(crater)!r})"))
    read_pickle(path)  # whatever PyTorch imports on first use
    with watched() as seen:
        read = EDM.unwrap(read_pickle(path))
    assert not seen and not crater.exists() and not {"torch_utils", "dnnlib"} & set(sys.modules)
    with watched() as seen:
        exec("1")
    assert seen
    assert set(read) == set(tensors) and all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


class Bomb:
    def __init__(self, path, function=os.mkdir):
        self.path, self.function = path, function

    def __reduce__(self):
        return self.function, (str(self.path),)


@pytest.mark.parametrize("function", [os.mkdir, eval, exec, getattr, np.load, torch.load, pickle.loads], ids=lambda f: f.__name__)
@pytest.mark.parametrize("within", [lambda bomb: bomb, lambda bomb: {"ema": OrderedDict(a=[bomb])}], ids=["bare", "within"])
def test_whatever_else_a_pickle_names_is_refused(path, function, within):
    crater = path.with_name("crater")
    path.write_bytes(pickle.dumps(within(Bomb(crater, function)), protocol=4))
    with pytest.raises(ValueError, match=rf"holds [\w.]*{function.__name__}, which only running code") as error:
        read_pickle(path)
    assert not crater.exists() and "\n" not in str(error.value)


def test_a_pickle_cannot_change_what_reads_it(path):
    """BUILD on a stand-in or on a recorder's class would be kept for the next file."""
    before = {name: dict(vars(known)) for name, known in KNOWN.items() if isinstance(known, type)}
    for (module, name), known in KNOWN.items():
        code = b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"N}\x8c\x08_functionK\x01s\x86b."
        path.write_bytes(code)
        if known is set or known is dict or known is OrderedDict:
            continue
        with pytest.raises(ValueError, match="damaged"):
            read_pickle(path)
    assert before == {name: dict(vars(known)) for name, known in KNOWN.items() if isinstance(known, type)}


def test_a_file_cut_anywhere_is_one_line(tensors, path):
    path.write_bytes(pickled(tensors))
    whole = path.read_bytes()
    for length in (0, 1, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged, cut short, or no pickle of a network") as error:
            read_pickle(path)
        assert "\n" not in str(error.value)


def module_with(**modules):
    made = Recorded()
    made.__setstate__({"_modules": modules})
    return made


def test_modules_that_are_no_small_tree_are_refused():
    """A few bytes of a pickle could hold more modules than can be walked."""
    ring, twice, chain = module_with(), module_with(), module_with()
    ring.state["_modules"]["again"] = ring
    for _ in range(32):
        chain = module_with(inner=chain)
    for hostile in (ring, module_with(one=twice, other=twice), chain):
        with pytest.raises(ValueError, match="must hold a tree of modules, at most 32 within one another"):
            list(hostile.tensors())
    assert not list(chain.state["_modules"]["inner"].tensors())


OTHER_PICKLES = {
    "VP": ({"class_name": "VPPrecond"}, "got one under 'VPPrecond'"),
    "ADM": ({"architecture": "DhariwalUNet"}, "got the architecture 'DhariwalUNet'"),
    "scale": ({"sigma_data": 1.0}, "got one with sigma_data 1.0"),
}


@pytest.mark.parametrize(("options", "reason"), OTHER_PICKLES.values(), ids=OTHER_PICKLES.keys())
def test_other_networks_of_edm_are_refused_by_their_classes(tensors, path, options, reason):
    path.write_bytes(pickled(tensors, **options))
    with pytest.raises(ValueError, match=f"must be an unconditional DDPM.*{reason}$"):
        EDM.unwrap(read_pickle(path))


def test_another_filter_is_refused_by_its_values(tensors, path):
    path.write_bytes(
        pickled({name: tensor / 2 if name.endswith("resample_filter") else tensor for name, tensor in tensors.items()})
    )
    with pytest.raises(ValueError, match=r"got one that resamples by the filter \[0.125, 0.125, 0.125, 0.125\]$"):
        EDM.unwrap(read_pickle(path))


OTHER_NAMES = {
    "classes": ({"model.map_label.weight": (32, 10)}, "conditional on classes"),
    "Fourier": ({"model.map_noise.freqs": (16,)}, "NCSN.., told the noise by Fourier features"),
    "residual": ({"model.enc.4x4_aux_residual.weight": (64, 3, 3, 3)}, "NCSN.., with a progressive"),
    "ADM": ({"model.out_conv.weight": (3, 64, 3, 3)}, "an ADM network of ImageNet-64"),
    "filter": ({"model.enc.4x4_down.skip.resample_filter": (1, 1, 4, 4)}, r"a filter of shape \(1, 1, 4, 4\)"),
}


@pytest.mark.parametrize(("more", "reason"), OTHER_NAMES.values(), ids=OTHER_NAMES.keys())
def test_other_networks_of_edm_are_refused_by_their_names(tensors, more, reason):
    with pytest.raises(ValueError, match=reason) as error:
        recognised({**shapes_of(tensors), **more}, [EDM], "a test")
    assert "\n" not in str(error.value)


def test_other_files_are_not_this_layouts(tensors):
    assert EDM.unwrap({"state_dict": tensors}) is None and EDM.unwrap(None) is None
    assert EDM.recognise({"conv_in.weight": (1,)}, {}) is None
