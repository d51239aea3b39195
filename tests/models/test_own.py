"""Networks of one's own: any module as a denoiser or a guide, with the same images and gradients as if it were ours."""

from __future__ import annotations

import copy
import json
import pickle
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from purify_engine.config import GuidanceConfig, OwnDenoiserConfig, PurifierConfig, to_dict
from purify_engine.models import Denoiser
from purify_engine.models.own import OwnDenoiser, OwnGuide
from purify_engine.purifier import GuidedPurifier
from tests.test_purifier import images, purifier


class Block(nn.Module):
    """A basic block as torchvision's, smooth so that finite differences are of use."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.SiLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class ResNet(nn.Module):
    """The structure of torchvision's ResNet: conv1 … avgpool, fc."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.SiLU()
        self.layer1 = nn.Sequential(Block(4, 6, 1))
        self.layer2 = nn.Sequential(Block(6, 8, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def as_it_is(out):
    return out


class Predicts(nn.Module):
    """A network that is told an integer time, which it looks up."""

    def __init__(self, out_channels: int = 1, put_out=as_it_is) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(1, 8, 3, padding=1)
        self.time = nn.Embedding(1000, 8)
        self.conv_out = nn.Conv2d(8, out_channels, 3, padding=1)
        self.put_out = put_out

    def forward(self, x, t):
        return self.put_out(self.conv_out(nn.functional.silu(self.conv_in(x) + self.time(t)[:, :, None, None])))


def seeded(make, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments)


def own(denoiser=None, guide=None, *, execution="auto", scale=300.0, dtype=torch.float32, **options):
    """A purifier of fixed noise whose two networks are no networks of ours."""
    denoiser = denoiser or OwnDenoiser(seeded(Predicts), image_size=8, in_channels=1)
    guide = guide or OwnGuide(seeded(ResNet), mean=(0.3,), std=(0.4,))
    how = GuidanceConfig(scale=scale)
    config = PurifierConfig(t_star=100, num_steps=3, noise="fixed", guidance=how, clamp=False, **options)
    return GuidedPurifier(denoiser, guide, config, execution=execution).to(dtype)


def gradient(model, x):
    x = x.clone().requires_grad_()
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    return torch.autograd.grad((weights * model(x)).sum(), x)[0]


# Ours through the adapters is ours


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_our_own_network_through_the_adapter_purifies_as_it_does_itself(prediction):
    ours = purifier(scale=0.0, noise="fixed").to(torch.float64)
    unet = copy.deepcopy(ours.denoiser.unet)
    unet.config = copy.copy(unet.config)
    object.__setattr__(unet.config, "prediction", prediction)
    expected = GuidedPurifier(Denoiser(unet), None, ours.config)(images(2, dtype=torch.float64))
    adapted = OwnDenoiser(unet, image_size=8, in_channels=1, num_halvings=1, predicts=prediction)
    found = GuidedPurifier(adapted, None, ours.config)(images(2, dtype=torch.float64))
    assert (found - expected).abs().max() < 1e-12


def test_our_own_classifier_through_the_adapter_guides_as_it_does_itself():
    ours = purifier(noise="fixed").to(torch.float64)
    ours.execution, x = "loop", images(1, dtype=torch.float64)
    other = GuidedPurifier(ours.denoiser, OwnGuide(copy.deepcopy(ours.guide)), ours.config, execution="loop")
    assert (other(x) - ours(x)).abs().max() < 1e-12
    assert (gradient(other, x) - gradient(ours, x)).abs().max() < 1e-12
    assert (other(x) - ours.configured(guidance=GuidanceConfig(kind="none"))(x)).abs().max() > 1e-6


# A torchvision-like guide and a network that is told integers


@pytest.mark.parametrize("execution", ["loop", "graph"])
def test_the_gradient_is_that_of_finite_differences(execution):
    model, x = own(execution=execution, dtype=torch.float64), images(1, dtype=torch.float64) * 0.5 + 0.25
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    weights, h = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x), 1e-5
    for _ in range(3):  # a recording runs, is recorded, and is replayed
        slope = (gradient(model, x) * direction).sum()
    difference = (weights * (model(x + h * direction) - model(x - h * direction))).sum() / (2 * h)
    assert abs(slope - difference) < 1e-6 * abs(slope)


def test_second_derivatives_are_those_of_finite_differences():
    model, x = own(execution="loop", dtype=torch.float64), images(1, dtype=torch.float64) * 0.5 + 0.25
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    leaf, h = x.clone().requires_grad_(), 1e-4
    (slope,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, leaf, direction)
    one, other = (leaf.detach().add(sign * h * direction).requires_grad_() for sign in (1, -1))
    slopes = [torch.autograd.grad(model(at).square().sum(), at)[0] for at in (one, other)]
    difference = (slopes[0] - slopes[1]) / (2 * h)
    assert (curvature - difference).abs().max() < 1e-5 * curvature.abs().max()


def test_a_recording_gives_the_loops_images_for_other_seeds_and_images_too():
    loop, graph = own(execution="loop"), own(execution="graph")
    for seed in range(3):
        x = images(2, seed=seed)
        assert torch.equal(graph(x), loop(x))
        assert torch.equal(gradient(graph, x), gradient(loop, x))
        loop.reseed(seed), graph.reseed(seed)


def test_the_features_are_the_named_layers_output_or_what_the_last_linear_layer_reads():
    network, x = seeded(ResNet).eval(), images(3)
    features, logits = OwnGuide(network).features_and_logits(x)
    pooled = OwnGuide(network, features="avgpool").features_and_logits(x)[0]
    middle = OwnGuide(network, features="layer1").features_and_logits(x)[0]
    assert torch.equal(features, pooled) and features.shape == (3, 8)
    assert torch.equal(network.fc(features), logits) and torch.equal(logits, network(x))
    assert middle.shape == (3, 6 * 8 * 8)


def test_a_normalisation_stands_before_the_module():
    network, x = seeded(ResNet).eval(), images(3)
    normalised = network((x - torch.tensor(0.3)) / torch.tensor(0.4))
    for kind in (tuple, list, torch.tensor):
        guide = OwnGuide(network, mean=kind([0.3]), std=kind([0.4]))
        assert torch.equal(guide(x), normalised)
        assert json.loads(json.dumps(to_dict(guide.config)))["mean"] == pytest.approx([0.3])


def test_what_passes_the_layer_in_another_thread_or_another_call_is_not_seen():
    class Meets(ResNet):
        """In the middle of a call, waits for another thread to run the same network."""

        def forward(self, x):
            logits = super().forward(x)
            if threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=lambda: super(Meets, self).forward(x[:1] + 1))
                thread.start()
                thread.join()
            return logits

    network = seeded(Meets).eval()
    guide, x = OwnGuide(network), images(3)
    features, _ = guide.features_and_logits(x)
    network(x + 1)
    assert torch.equal(features, seeded(ResNet).eval().avgpool(network.layer2(network.layer1(network.relu(
        network.bn1(network.conv1(x)))))).flatten(1))  # fmt: skip
    assert guide._passing.seen is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_copy_has_networks_and_features_of_its_own(copied):
    model, x = own(), images(2)
    other, before = copied(model), model(x)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        model.guide.module.fc.weight.zero_()
    assert torch.equal(other(x), before) and not torch.equal(model(x), before)


READS = {
    "item": lambda t: t[0].item(), "tolist": lambda t: t.tolist()[0], "numpy": lambda t: float(t.numpy()[0]),
    "array": lambda t: float(np.asarray(t)[0]), "dlpack": lambda t: float(np.from_dlpack(t)[0]),
}  # fmt: skip


@pytest.mark.parametrize("read", READS)
def test_a_module_that_reads_its_time_in_python_is_not_recorded_and_says_why(read):
    class Reads(Predicts):
        def forward(self, x, t):
            return super().forward(x, t) * (1 + READS[read](t) / 1000)

    auto = own(OwnDenoiser(seeded(Reads), image_size=8, in_channels=1), scale=0.0)
    found = auto(images(2))
    assert auto.execution_reason.startswith("the step could not be recorded: ")
    assert torch.equal(found, auto(images(2))) and not torch.equal(found, own(scale=0.0, execution="loop")(images(2)))


# What a denoiser is told, and what it puts out


@pytest.mark.parametrize(
    ("takes", "told", "dtype"),
    [("index", [99, 66, 32], torch.int64), ("float", [99.0, 66.0, 32.0], torch.float32),
     ("fraction", [0.2, 67 / 500, 33 / 500], torch.float32)],
)  # fmt: skip
def test_the_module_is_told_the_time_of_every_image(takes, told, dtype):
    seen = []

    class Notes(nn.Conv2d):
        def forward(self, x, t):
            seen.append(t)
            return super().forward(x)

    denoiser = OwnDenoiser(Notes(1, 1, 1).bfloat16(), image_size=8, in_channels=1, takes=takes, num_timesteps=500)
    config = PurifierConfig(t_star=100, num_steps=3)
    GuidedPurifier(denoiser, None, config, execution="loop")(images(2))
    assert [t.tolist() for t in seen] == [pytest.approx([t, t]) for t in told]
    assert {t.dtype for t in seen} == {dtype}


@pytest.mark.parametrize("put_out", [lambda out: (out, None), lambda out: SimpleNamespace(sample=out)], ids=["tuple", "sample"])
def test_a_tuple_or_an_object_with_a_sample_is_taken(put_out):
    plain, wrapped = seeded(Predicts), seeded(Predicts, 1, put_out)
    one, other = (own(OwnDenoiser(network, image_size=8, in_channels=1)) for network in (plain, wrapped))
    assert torch.equal(one(images(2)), other(images(2)))


def test_a_learned_variance_is_handed_on_where_the_sampler_reads_it():
    learns = OwnDenoiser(seeded(Predicts, 2), image_size=8, in_channels=1, learned_variance=True)
    learned, fixed = own(learns, sampler="ddpm_learned"), own(learns)
    found, other = learned(images(2)), fixed(images(2))
    assert found.isfinite().all() and (found - other).abs().max() > 1e-3
    with pytest.raises(ValueError, match="^sampler must be another where"):
        own(sampler="ddpm_learned")


def test_images_of_other_sizes_are_taken_where_the_halvings_fit():
    denoiser = OwnDenoiser(seeded(Predicts), image_size=8, in_channels=1, num_halvings=2)
    model = own(denoiser, sizes="native")
    assert model(torch.rand(1, 1, 12, 16)).shape == (1, 1, 12, 16)
    with pytest.raises(ValueError, match="multiples of 4"):
        model(torch.rand(1, 1, 12, 10))


# What is refused, in one line


def shaped(*shape):
    return OwnDenoiser(seeded(Predicts, 1, lambda out: out.new_zeros(shape)), image_size=8, in_channels=1)


def made_in_inference_mode():
    with torch.inference_mode():
        return OwnGuide(ResNet())


REFUSED = {
    "a bare denoiser": (lambda: own(seeded(Predicts)), TypeError, r"^denoiser must be .* OwnDenoiser\(module, .*got Predicts$"),
    "our U-Net alone": (lambda: own(purifier().denoiser.unet), TypeError, r"^denoiser must be a Denoiser\(unet\), .*got UNet$"),
    "no module": (lambda: own(lambda x, t: x), TypeError, "^denoiser must be .*got function$"),
    "a bare guide": (lambda: own(guide=seeded(ResNet)), TypeError, r"^guide must be .* OwnGuide\(module\) .*got ResNet$"),
    "a function": (lambda: OwnDenoiser(lambda x, t: x, image_size=8), TypeError, "^module must be an nn.Module, got function$"),
    "no parameters": (lambda: OwnGuide(nn.Flatten()), ValueError, "^module must be one with parameters, .*'Flatten'$"),
    "no such layer": (lambda: OwnGuide(ResNet(), features="pool"), ValueError, "^features must be .* avgpool, fc, got 'pool'$"),
    "no linear layer": (lambda: OwnGuide(nn.Conv2d(1, 1, 1)), ValueError, "^features must be .* no nn.Linear, got None$"),
    "inference tensors": (made_in_inference_mode, ValueError, "^module must be made outside torch.inference_mode"),
    "half a normalisation": (lambda: OwnGuide(ResNet(), mean=(0.5,)), ValueError, "^std must be given where mean is"),
    "one number for all": (lambda: OwnGuide(ResNet(), mean=0.5, std=0.5), ValueError, r"^mean must be numbers, .*, got 0\.5$"),
    "another number of channels": (
        lambda: own(guide=OwnGuide(ResNet(), mean=(0.5, 0.5), std=(1, 1)))(images(2)), ValueError, "^mean must be for 1 channel"),
    "half a pixel": (lambda: OwnDenoiser(Predicts(), image_size=8.5), ValueError, r"^image_size must be a whole .* got 8\.5$"),
    "another number of logits": (
        lambda: own(guide=OwnGuide(ResNet(), num_classes=7))(images(2)), ValueError, r"^module\(images\) must be \[2, 7\], got"),
    "another shape": (lambda: own(shaped(2, 3, 8, 8))(images(2)), ValueError, r"^module\(x_t, t\) must be \[2, 1, 8, 8\] for .*"),
    "an unknown time": (
        lambda: OwnDenoiser(Predicts(), image_size=8, takes="sigma"), ValueError, "^takes must be one of index, float, fraction"),
    "shifted twice": (
        lambda: own(OwnDenoiser(Predicts(), image_size=8, takes="fraction"), sampler="vp_sde", time_labels="diffpure"),
        ValueError, "^time_labels must be index"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case):
    call, kind, match = REFUSED[case]
    with pytest.raises(kind, match=match) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_head_is_the_linear_layer_that_runs_last_wherever_it_stands():
    class HeadFirst(ResNet):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(8, 8)

        def forward(self, x):
            pooled = self.avgpool(self.layer2(self.layer1(self.bn1(self.conv1(x))))).flatten(1)
            return self.fc(pooled * self.gate(pooled).sigmoid())

    network = seeded(HeadFirst).eval()
    features, logits = OwnGuide(network).features_and_logits(images(2))
    assert torch.equal(network.fc(features), logits)


def test_a_layer_that_does_not_run_is_refused():
    class Unused(ResNet):
        def __init__(self):
            super().__init__()
            self.aux = nn.Linear(8, 10)

    network = seeded(Unused).eval()
    with pytest.raises(ValueError, match="^features must be the name of a layer that runs once for all images, got 'aux'$"):
        own(guide=OwnGuide(network, features="aux"))(images(2))
    assert torch.equal(OwnGuide(network).features_and_logits(images(2))[0], OwnGuide(seeded(ResNet).eval())
                       .features_and_logits(images(2))[0])  # fmt: skip


def test_a_network_without_a_gradient_is_refused_where_one_is_asked_for():
    model = own(OwnDenoiser(seeded(Predicts, 1, torch.Tensor.detach), image_size=8, in_channels=1))
    assert model(images(2)).isfinite().all()
    with pytest.raises(ValueError, match=r"^module\(x_t, t\) must have a gradient in the images"):
        gradient(model, images(2))


# Saving


def test_saved_weights_come_back_into_the_modules_that_are_handed_in(tmp_path):
    class Tied(Predicts):
        def __init__(self):
            super().__init__()
            self.again = self.conv_out  # whose weights the folder holds twice

    settings = {"image_size": 8, "in_channels": 1, "num_halvings": 1, "predicts": "v"}
    model = own(OwnDenoiser(seeded(Tied), **settings), OwnGuide(seeded(ResNet), features="avgpool", mean=(0.3,), std=(0.4,)))
    model.save_pretrained(tmp_path)
    again = GuidedPurifier.from_pretrained(tmp_path, denoiser=Tied(), guide=ResNet())
    assert again.denoiser.config == model.denoiser.config and again.guide.config == model.guide.config
    assert torch.equal(again(images(2)), model(images(2)))
    adapted = GuidedPurifier.from_pretrained(tmp_path, denoiser=again.denoiser, guide=again.guide)
    assert adapted.denoiser is again.denoiser and adapted.guide is again.guide
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "own_denoiser.safetensors", "own_guide.safetensors"}


def test_a_folder_of_other_networks_needs_the_modules_and_takes_no_others(tmp_path):
    own().save_pretrained(tmp_path / "own")
    purifier().save_pretrained(tmp_path / "ours")
    another = OwnDenoiser(Predicts(), image_size=8, in_channels=1, predicts="v")
    normalised = OwnGuide(ResNet(), mean=(0.5,), std=(0.5,))
    cases = [
        ("own", {}, r"^denoiser must be the 'Predicts' whose weights .*: from_pretrained\(\.\.\., denoiser=module\), got None$"),
        ("own", {"denoiser": Predicts()}, r"^guide must be the 'ResNet' whose weights .* guide=module\), got None$"),
        ("own", {"denoiser": Predicts(2), "guide": ResNet()}, r"own_denoiser\.safetensors belongs to another network: conv_out"),
        ("own", {"denoiser": Predicts(), "guide": ResNet(7)}, r"own_guide\.safetensors belongs to another network: fc"),
        ("ours", {"denoiser": Predicts()}, "^denoiser must be left out, as .* holds no network that needs it, got 'Predicts'$"),
        ("ours", {"guide": ResNet()}, "^guide must be left out, as"),
        ("own", {"denoiser": another, "guide": ResNet()}, "^denoiser's predicts must be 'eps', as saved; .*, got 'v'$"),
        ("own", {"denoiser": Predicts(), "guide": normalised}, r"^guide's mean must be \(0\.3,\), as saved; .*, got \(0\.5,\)$"),
    ]
    for folder, handed, match in cases:
        with pytest.raises(ValueError, match=match) as error:
            GuidedPurifier.from_pretrained(tmp_path / folder, **handed)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="^denoiser must be the 'Predicts' .*, got type$"):
        GuidedPurifier.from_pretrained(tmp_path / "own", denoiser=Predicts)


def test_a_network_that_fits_the_protocol_alone_is_not_saved(tmp_path):
    class Fits(Predicts):
        config, reads_x_t = OwnDenoiserConfig(image_size=8, in_channels=1), False

        def forward(self, x_net, plan, step):
            return super().forward(x_net, plan.times.index_select(0, step.reshape(1)).long())

    model = own(seeded(Fits))
    assert (model(images(2)) - own()(images(2))).abs().max() < 1e-6
    with pytest.raises(TypeError, match="^denoiser must be an OwnDenoiser or a Denoiser to be saved, got Fits$"):
        model.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_examples_of_the_documentation_run(tmp_path):
    """Those up to the section on diffusers, which tests/integrations/test_diffusers.py runs."""
    page = (Path(__file__).parents[2] / "docs" / "own_networks.md").read_text()
    given = {"resnet": seeded(ResNet).eval(), "network": seeded(Predicts), "images": images(2), "folder": tmp_path}
    for code in re.findall(r"```python\n(.*?)```", page.split("## diffusers")[0], re.DOTALL):
        exec(code, given)
    assert given["again"].denoiser.config == given["denoiser"].config and given["purified"].shape == (2, 1, 8, 8)
