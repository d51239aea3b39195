"""Every way that PyTorch offers to differentiate a purifier, to run it again in a backward pass, or to trace it: RIGHT has those
that give what the exact gradient or finite differences say, REFUSED those that raise one line, and what it says."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, hvp, jacobian, jvp, vhp, vjp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.package import PackageExporter, PackageImporter
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from purify_engine.config import ClassifierConfig, GuidanceConfig, PurifierConfig, UNetConfig
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.unet import UNet
from purify_engine.purifier import GuidedPurifier

UNET = UNetConfig(
    image_size=4, in_channels=1, base_channels=4, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(4,), norm_groups=2
)
GUIDE = ClassifierConfig(
    architecture="wide_resnet", depth=10, width=1, in_channels=1, activation="silu", mean=(0.3,), std=(0.4,)
)
STRONG = GuidanceConfig(scale=1000.0)  # so that the guide's own derivatives, up to its third, have their share
STEPS = 2
LINE = "a purifier cannot be traced, scripted or exported"
REDRAWN = "fresh noise .* in a backward pass.*name the noise"
NO_TANGENT = "a purifier has no forward-mode derivative"


def drawn(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double(execution="loop", **options):
    """A purifier of fixed noise in float64; equal networks every time, no layer of them at its zero initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, guide = UNet(UNET), Classifier(GUIDE)
        for parameter in unet.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    options = {"guidance": STRONG, "noise": "fixed", **options}
    config = PurifierConfig(t_star=100, num_steps=STEPS, **options)
    return GuidedPurifier(Denoiser(unet), guide, config, execution=execution).double()


WEIGHTS, ALONG, PLANE = drawn(1, 1, 4, 4), drawn(1, 1, 4, 4, seed=2), drawn(2, 1, 1, 4, 4, seed=3)
X = 0.3 + 0.4 * torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss(model, x, **call):
    """Linear in the output: its second derivatives are the purifier's own."""
    return (WEIGHTS * model(x, **call)).sum()


def exact(model, x, function=loss):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(model, x), x)[0]


def differences(function, x, along, h=1e-5):
    """Of a function of images, along a direction; central."""
    return (function(x + h * along) - function(x - h * along)) / (2 * h)


def curvature(model, x=X, along=ALONG):
    """A Hessian-vector product, by differences of the exact gradient."""
    return differences(lambda at: exact(model, at), x, along)


def double_backward(model, x=X):
    """A Hessian-vector product by two calls of torch.autograd.grad."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(model, x), x, create_graph=True)
    return torch.autograd.grad((grad * ALONG).sum(), x)[0]


def close(found, expected, rtol=1e-7):
    assert found.shape == expected.shape and expected.norm() > 0
    assert (found - expected).norm() <= rtol * expected.norm()


class Truth:
    """A purifier, and at X what its first derivatives are by the exact gradient, its second ones by finite differences."""

    def __init__(self):
        self.model = double()
        self.out, self.grad = self.model(X), exact(self.model, X)
        self.along, *self.bent = (curvature(self.model, X, along) for along in (ALONG, *PLANE))
        x = X.clone().requires_grad_()
        self.rows = torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0] for value in few(self.model)(x)])
        self.hessian = torch.stack([torch.stack([(along * bent).sum() for along in PLANE]) for bent in self.bent])


@pytest.fixture(scope="module")
def truth():
    return Truth()


@pytest.fixture(scope="module")
def model(truth):
    return truth.model


def few(model):
    """Two pixels of the output, which no clamp cuts off."""
    return lambda x: model(x)[0, 0, 1:3, 2]


def on_a_plane(model):
    """The loss at X + a u + b v, of (a, b): its Hessian has four numbers."""
    return lambda at: loss(model, X + (at.view(2, 1, 1, 1, 1) * PLANE).sum(0))


ORIGIN = torch.zeros(2, dtype=torch.float64)


# Second derivatives

SECOND = {
    "none": {"guidance": GuidanceConfig()},
    "pixel": {"guidance": GuidanceConfig(kind="pixel", scale=20.0)},
    "adversarial by graphs": {"execution": "graph"},
    "Tweedie, normalised, soft": {"guidance": GuidanceConfig(scale=0.3, look_at="x0", normalised=True, pseudo_label="soft")},
    "ddim, clipped, cycles": {"sampler": "ddim", "eta": 0.5, "clip_x0": "consistent", "cycles": 2},
}


@pytest.mark.parametrize("options", SECOND.values(), ids=SECOND)
def test_a_hessian_vector_product_is_the_difference_of_exact_gradients(options):
    model = double(**options)
    close(double_backward(model), curvature(model), 1e-6)


def test_a_hessian_vector_product_in_float32_is_that_of_float64_to_rounding(truth):
    single, x = double("graph").float(), X.float().requires_grad_()
    (grad,) = torch.autograd.grad((WEIGHTS.float() * single(x)).sum(), x, create_graph=True)
    close(torch.autograd.grad((grad * ALONG.float()).sum(), x)[0].double(), truth.along, 1e-3)


# What is right: ways to (found, expected)

def of_func_beside_autograd(model, truth):
    """A transform over what lies behind, autograd's own gradient through it."""
    def outer(x):
        return torch.func.grad(lambda scale: scale * loss(model, x))(torch.ones((), dtype=x.dtype))

    x = X.clone().requires_grad_()
    return torch.autograd.grad(outer(x), x)[0], truth.grad


def of_func_twice(model, truth):
    inner = torch.func.grad(lambda x: loss(model, x))
    return torch.func.grad(lambda x: (inner(x) * ALONG).sum())(X), truth.along


def of_vjp(model, truth):
    out, pull = torch.func.vjp(model, X)
    close(out, truth.out, 1e-12)
    return pull(WEIGHTS)[0], truth.grad


def of_functional_call(model, truth):
    """Other weights than the model's own."""
    other = {name: 1.1 * value for name, value in model.named_parameters()}
    changed = double()
    changed.load_state_dict(other, strict=False)
    assert not torch.equal(changed(X), truth.out)
    return torch.func.functional_call(model, other, (X,)), changed(X)


def of_is_grads_batched(model, truth):
    x = X.clone().requires_grad_()
    return torch.autograd.grad(few(model)(x), x, torch.eye(2, dtype=x.dtype), is_grads_batched=True)[0], truth.rows


def of_vector_products(model, truth):
    back = drawn(2, seed=4)
    close(vjp(few(model), X, back)[1], torch.einsum("k,kbchw->bchw", back, truth.rows), 1e-12)
    return jvp(few(model), X, ALONG)[1], (truth.rows * ALONG).flatten(1).sum(1)


def of_hvp(model, truth):
    close(vhp(lambda x: loss(model, x), X, ALONG)[1], truth.along, 1e-6)
    return hvp(lambda x: loss(model, x), X, ALONG)[1], truth.along


def checkpointed(model, reentrant, **call):
    """The gradient of a call that is run again in the backward pass."""
    x = X.clone().requires_grad_()
    (WEIGHTS * checkpoint(lambda x: model(x, **call), x, use_reentrant=reentrant)).sum().backward()
    return x.grad


def of_checkpoint_with_named_noise(model, truth):
    fresh, ids = double(noise="fresh"), torch.tensor([7])
    close(checkpointed(fresh, False, ids=ids), exact(fresh, X, lambda model, x: loss(model, x, ids=ids)), 1e-12)
    return checkpointed(fresh, True, draw=3), exact(fresh, X, lambda model, x: loss(model, x, draw=3))


def of_checkpoint_with_torchs_noise(model, truth):
    """Checkpoints give PyTorch's generators the state back that they had."""
    torchs = double(noise="torch")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        again = checkpointed(torchs, False)
        torch.manual_seed(3)
        return again, exact(torchs, X)


def of_torch_package(model, truth):
    packed = io.BytesIO()
    with PackageExporter(packed) as exporter:
        exporter.extern("**")
        exporter.save_pickle("purifier", "model.pkl", model)
    packed.seek(0)
    return exact(PackageImporter(packed).load_pickle("purifier", "model.pkl"), X), truth.grad


def of_saved_on_cpu(model, truth):
    with torch.autograd.graph.save_on_cpu():
        return double_backward(model), truth.along


def of_a_retained_graph(model, truth):
    x = X.clone().requires_grad_()
    value = loss(model, x)
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    return second, truth.grad


def of_a_sum_of_calls(model, truth):
    """Two on the same images, and one on what another purified."""
    through = exact(model, X, lambda model, x: (exact(model, truth.out) * model(x)).sum())
    return exact(model, X, lambda model, x: 2 * loss(model, x) + loss(model, model(x))), 2 * truth.grad + through


def of_anomaly_mode(model, truth):
    with torch.autograd.detect_anomaly(check_nan=True):
        return exact(model, X), truth.grad


def of_hooks(model, truth):
    seen, x = [], X.clone().requires_grad_()
    x.register_hook(seen.append)
    out = model(x)
    out.register_hook(lambda grad: 2 * grad)
    (WEIGHTS * out).sum().backward()
    return seen[0], 2 * truth.grad


def of_compile(model, truth):
    """Of a function that differentiates twice: no frame of the purifier's is compiled, on the way there or back."""
    return torch.compile(lambda x: double_backward(nn.Sequential(model), x), backend="eager")(X), truth.along


def of_counted_flops(model, truth):
    with FlopCounterMode(display=False) as counter:
        grad = exact(lambda x: model(1 * x), X)  # it hooks what a module is given, which must be no leaf
    assert counter.get_total_flops() > 1e5
    return grad, truth.grad


RIGHT = {
    "torch.func.grad": lambda model, truth: (torch.func.grad(lambda x: loss(model, x))(X), truth.grad),
    "torch.func.grad of torch.func.grad": of_func_twice,
    "torch.func.grad, and torch.autograd around it": of_func_beside_autograd,
    "torch.func.vjp": of_vjp,
    "torch.func.jacrev": lambda model, truth: (torch.func.jacrev(few(model))(X), truth.rows),
    "torch.func.jacrev of jacrev": lambda model, truth: (
        torch.func.jacrev(torch.func.jacrev(on_a_plane(model)))(ORIGIN), truth.hessian
    ),
    "torch.func.functional_call": of_functional_call,
    "functional.jacobian": lambda model, truth: (jacobian(few(model), X), truth.rows),
    "functional.jacobian, vectorised": lambda model, truth: (jacobian(few(model), X, vectorize=True), truth.rows),
    "is_grads_batched": of_is_grads_batched,
    "functional.vjp and jvp": of_vector_products,
    "functional.hvp and vhp": of_hvp,
    "functional.hessian, vectorised": lambda model, truth: (hessian(on_a_plane(model), ORIGIN, vectorize=True), truth.hessian),
    "checkpoint": lambda model, truth: (checkpointed(model, False), truth.grad),
    "checkpoint, reentrant": lambda model, truth: (checkpointed(model, True), truth.grad),
    "checkpoint of named noise": of_checkpoint_with_named_noise,
    "checkpoint of PyTorch's noise": of_checkpoint_with_torchs_noise,
    "torch.package, extern": of_torch_package,
    "save_on_cpu": of_saved_on_cpu,
    "retain_graph": of_a_retained_graph,
    "a sum over calls": of_a_sum_of_calls,
    "anomaly mode": of_anomaly_mode,
    "hooks of tensors": of_hooks,
    "torch.compile": of_compile,
    "FlopCounterMode": of_counted_flops,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:There is a performance drop", "ignore:TypedStorage")
@pytest.mark.parametrize("way", RIGHT.values(), ids=RIGHT)
def test_a_way_that_is_right(way, model, truth):
    close(*way(model, truth), 1e-6)


def test_gradcheck_and_gradgradcheck_pass(model):
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(model, x, fast_mode=True, check_undefined_grad=False)
    at = ORIGIN.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(on_a_plane(model), at, fast_mode=True, check_undefined_grad=False)


def test_a_transform_leaves_nothing_behind(truth):
    """What the first call keeps, plans and packed weights, is of plain tensors."""
    used = double("graph")
    torch.func.grad(lambda x: loss(used, x))(X)
    assert torch.equal(used(X), double("graph")(X))
    close(exact(used, X), truth.grad)


def test_a_value_and_its_gradient_by_a_transform_are_of_one_fresh_draw():
    fresh, seen = double(noise="fresh", seed=3), []
    fresh._given = lambda images, noise, *args: seen.append(noise.key) or GuidedPurifier._given(fresh, images, noise, *args)
    torch.func.grad_and_value(lambda x: loss(fresh, x))(X)
    assert len(seen) == 2 and torch.equal(*seen)


def test_no_images_have_no_gradient_under_a_transform(model):
    assert torch.func.grad(lambda x: model(x).sum())(X[:0]).shape == (0, 1, 4, 4)


def test_meta_tensors_tell_the_shape():
    assert double().to("meta")(X.to("meta")).shape == X.shape


# What is refused

def with_tangent(model, x):
    with forward_ad.dual_level():
        model(forward_ad.make_dual(x, ALONG))


def with_tangent_of_a_parameter(model, x):
    name, weight = next(model.named_parameters())
    with forward_ad.dual_level():
        torch.func.functional_call(model, {name: forward_ad.make_dual(weight.detach(), torch.ones_like(weight))}, (x,))


def with_tangent_of_a_gradient(model, x):
    out = model(x := x.clone().requires_grad_())
    with forward_ad.dual_level():
        torch.autograd.grad(out, x, forward_ad.make_dual(WEIGHTS, ALONG))


def faked(model, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))


def of_parameters(model, x):
    torch.func.grad(lambda held: torch.func.functional_call(model, held, (x,)).sum())(dict(model.named_parameters()))


def with_other_weights(differentiate):
    """Those of functional_call, which are gone when a derivative is computed."""
    def tried(model, x):
        other = {name: 1.1 * value for name, value in model.named_parameters()}
        differentiate(lambda model, x: (WEIGHTS * torch.func.functional_call(model, other, (x,))).sum(), model, x)

    return tried


REFUSED = {
    "torch.func.vmap": (lambda model, x: torch.func.vmap(model)(x[None]), "whole batch .* in one call"),
    "torch.func.vmap of grad": (
        lambda model, x: torch.func.vmap(torch.func.grad(lambda x: loss(model, x)))(x[None]), "the sum of all losses"
    ),
    "torch.func.jvp": (lambda model, x: torch.func.jvp(model, (x,), (ALONG,)), f"{NO_TANGENT}: use torch.autograd.*jvp"),
    "torch.func.jacfwd": (lambda model, x: torch.func.jacfwd(model)(x), NO_TANGENT),
    "torch.func.hessian": (lambda model, x: torch.func.hessian(lambda x: loss(model, x))(x), f"{NO_TANGENT}.*hessian"),
    "functional.jacobian, forward mode": (
        lambda model, x: jacobian(model, x, strategy="forward-mode", vectorize=True), NO_TANGENT
    ),
    "a dual tensor": (with_tangent, f"{NO_TANGENT}.*got a tangent of images"),
    "a dual tensor behind it": (with_tangent_of_a_gradient, "forward"),
    "a dual parameter": (with_tangent_of_a_parameter, f"{NO_TANGENT}.*got a tangent of denoiser"),
    "torch.func.grad of parameters": (
        of_parameters,
        "parameters of a purifier must be no tensors that torch.func transforms.*got denoiser",
    ),
    "torch.func.functionalize": (lambda model, x: torch.func.functionalize(model)(x), f"{LINE}.*functionalize"),
    "torch.jit.trace": (lambda model, x: torch.jit.trace(nn.Sequential(model), x), f"{LINE}.*torch.jit.trace"),
    "torch.jit.script": (lambda model, x: torch.jit.script(nn.Sequential(model)), f"{LINE}.*torch.jit.script"),
    "torch.export": (lambda model, x: torch.export.export(model, (x,), strict=False), f"{LINE}.*torch.export"),
    "torch.onnx.export": (lambda model, x: torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False), f"{LINE}.*onnx"),
    "torch.fx": (lambda model, x: torch.fx.symbolic_trace(model), f"{LINE}.*torch.fx"),
    "torch.fx in a chain": (lambda model, x: torch.fx.symbolic_trace(nn.Sequential(model)), f"{LINE}.*torch.fx"),
    "make_fx": (lambda model, x: make_fx(model)(x), f"{LINE}.*make_fx"),
    "make_fx of its gradient": (lambda model, x: make_fx(lambda x: exact(model, x))(x), f"{LINE}.*make_fx"),
    "FakeTensorMode": (faked, f"{LINE}.*meta tensors"),
    "checkpoint of a fresh draw": (lambda model, x: checkpointed(double(noise="fresh"), False), REDRAWN),
    "checkpoint of a fresh draw, reentrant": (lambda model, x: checkpointed(double(noise="fresh"), True), REDRAWN),
    "the gradient of functional_call": (
        with_other_weights(lambda function, model, x: exact(model, x, function)), "weights of a purifier must stay as they are"
    ),
    "torch.func.grad of functional_call": (
        with_other_weights(lambda function, model, x: torch.func.grad(function, 1)(model, x)), "weights .* must stay as they are"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("way", "message"), REFUSED.values(), ids=REFUSED)
def test_a_way_that_is_refused_in_one_line(way, message, model):
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match=message) as caught:
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        way(model, X)
    assert "\n" not in str(caught.value)


def test_a_compiler_around_a_purifier_compiles_nothing_of_it(model):
    compiled = []

    def recording(graph, inputs):
        compiled.extend(getattr(node.target, "__name__", node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    def around(x):
        return model(x * 1).sin()

    with torch.no_grad():
        assert torch.equal(torch.compile(around, backend=recording)(X), around(X))
    assert compiled == ["mul", "sin"]


@pytest.mark.skipif("reason" not in torch.compiler.disable.__kwdefaults__, reason="PyTorch says no reason before 2.7")
def test_a_compiler_that_wants_one_whole_graph_is_told_why_there_is_none(model):
    with pytest.raises(Exception, match=LINE):
        torch.compile(nn.Sequential(model), fullgraph=True, backend="eager")(X)


# x_t on the way

def seen_by(model, x, step, **call):
    """x_t after `step`, as a callback sees it."""
    seen = []
    model(x, callback_on_step_end=lambda index, t, x_t: seen.append(x_t), **call)
    return seen[step]


@pytest.mark.parametrize("mode", ["exact", "straight_through", "detached_guidance"])
def test_a_callback_leaves_the_result_and_the_gradient_as_they_are(mode):
    model, at = double(gradient=mode), X.clone().requires_grad_()
    steps = []
    out = model(at, callback_on_step_end=lambda step, t, x_t: steps.append((step, t, x_t.requires_grad)))
    assert steps == [(0, 99.0, True), (1, 49.0, True)]
    close(out.detach(), model(X), 1e-12)
    close(torch.autograd.grad((WEIGHTS * out).sum(), at)[0], exact(model, X), 1e-12)


TWO_CYCLES = {"guidance": GuidanceConfig(kind="pixel", scale=20.0), "cycles": 2}


@pytest.mark.parametrize("options", [{}, TWO_CYCLES], ids=["one cycle", "two"])
def test_a_loss_on_an_image_on_the_way_has_the_gradient_of_finite_differences(options):
    model = double(**options)
    for step in range(STEPS):
        (grad,) = torch.autograd.grad((WEIGHTS * seen_by(model, at := X.clone().requires_grad_(), step)).sum(), at)
        difference = differences(lambda at, step=step: (WEIGHTS * seen_by(model, at, step)).sum(), X, ALONG)
        close((grad * ALONG).sum(), difference, 1e-6)


def test_a_loss_on_an_image_on_the_way_has_a_second_derivative(model):
    def on_the_way(x):
        return (WEIGHTS * seen_by(model, x, 0)).sum()

    close(hvp(on_the_way, X, ALONG)[1], differences(lambda at: exact(on_the_way, at, lambda f, x: f(x)), X, ALONG), 1e-6)


@pytest.mark.parametrize("mode", ["bpda", "surrogate"])
def test_where_the_gradient_is_anothers_a_callback_sees_images_without_one(mode):
    model, at = double(gradient=mode), X.clone().requires_grad_()
    assert not seen_by(model, at, 0).requires_grad
    close(seen_by(model, at, 1), seen_by(model, X, 1), 1e-12)
    close(exact(model, X), torch.autograd.grad(loss(model, at, callback_on_step_end=lambda *_: None), at)[0], 1e-12)


def test_a_callback_of_an_attacker_who_knows_of_no_purifier_is_refused():
    with pytest.raises(ValueError, match="callback_on_step_end must be None where gradient is 'blind'"):
        seen_by(double(gradient="blind"), X.clone().requires_grad_(), 0)


def test_a_callback_under_a_transform_is_refused(model):
    with pytest.raises(ValueError, match="callback_on_step_end must be None under torch.func"):
        torch.func.grad(lambda x: loss(model, x, callback_on_step_end=lambda *_: None))(X)
