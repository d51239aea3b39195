"""All ways that PyTorch offers to change, copy or replace weights: the next images are by the new ones, or one line says why not.

One purifier by the loop and a sibling by recordings stand on the same networks for most of the table, warm from the way before.
"""

from __future__ import annotations

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, vector_to_parameters

from purify_engine import ops
from purify_engine.config import ClassifierConfig, GuidanceConfig, PurifierConfig, UNetConfig
from purify_engine.engine.capture import CaptureError
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.unet import UNet
from purify_engine.purifier import GuidedPurifier
from tests.test_purifier import images
from tests.test_purifier_state import gradient

UNET = UNetConfig(
    image_size=8, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(8,), norm_groups=4
)
GUIDE = ClassifierConfig(
    architecture="cifar_resnet", depth=8, width=4, in_channels=1, num_classes=10, mean=(0.3,), std=(0.4,), activation="relu"
)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def small():
    """A purifier of few layers by the loop, its noise fixed; equal networks every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, guide = UNet(UNET), Classifier(GUIDE)
        for parameter in unet.parameters():  # no layer at its zero initialisation
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    guidance = GuidanceConfig(kind="adversarial", scale=1.0)
    config = PurifierConfig(t_star=100, num_steps=1, guidance=guidance, noise="fixed")
    return GuidedPurifier(Denoiser(unet), guide, config, execution="loop")


class Pair(nn.Module):
    """Two siblings on the same networks, by the loop and by recordings, both warm."""

    def __init__(self):
        super().__init__()
        self.loop = small()
        self.graph = self.loop.configured()
        self.graph.execution = "graph"
        for purifier in (self.loop, self.graph, self.graph):
            purified(purifier)

    def assert_are(self, expected):
        """Both give these images at once, and are warm thereafter."""
        # To rounding: a weight that an optimizer moves is not its aim to the bit.
        for purifier in (self.graph, self.loop, self.graph):
            assert (purified(purifier) - expected).abs().max() < 2e-6


def purified(purifier):
    return purifier(images(2))


def state_of(purifier):
    return {name: tensor.clone() for name, tensor in purifier.state_dict().items()}


@pytest.fixture(scope="module")
def pair():
    return Pair()


@pytest.fixture(scope="module")
def states():
    """Two states of the weights, and what fresh purifiers make of them; the first is the next to take."""
    one, other = small(), small()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.25)
    found = [(state_of(purifier), purified(purifier)) for purifier in (other, one)]
    assert (found[0][1] - found[1][1]).abs().max() > 1e-3
    return found


# Ways to give networks other values


def by_copying(purifier, state):
    with torch.no_grad():
        for name, tensor in purifier.state_dict().items():
            tensor.copy_(state[name])


def by_data_copy(purifier, state):
    for name, tensor in named(purifier):
        tensor.data.copy_(state[name])


def by_data(purifier, state):
    for name, tensor in named(purifier):
        tensor.data = state[name].clone()


def by_numpy(purifier, state):
    for name, tensor in named(purifier):
        tensor.detach().numpy()[...] = state[name].numpy()


def by_a_vector(purifier, state):
    by_data_copy(purifier, {**state, **dict(purifier.named_parameters())})  # the statistics of norms are buffers
    vector = torch.cat([state[name].flatten() for name, _ in purifier.named_parameters()])
    vector_to_parameters(vector, purifier.parameters())


def by_an_optimizer(purifier, state):
    by_data_copy(purifier, {**state, **dict(purifier.named_parameters())})  # the statistics of norms are buffers
    optimizer = torch.optim.SGD(purifier.parameters(), lr=1.0)
    for name, parameter in purifier.named_parameters():
        parameter.requires_grad_(True).grad = parameter.detach() - state[name]
    optimizer.step()
    purifier.requires_grad_(False).zero_grad()


def by_loading(purifier, state):
    purifier.load_state_dict(state)


def by_assigning(purifier, state):
    purifier.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


def by_loading_a_part(purifier, state):
    for name in ("denoiser", "guide"):
        part = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(name)}
        getattr(purifier, name).load_state_dict(part)


def by_loading_in_float64(purifier, state):
    purifier.double()
    purifier.load_state_dict(state)
    purifier.float()


def by_setting_parameters(purifier, state):
    for name, _ in list(purifier.named_parameters()):
        module, _, own = name.rpartition(".")
        setattr(purifier.get_submodule(module), own, nn.Parameter(state[name].clone(), requires_grad=False))
    by_data_copy(purifier, state)  # the statistics of norms are buffers


def by_shared_memory(purifier, state):
    purifier.share_memory()
    by_data_copy(purifier, state)


def named(purifier):
    return purifier.state_dict(keep_vars=True).items()


WAYS = [way for name, way in globals().items() if name.startswith("by_")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_new_values_are_seen_by_the_loop_and_by_recordings(way, pair, states):
    state, expected = states[0]
    way(pair.loop, state)
    pair.assert_are(expected)
    states.reverse()


# Ways to have layers compute something else: here the same as with 1.25 times their weights and biases

LAYERS = ("denoiser.unet.conv_in", "denoiser.unet.encoder.0.attention.qkv", "denoiser.unet.time_embedding.projections.0")
LAYERS += ("guide.conv1", "guide.layer2.0.conv1", "guide.linear")


class Scaled(nn.Module):
    def forward(self, weight):
        return 1.25 * weight


class Adapter(nn.Module):
    """What adapters do: a layer that holds the one in whose place it stands, and passes its weight off as its own."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x, *given, **named):
        return 1.25 * self.base_layer(x, *given, **named)


def parametrized(layer):
    for name in [name for name, parameter in layer.named_parameters(recurse=False)]:
        parametrize.register_parametrization(layer, name, Scaled())
    return layer


def replaced(layer):
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        parameter.mul_(1.25)
    return other


def weight_normed(layer):
    layer = nn.utils.weight_norm(replaced(layer)).requires_grad_(False)
    layer.weight_g.mul_(0.8)  # whose effect a hook computes, and no attribute holds yet
    layer.weight_g.mul_(1.25)
    return layer


def weight_normed_by_parametrization(layer):
    return nn.utils.parametrizations.weight_norm(replaced(layer)).requires_grad_(False)


def pruned(layer):
    """Of nothing but a mask: half of it is 1.25, and so is the other half."""
    for name in [name for name, _ in layer.named_parameters(recurse=False)]:
        prune.custom_from_mask(layer, name, torch.full_like(getattr(layer, name), 1.25))
    return layer


def hooked(layer):
    layer.register_forward_hook(lambda layer, inputs, output: 1.25 * output)
    return layer


@pytest.fixture(scope="module")
def scaled():
    """What a purifier gives whose layers have 1.25 times their weights."""
    purifier = small()
    for name in LAYERS:
        for parameter in purifier.get_submodule(name).parameters():
            parameter.mul_(1.25)
    assert (purified(purifier) - purified(small())).abs().max() > 1e-3
    return purified(purifier)


@pytest.mark.parametrize(
    "way", [parametrized, replaced, Adapter, weight_normed, weight_normed_by_parametrization, pruned, hooked]
)
def test_layers_that_compute_something_else_are_called_by_the_loop_and_by_recordings(way, scaled):
    pair = Pair()
    pair.graph.execution = "auto"  # a hook's step is not replayed, since it may do anything
    for name in LAYERS:
        pair.loop.set_submodule(name, way(pair.loop.get_submodule(name)))
    pair.assert_are(scaled)
    assert (pair.graph.execution_reason is None) == (way is not hooked)


def test_a_hook_is_named_where_graphs_are_insisted_on():
    pair = Pair()
    hooked(pair.loop.guide.conv1)
    with pytest.raises(CaptureError, match="a hook on network.conv1 would not run in a replay; remove it, or"):
        purified(pair.graph)


@pytest.mark.usefixtures("stance")
def test_compiled_networks_and_layers_give_the_same_images():
    purifier = small()
    expected = purified(purifier)
    unet = purifier.denoiser.unet
    torch.compiler.set_stance("force_eager")  # what stands in a network's place matters here, not what runs
    for layers in (unet.encoder, unet.middle, unet.decoder):  # whose shortcuts and skips the U-Net asks the class of
        for index, layer in enumerate(layers):
            layer.block.shortcut = torch.compile(layer.block.shortcut, backend="eager")
            layers[index] = torch.compile(layer, backend="eager")
    assert (purified(purifier) - expected).abs().max() < 2e-6
    purifier.denoiser.unet = torch.compile(unet, backend="eager")
    purifier.guide = torch.compile(purifier.guide, backend="eager")
    assert (purified(torch.compile(purifier, backend="eager")) - expected).abs().max() < 2e-6


@pytest.fixture
def stance():
    yield
    torch.compiler.set_stance("default")


# Copies


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def to_another_process(module):
    """As torch.multiprocessing hands a module on: the memory is shared."""
    return pickle.loads(ForkingPickler.dumps(module))


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, by_pickle, by_torch_save, to_another_process])
def test_copies_are_siblings_with_weights_of_their_own_unless_memory_is_shared(way, pair, states):
    (state, expected), (present, at_present) = states
    by_loading(pair.loop, present)
    copied = way(pair)
    copied.assert_are(at_present)
    assert copied.loop.denoiser is copied.graph.denoiser
    by_loading(copied.loop, state)
    copied.assert_are(expected)
    pair.assert_are(expected if way in (copy.copy, to_another_process) else at_present)


def test_a_call_with_parameters_of_others_is_by_those_and_leaves_no_trace(pair, states):
    (state, expected), (present, at_present) = states
    by_loading(pair.loop, present)
    for purifier in (pair.loop, pair.graph, pair.graph):
        found = torch.func.functional_call(purifier, state, (images(2),))
        assert (found - expected).abs().max() < 2e-6
        assert (purified(purifier) - at_present).abs().max() < 2e-6


# What is refused


def quantised(purifier):
    return torch.ao.quantization.quantize_dynamic(purifier, {nn.Linear}, dtype=torch.qint8)


def adapted(purifier):
    block = purifier.denoiser.unet.middle[0].block
    block.conv1 = Adapter(block.conv1)


def of_two_dtypes(purifier):
    purifier.denoiser.unet.middle[0].block.conv1.double()


def thawed(purifier):
    nn.utils.weight_norm(purifier.denoiser.unet.conv_in)


def of_inference_tensors(purifier):
    with torch.inference_mode():
        return small()


REFUSED = {
    quantised: r"denoiser.unet.time_embedding.mlp.0 must be a layer of floats; 16 bits are had by purifier.to(torch.bfloat16), "
    "got 'Linear of torch.ao.nn.quantized.dynamic.modules.linear'",
    adapted: "denoiser.unet.middle.0.block.conv1 must be Conv3x3, which is given more than an image: merge adapters first "
    "(peft's: merge_and_unload()), got 'Adapter'",
    of_two_dtypes: "denoiser.unet.middle.0.block.conv1 must be torch.float32, as the layers before it are, got torch.float64",
    thawed: "network parameters must be frozen",
    of_inference_tensors: "the guide must be made outside torch.inference_mode()",
}


@pytest.mark.parametrize("way", REFUSED, ids=lambda way: way.__name__)
@pytest.mark.parametrize("execution", ["loop", "auto"])
def test_what_cannot_be_used_is_named_in_one_line(way, execution):
    purifier = small()
    purified(purifier)
    changed = way(purifier) or purifier
    changed.execution = execution
    with pytest.raises(ValueError) as raised:
        purified(changed)
    assert REFUSED[way] in str(raised.value) and "\n" not in str(raised.value)


def test_a_purifier_loaded_in_inference_mode_is_an_ordinary_one():
    with torch.inference_mode():
        purifier = GuidedPurifier.from_pretrained("digits")
    assert not any(tensor.is_inference() for tensor in (*purifier.parameters(), *purifier.buffers()))


# Writes that PyTorch does not count


def by_unet_alone(purifier):
    return purifier.denoiser.unet((2 * images(2) - 1).to(memory_format=torch.channels_last), torch.tensor([50]))


@pytest.mark.parametrize("call", [lambda purifier: gradient(purifier, images(2)), by_unet_alone], ids=["gradient", "unet"])
def test_gradients_and_a_unet_alone_see_what_is_written_into_data(call, states):
    (state, _), _ = states
    used, fresh = small(), small()
    before = call(used)
    for purifier in (used, fresh):
        by_data_copy(purifier, state)
    expected = call(fresh)
    assert (call(used) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (before - expected).abs().max() > 1e-3 * expected.abs().max()


def test_the_purifier_that_is_called_first_notices_for_all_that_share_a_network(states):
    """A network has one probe: a sibling that comes later must not take what it finds for what was there before."""
    (state, expected), _ = states
    pair = Pair()
    by_data_copy(pair.loop, state)
    assert (purified(pair.loop.configured()) - expected).abs().max() < 2e-6
    pair.assert_are(expected)


def test_nothing_is_made_anew_while_nothing_is_written(monkeypatch):
    pair, counted = Pair(), []
    monkeypatch.setattr("purify_engine.ops.count_writes", lambda tensors: counted.append(len(tensors)))
    pair.loop.guide.bn1.weight[0] = float("nan")  # which equals itself here
    for purifier in (pair.loop, pair.graph, pair.loop):
        purified(purifier)
    assert counted == []
    pair.loop.guide.bn1.weight.data[0] = 1.0
    purified(pair.loop)
    assert counted == [len(pair.loop.guide.state_dict()) + 2]  # the mean and the deviation are no part of the state


@pytest.mark.parametrize("shape", [(), (1,), (3,), (40, 9, 3, 3), (7, 0)], ids=str)
@pytest.mark.parametrize("layout", ["dense", "transposed", "every second", "repeated"])
def test_a_write_to_a_whole_tensor_is_seen_whatever_its_layout(shape, layout):
    for dtype in (torch.float32, torch.int64, torch.complex64, torch.bfloat16):
        memory = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape).to(dtype)
        if layout == "every second":
            memory = memory[..., None].repeat(*(1 for _ in shape), 2)
        views = {"transposed": memory.t() if memory.dim() < 3 else memory.mT, "repeated": memory.expand(5, *memory.shape)}
        sample = ops.TensorSample([memory[..., 0] if layout == "every second" else views.get(layout, memory)])
        assert not any(sample.differs())
        memory.neg_()
        assert any(sample.differs()) == (memory.numel() > 0)


# nn.DataParallel


def replica_of(module):
    """As torch.nn.parallel.replicate makes one, on the CPU."""
    modules = list(module.modules())
    replicas = {one: one._replicate_for_data_parallel() for one in modules}
    for one, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in one._modules.items():
            setattr(replica, name, child) if child is None else setattr(replica, name, replicas[child])
        for name, parameter in one._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.clone())
                replica._former_parameters[name] = getattr(replica, name)
        for name, buffer in one._buffers.items():
            setattr(replica, name, None if buffer is None else buffer.clone())
    return replicas[module]


def test_a_replica_of_data_parallel_purifies_by_the_loop_with_its_own_weights(states):
    (state, expected), _ = states
    pair, x = Pair(), images(2)
    pair.graph.execution = "auto"
    replica = replica_of(pair.graph)
    assert list(replica.parameters()) == []
    assert replica.execution_reason == "a replica of nn.DataParallel lives for one call, and so would what it records"
    assert (purified(replica) - purified(pair.graph)).abs().max() < 2e-6
    found, wanted = gradient(replica, x), gradient(pair.graph, x)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    by_loading(pair.graph, state)
    assert (purified(replica_of(pair.graph)) - expected).abs().max() < 2e-6
    pair.assert_are(expected)  # nothing of theirs is taken for the network's own
    pair.graph.requires_grad_()
    with pytest.raises(ValueError, match="must be frozen to differentiate a purifier .* first 'unet.conv_in.weight'"):
        replica_of(pair.graph)(x)
    assert "cpu" in repr(replica)
