import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

from purify_engine import ops
from purify_engine.config import ClassifierConfig, GuidanceConfig, PurifierConfig, UNetConfig
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.unet import UNet
from purify_engine.purifier import GuidedPurifier

UNET = UNetConfig(
    image_size=8,
    in_channels=1,
    base_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    norm_groups=4,
)
GUIDE = ClassifierConfig(
    architecture="wide_resnet", depth=10, width=1, in_channels=1, activation="silu", mean=(0.3,), std=(0.4,)
)


def purifier(scale=0.1, kind="adversarial", guidance=None, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, guide = UNet(UNET), Classifier(GUIDE)
        for parameter in unet.parameters():  # no layer at its zero initialisation
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    guidance = GuidanceConfig(kind=kind, scale=scale, **(guidance or {}))
    return GuidedPurifier(Denoiser(unet), guide, PurifierConfig(t_star=100, num_steps=3, guidance=guidance, **options))


def images(count=5, seed=1, **options):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), **options)


def test_gives_images_of_the_same_shape_dtype_and_range():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        out = purifier()(images().to(dtype))
        assert out.shape == (5, 1, 8, 8)
        assert out.dtype == dtype
        assert out.min() >= 0
        assert out.max() <= 1


def test_an_empty_batch_stays_empty():
    assert purifier()(images(0)).shape == (0, 1, 8, 8)


def test_a_further_module_beside_the_networks_changes_nothing():
    model, other = purifier(noise="fixed"), purifier(noise="fixed")
    model.head = nn.Linear(2, 2)
    assert torch.equal(model(images()), other(images()))


def test_the_global_generator_is_never_touched():
    before = torch.get_rng_state()
    purifier()(images())
    assert torch.equal(before, torch.get_rng_state())


def test_fresh_noise_differs_between_calls_and_fixed_noise_does_not():
    fresh, fixed = purifier(), purifier(noise="fixed")
    assert not torch.equal(fresh(images()), fresh(images()))
    assert torch.equal(fixed(images()), fixed(images()))


def test_reseeding_starts_the_draws_anew():
    model, ids = purifier().reseed(0), torch.arange(5)
    first, second = model(images()), model(images())
    model.reseed(0)
    assert torch.equal(model(images()), first)
    assert torch.equal(model(images(), ids=ids, draw=1), second)
    assert not torch.equal(model.reseed(1)(images()), first)


def test_noise_follows_the_image_id_through_batches_of_any_size():
    batch, model = images(37), purifier(scale=0.0)
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:37]
    seen = {}

    def draws(size):
        parts = [
            ops.philox_normal(model.seed, part, torch.tensor(1), 64, dtype=torch.float32) for part in ids.split(size)
        ]
        return torch.cat(parts)

    assert torch.equal(draws(1), draws(37))
    assert torch.equal(draws(5), draws(37))
    for size in (1, 5, 37):
        pairs = zip(batch.split(size), ids.split(size), strict=True)
        seen[size] = torch.cat([model(part, ids=part_ids) for part, part_ids in pairs])
    # The noise is the same bit for bit; convolutions of another batch size may round differently.
    assert (seen[1] - seen[37]).abs().max() < 1e-5
    assert (seen[5] - seen[37]).abs().max() < 1e-5


@pytest.mark.parametrize("size", [1, 5, 37])
def test_the_noised_images_are_bit_equal_in_any_batch(size):
    batch, model, ids = images(37), purifier(scale=0.0), torch.arange(37) + 2**33
    plan = model.plan()

    def noised(part, part_ids):
        return ops.q_sample(2 * part - 1, plan.start, plan.forward_step, model.seed, part_ids)[0]

    pieces = [noised(part, part_ids) for part, part_ids in zip(batch.split(size), ids.split(size), strict=True)]
    assert torch.equal(torch.cat(pieces), noised(batch, ids))


@pytest.mark.parametrize("kind", ["adversarial", "pixel"])
def test_scale_zero_is_the_unguided_purifier_bit_for_bit_and_never_runs_the_guide(kind):
    model = purifier(scale=0.0, kind=kind, noise="fixed")
    model.guide.forward = model.guide.features_and_logits = lambda *_: pytest.fail("the guide ran")
    unguided = purifier(kind="none", noise="fixed")
    assert torch.equal(model(images()), unguided(images()))
    assert not torch.equal(purifier(scale=1.0, kind=kind, noise="fixed")(images()), unguided(images()))


@pytest.mark.parametrize("kind", ["adversarial", "pixel", "none"])
def test_every_call_mode_gives_the_same_images(kind):
    model = purifier(kind=kind, noise="fixed")
    with torch.no_grad():
        expected = model(images())
    assert torch.equal(model(images()), expected)
    with torch.inference_mode():
        assert torch.equal(model(images()), expected)
    needing = images().requires_grad_()
    out = model(needing)
    assert torch.equal(out.detach(), expected)
    (grad,) = torch.autograd.grad(out.sum(), needing)
    assert grad.abs().sum() > 0
    assert not model(images()).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(images()) - expected).abs().max() < 0.1


def test_a_drop_in_before_a_classifier_is_differentiable_and_trains_only_the_classifier():
    model = purifier(noise="fixed")
    classifier = Classifier(dataclasses.replace(GUIDE, activation="relu"))
    defended = nn.Sequential(model, classifier).train()
    assert classifier.training
    assert not any(module.training for module in model.modules())
    defended(images()).sum().backward()
    assert classifier.fc.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_network_parameter_that_wants_a_gradient_is_refused_and_works_without_recording():
    model = purifier(noise="fixed")
    expected = model(images())
    model.denoiser.requires_grad_()
    with pytest.raises(ValueError, match="must be frozen"):
        model(images())
    with torch.no_grad():
        assert (model(images()) - expected).abs().max() < 1e-5


def changed(model):
    """Half a training step's worth of other weights, in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    return model


@pytest.mark.parametrize("part", ["denoiser", "guide"])
def test_new_weights_after_a_first_call_give_the_new_weights_result(part):
    expected = purifier(noise="fixed")
    changed(getattr(expected, part))
    expected = expected(images())
    used = purifier(noise="fixed")
    stale = used(images())
    assert not torch.equal(stale, expected)

    tuned = copy.deepcopy(used)
    changed(getattr(tuned, part))
    assert torch.equal(tuned(images()), expected)

    used.load_state_dict(tuned.state_dict())
    assert torch.equal(used(images()), expected)
    assert torch.equal(copy.deepcopy(used)(images()), expected)
    assert torch.equal(pickle.loads(pickle.dumps(used))(images()), expected)

    optimizer = torch.optim.SGD(getattr(used, part).requires_grad_().parameters(), lr=0.02)
    for parameter in getattr(used, part).parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    used.requires_grad_(False)
    assert (used(images()) - stale).abs().max() < 1e-5


def test_moving_to_another_dtype_after_a_first_call_follows():
    model = purifier(noise="fixed")
    single = model(images())
    assert (
        model.double()(images(dtype=torch.float64)) - single.double()
    ).abs().max() < 1  # another stream of uniform images
    assert (model(images().double()).float() - single).abs().max() < 1e-5
    assert torch.equal(model.float()(images()), single)


def test_derived_state_stays_out_of_the_state_dict():
    model = purifier()
    names = set(model.state_dict())
    model(images())
    assert (
        set(model.state_dict())
        == names
        == {name for name, _ in model.named_parameters()}
        | {name for name, _ in model.guide.named_buffers("guide") if name not in ("guide.mean", "guide.std")}
    )


def test_saved_and_loaded_it_purifies_the_same(tmp_path):
    model = purifier(noise="fixed")
    model.save_pretrained(tmp_path / "mine")
    loaded = GuidedPurifier.from_pretrained(tmp_path / "mine")
    assert loaded.config == model.config
    assert torch.equal(loaded(images()), model(images()))


def test_repr_prints_every_hyper_parameter():
    text = repr(purifier(scale=0.25))
    for field in dataclasses.fields(PurifierConfig):
        assert f"{field.name}=" in text
    assert "scale=0.25" in text


def test_the_callback_sees_each_step():
    seen = []
    purifier()(images(), callback_on_step_end=lambda step, t, x_t: seen.append((step, t, tuple(x_t.shape))))
    assert seen == [(0, 99.0, (5, 1, 8, 8)), (1, 66.0, (5, 1, 8, 8)), (2, 32.0, (5, 1, 8, 8))]


def test_two_cycles_are_one_after_another_with_noise_of_their_own():
    once, twice = purifier(noise="fixed"), purifier(noise="fixed", cycles=2)
    assert not torch.equal(once(once(images())), twice(images()))
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(twice(x).sum(), x)
    assert grad.abs().sum() > 0


def test_calibration_reaches_the_asked_ratio():
    model = purifier()
    scale = model.calibrate(images(), ratio=0.2)
    assert model.calibrate(images(), ratio=0.4) == pytest.approx(2 * scale, rel=1e-6)
    assert scale > 0


def test_memory_report_counts_what_it_says():
    report = purifier().memory_report()
    assert report["trajectory_per_image"] == 3 * 64 * 4
    assert report["parameters"] == sum(p.numel() * 4 for p in purifier().parameters())
    assert report["step_per_image"] > 64 * 4


BAD_IMAGES = [
    (lambda x: (x * 255).to(torch.uint8), TypeError, r"uint8; for uint8 use images\.float\(\) / 255"),
    (lambda x: x.numpy(), TypeError, "got ndarray"),
    (lambda x: x.permute(0, 2, 3, 1), ValueError, r"NCHW.*permute\(0, 3, 1, 2\)"),
    (lambda x: x[0], ValueError, r"images must be \[B, 1, 8, 8\], got \[1, 8, 8\]"),
    (lambda x: x.expand(-1, 3, -1, -1), ValueError, r"images must be \[B, 1, 8, 8\], got \[5, 3, 8, 8\]"),
    (lambda x: x[..., :7], ValueError, r"got \[5, 1, 8, 7\]"),
    (lambda x: x * 255, ValueError, r"in \[0, 1\], got values in .*divide by 255"),
    (lambda x: x - 0.5, ValueError, r"in \[0, 1\], got values in .*undo the normalisation"),
    (lambda x: x.masked_fill(x > 0.99, float("nan")), ValueError, "finite, got NaN"),
    (lambda x: x / 0, ValueError, r"\[0, 1\]|NaN"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_IMAGES)
def test_bad_images_get_one_line_that_says_how_to_fix_it(spoil, error, message):
    with pytest.raises(error, match=message) as caught:
        purifier()(spoil(images(seed=8)))
    assert "\n" not in str(caught.value)


BAD_CALLS = [
    (lambda: purifier()(images(), ids=torch.arange(4)), ValueError, r"ids must be one id an image, \[5\], got \[4\]"),
    (lambda: purifier()(images(), ids=torch.rand(5)), ValueError, "ids must be integers"),
    (lambda: purifier()(images(), draw=-1), ValueError, "draw must be in"),
    (lambda: purifier().configured(t_star=0), ValueError, r"t_star must be in \[1, 1000\], got 0"),
    (
        lambda: purifier().configured(sampler="heun"),
        ValueError,
        "sampler must be one of ddpm, ddpm_large, ddpm_learned, ddim, vp_sde, got 'heun'",
    ),
    (
        lambda: purifier().configured(sampler="ddpm_learned"),
        ValueError,
        "sampler must be another where UNetConfig.learned_variance is False, as ddpm, got 'ddpm_learned'",
    ),
    (
        lambda: purifier(guidance={"form": "mean"}).configured(sampler="ddim", eta=0.0),
        ValueError,
        "guidance.form must be 'score' where ddim's eta is 0: the mean form scales with the variance, got 'mean'",
    ),
    (lambda: purifier().configured(gradient="true"), ValueError, "gradient must be one of exact"),
    (lambda: purifier().reseed(-1), ValueError, "seed must be in"),
    (lambda: purifier().calibrate(images(), ratio=-1), ValueError, "ratio must be at least 0"),
    (lambda: GuidedPurifier(purifier().denoiser, None, purifier().config), ValueError, "guide must be a Classifier"),
    (
        lambda: GuidedPurifier.from_pretrained("no-such-purifier"),
        FileNotFoundError,
        r"embedded name \(.*\), a folder, or a Hub id",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_calls_get_one_line_that_names_the_argument(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_purifier_folders_that_are_not_whole_are_refused_in_one_line(tmp_path):
    purifier().save_pretrained(tmp_path)
    weights, config = tmp_path / "unet.safetensors", tmp_path / "config.json"
    good_weights, good_config = weights.read_bytes(), config.read_text()
    for spoil, error, message in [
        (lambda: weights.write_bytes(good_weights[: len(good_weights) // 2]), ValueError, "unet.safetensors"),
        (lambda: weights.unlink(), FileNotFoundError, "unet.safetensors"),
        (lambda: torch.save({"a": torch.zeros(1)}, weights), ValueError, "pickle"),
        (lambda: config.write_text("{"), ValueError, "config.json must be JSON"),
        (
            lambda: config.write_text(good_config.replace('"schema_version": 1', '"schema_version": 99')),
            ValueError,
            "schema_version",
        ),
        (lambda: config.write_text(good_config.replace('"t_star"', '"tstar"')), ValueError, "tstar"),
        (lambda: config.unlink(), FileNotFoundError, "config.json is missing"),
    ]:
        weights.write_bytes(good_weights)
        config.write_text(good_config)
        spoil()
        with pytest.raises(error, match=message) as caught:
            GuidedPurifier.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
