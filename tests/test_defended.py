"""A purifier before a classifier, as one module: its answers, votes, derivatives, modes, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from purify_engine.defended import DefendedClassifier, voted
from tests.test_purifier import images, purifier
from tests.test_purifier_state import apart, assert_close

CLASSES = 3


def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, CLASSES))


@pytest.fixture(scope="module")
def model():
    return purifier(scale=0.0)


@pytest.fixture(scope="module")
def network():
    return classifier()


def draws_of(model, count, first=0):
    """So many purifications of each image, one call after another."""
    ids = torch.arange(5)
    return torch.stack([model(images(), ids=ids, draw=first + number) for number in range(count)])


def test_one_draw_is_the_classifier_after_the_purifier(model, network):
    ids = torch.arange(5)
    assert_close(model.defend(network)(images(), ids=ids, draw=4), network(model(images(), ids=ids, draw=4)))
    assert_close(model.defend(network)(images(), ids=ids), network(model(images(), ids=ids)))


def test_several_draws_are_voted_on(model, network):
    logits = torch.stack([network(batch) for batch in draws_of(model, 3, first=2)])
    probabilities = [one.exp() / one.exp().sum(1, keepdim=True) for one in logits]
    expected = {
        "logits": (logits[0] + logits[1] + logits[2]) / 3,
        "probabilities": ((probabilities[0] + probabilities[1] + probabilities[2]) / 3).log(),
        "majority": sum(torch.eye(CLASSES)[one.argmax(1)] for one in logits),
    }
    for vote, answer in expected.items():
        defended = model.defend(network, num_draws=3, vote=vote)
        assert_close(defended(images(), ids=torch.arange(5), draw=2), answer)


def test_probabilities_of_one_draw_are_those_of_its_logits(model, network):
    found = model.defend(network, vote="probabilities")(images(), draw=1)
    assert_close(found.exp(), network(model(images(), draw=1)).softmax(1))


def test_fresh_draws_differ_within_a_call_and_between_calls(model, network):
    seen = []
    defended = model.defend(lambda batch: seen.append(batch) or network(batch), num_draws=2)
    defended(images())
    defended(images())
    assert all(apart(seen[one], seen[other]) for one in range(4) for other in range(one))


def test_a_generator_selects_the_noise(model, network):
    defended = model.defend(network, num_draws=2)
    first, again, other = (defended(images(), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert apart(first, other, by=1e-5)


@pytest.mark.parametrize("vote", ["logits", "probabilities"])
def test_the_gradient_is_that_of_all_draws(model, network, vote):
    x = images().requires_grad_()
    ids, weights = torch.arange(5), torch.linspace(-1, 1, 5 * CLASSES).view(5, CLASSES)
    (found,) = torch.autograd.grad((weights * model.defend(network, 2, vote)(x, ids=ids, draw=0)).sum(), x)
    separate = voted(torch.stack([network(model(x, ids=ids, draw=draw)) for draw in range(2)]), vote)
    (expected,) = torch.autograd.grad((weights * separate).sum(), x)
    assert expected.abs().max() > 0
    assert_close(found, expected, rtol=1e-4)  # float32 gradients through three steps of a U-Net, at other batch sizes


def test_a_majority_has_no_gradient_and_says_so(model, network):
    defended = model.defend(network, num_draws=2, vote="majority")
    x = images().requires_grad_()
    counts = defended(x, draw=0)
    assert torch.equal(counts.sum(1), torch.full((5,), 2.0))
    with pytest.raises(RuntimeError, match='got "majority": counts have none; attack purifier.defend'):
        counts.sum().backward()


def test_the_first_class_wins_among_equals():
    assert voted(torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]]), "majority").argmax() == 0


def test_logits_are_read_off_an_object_that_holds_them(model, network):
    held = model.defend(lambda batch: SimpleNamespace(logits=network(batch), hidden_states=None))
    assert torch.equal(held(images(), draw=0), model.defend(network)(images(), draw=0))


def test_it_starts_in_its_classifiers_mode_and_the_purifier_never_trains(model):
    network = classifier().eval()
    defended = model.defend(network)
    assert not defended.training and not network.training
    defended.train(defended.training)  # as tools restore what they found
    assert not network.training
    defended.train()
    assert network.training and not model.training and not model.denoiser.training
    assert model.defend(network).training
    guided = purifier()
    assert not guided.defend(guided.guide).train().classifier.training
    assert not model.defend(lambda batch: batch).training


def test_it_holds_both_as_submodules(model, network):
    defended = model.defend(network, 2, "probabilities")
    assert defended.purifier is model and defended.classifier is network
    assert {name.split(".")[0] for name in defended.state_dict()} == {"purifier", "classifier"}
    assert "num_draws=2, vote='probabilities'" in repr(defended)
    other = model.defend(classifier())
    other.load_state_dict(defended.state_dict())
    assert torch.equal(other(images(), draw=0), model.defend(network)(images(), draw=0))


def test_its_twin_is_the_same_on_another_stream(model, network):
    defended = model.defend(network, 2, "probabilities")
    twin = defended.twin("attack")
    assert (twin.num_draws, twin.vote, twin.classifier) == (2, "probabilities", network)
    same, x = model.twin("attack").defend(network, 2, "probabilities"), images()
    assert torch.equal(twin(x, draw=0), same(x, draw=0))
    assert apart(twin(x, draw=0), defended(x, draw=0), by=1e-5)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((None,), TypeError, "classifier must be a module or a callable from images to logits, got None"),
        ((nn.Flatten,), TypeError, r"got <class .*Flatten'>; use Flatten\(...\)"),
        ((nn.Flatten(), 0), ValueError, "num_draws must be a whole number, at least 1, got 0"),
        ((nn.Flatten(), 1.5), ValueError, "num_draws must be a whole number, at least 1, got 1.5"),
        ((nn.Flatten(), True), ValueError, "num_draws must be a whole number, at least 1, got True"),
        ((nn.Flatten(), 2, "mean"), ValueError, "vote must be one of logits, probabilities, majority, got 'mean'"),
    ],
    ids=str,
)
def test_what_cannot_be_defended_is_refused(model, arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        DefendedClassifier(model, *arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "answer, given",
    [
        (lambda batch: "cat", "got str"),
        (lambda batch: batch, r"got 'torch.float32 \[5, 1, 8, 8\]'"),
        (lambda batch: batch.flatten(1).argmax(1), r"got 'torch.int64 \[5\]'"),
        (lambda batch: batch.flatten(1)[:1], r"got 'torch.float32 \[1, 64\]'"),
    ],
)
def test_answers_that_are_no_logits_are_refused(model, answer, given):
    with pytest.raises(ValueError, match=rf"returns float logits \[5, classes\], {given}"):
        model.defend(answer)(images())
