"""Fingerprints hang on every setting and on every weight, so that no finished cell stands for another."""

import dataclasses
from typing import get_type_hints

import pytest
import torch

from purify_engine import Classifier, GuidedPurifier, load_classifier
from purify_engine.config import AttackConfig, PurifierConfig
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.protocol import evaluate, fingerprint, read_cells
from purify_engine.evaluation.suite import CLEAN
from tests.evaluation.worlds import CONFIG, ToyPurifier, guided, linear_world, toy


def different(value):
    """Another value of the same kind that every configuration allows in its place."""
    others = {"pgd": "none", "linf": "l2", "cross_entropy": "margin", "random": "clean", "defence": "guide", "exact": "bpda"}
    others |= {"ddpm": "vp_sde", "adversarial": "pixel", "score": "mean", "pseudo": "soft", "xt": "x0", "linear": "cosine"}
    others |= {"fresh": "fixed", "never": "consistent", "constant": "noise"}
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return others.get(value, value + "!")
    if value is None:
        return 3
    return value + 1 if isinstance(value, int) else value + 0.001


def changed(config):
    """(name, `config` with that one field changed), through nested configurations; of a schedule beta_end and T among them."""
    for name in get_type_hints(type(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from ((f"{name}.{inner}", dataclasses.replace(config, **{name: other})) for inner, other in changed(value))
        elif name not in ELSEWHERE:
            other = SHARED.get((name, value)) or different(value)
            yield name, dataclasses.replace(config, **{name: other})


# Where the default's name means another thing in another setting: the value beside it.
SHARED = {("sizes", "exact"): "native", ("decay", "constant"): "cosine", ("version", "rand"): "standard"}
# Settings whose other value is no neighbour of their default: the value, and what else it takes, on both sides.
ELSEWHERE = {
    "timesteps": (tuple(range(19, -1, -2)), {}),
    "landings": (tuple(range(16, -1, -2)) + (-1,), {"timesteps": tuple(range(19, 0, -2))}),
    "cycle_t_stars": ((20, 10), {"cycles": 2}),
    "time_labels": ("diffpure", {"sampler": "vp_sde"}),
    "image_range": ((-1.0, 1.0), {}),
    "last_noise": (True, {"sampler": "ddpm_large"}),
}

ATTACK = AttackConfig(name="one", epsilon=0.02, num_steps=5, num_eot=2)


@pytest.mark.parametrize(("name", "attack"), list(changed(ATTACK)), ids=lambda value: value if isinstance(value, str) else "")
def test_fingerprint_hangs_on_every_setting_of_the_attack(name, attack):
    defence, images, labels = toy()
    assert fingerprint(defence, attack, images, labels, CONFIG) != fingerprint(defence, ATTACK, images, labels, CONFIG)


PURIFIER = PurifierConfig(t_star=20, num_steps=10, guidance=guided(1.0).guidance)


@pytest.mark.parametrize(("name", "config"), list(changed(PURIFIER)), ids=lambda value: value if isinstance(value, str) else "")
def test_fingerprint_hangs_on_every_setting_of_the_purifier_but_the_gradient_mode(name, config):
    classifier, images, labels = linear_world()
    rows = (Defence("d", classifier, ToyPurifier(how)) for how in (PURIFIER, config))
    one, other = (fingerprint(row, ATTACK, images, labels, CONFIG) for row in rows)
    assert (one == other) == (name == "gradient")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_fingerprint_hangs_on_every_setting_that_takes_others_beside_it(name):
    classifier, images, labels = linear_world()
    value, beside = ELSEWHERE[name]
    base = dataclasses.replace(PURIFIER, **beside)
    rows = [Defence("d", classifier, ToyPurifier(how)) for how in (base, dataclasses.replace(base, **{name: value}))]
    one, other = (fingerprint(row, ATTACK, images, labels, CONFIG) for row in rows)
    assert one != other


def test_fingerprint_hangs_on_names_draws_seed_guidedness_and_labels():
    defence, images, labels = toy()
    others = labels.clone()
    others[-1] = 1 - others[-1]
    marks = [
        fingerprint(defence, ATTACK, images, labels, CONFIG),
        fingerprint(dataclasses.replace(defence, name="other"), ATTACK, images, labels, CONFIG),
        fingerprint(dataclasses.replace(defence, guide=None), ATTACK, images, labels, CONFIG),
        fingerprint(dataclasses.replace(defence, purifier=None), ATTACK, images, labels, CONFIG),
        fingerprint(defence, ATTACK, images, others, CONFIG),
        fingerprint(defence, ATTACK, images, labels, dataclasses.replace(CONFIG, num_draws=6)),
        fingerprint(defence, ATTACK, images, labels, dataclasses.replace(CONFIG, seed=1)),
    ]
    assert len(set(marks)) == len(marks) and all(len(mark) == 16 for mark in marks)


@pytest.mark.parametrize("part", ["classifier", "bare", "guide", "purifier"])
def test_fingerprint_hangs_on_every_weight_of_every_network(part, small_purifier):
    """The purifier's are those of its U-Net and of its guide."""
    purifier = GuidedPurifier.from_pretrained(small_purifier)
    networks = [load_classifier(small_purifier) for _ in range(3)]
    assert all(isinstance(network, Classifier) for network in networks)
    defence = Defence("d", networks[0], purifier, networks[1], networks[2])
    images, labels = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)

    def mark():
        return fingerprint(defence, ATTACK, images, labels, CONFIG)

    before, tensors = mark(), getattr(defence, part).state_dict()
    assert part != "purifier" or {name.split(".")[0] for name in tensors} == {"denoiser", "guide"}
    for name, tensor in tensors.items():
        element = tensor.view(-1)[-1:]
        kept = element.clone()
        element += 1
        assert mark() != before, name
        element.copy_(kept)
    assert mark() == before


def test_a_results_file_of_another_purifier_is_not_mistaken_for_this_ones(tmp_path, small_purifier):
    classifier, results = load_classifier(small_purifier), tmp_path / "r.jsonl"
    images, labels = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    for change in (0, 1):
        purifier = GuidedPurifier.from_pretrained(small_purifier)
        next(purifier.denoiser.unet.parameters()).data.view(-1)[0] += change
        evaluate([Defence("d", classifier, purifier)], images, labels, CONFIG, attacks=[CLEAN], results=results)
        evaluate([Defence("d", classifier, purifier)], images, labels, CONFIG, attacks=[CLEAN], results=results)
    assert len(read_cells(results)) == 2
