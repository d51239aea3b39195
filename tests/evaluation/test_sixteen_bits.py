"""A purifier in 16 bits is scored as it is deployed, attacked through its weights in float32, and told apart."""

import pytest
import torch

from purify_engine import GuidedPurifier, load_classifier
from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.data import digits
from purify_engine.devices import in_float32
from purify_engine.evaluation.attacks import attack
from purify_engine.evaluation.defences import Defence, standard_defences
from purify_engine.evaluation.protocol import computed_by, fingerprint


@pytest.fixture(scope="module")
def short():
    """The digits' purifier as a GPU has it by default."""
    return GuidedPurifier.from_pretrained("digits", precision="bf16").configured(t_star=20, num_steps=2)


def test_a_purifier_in_16_bits_is_scored_in_them_and_differentiated_in_float32(short):
    defence = Defence("ours", load_classifier("digits"), short, in_float32(short.guide))
    attacked = defence.through("exact").purifier
    assert {parameter.dtype for parameter in attacked.parameters()} == {torch.float32}
    for own, whole in zip(short.parameters(), attacked.parameters(), strict=True):
        assert torch.equal(own.float(), whole)  # the weights that are deployed
    assert defence.through("exact", queried=True).purifier.denoiser is short.denoiser
    assert {parameter.dtype for parameter in defence.purifier.parameters()} == {torch.bfloat16}
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(defence.purify(images, torch.arange(2), 3), short(images, ids=torch.arange(2), draw=3))


def test_a_purifier_in_float32_is_differentiated_itself():
    whole = GuidedPurifier.from_pretrained("digits")
    assert in_float32(whole) is whole
    assert Defence("ours", load_classifier("digits"), whole).through("exact").purifier.denoiser is whole.denoiser


def test_every_row_of_the_comparison_runs_in_16_bits_and_says_so(short):
    images, labels = (tensor[:4] for tensor in digits("test"))
    rows = standard_defences(short, load_classifier("digits"), digits("train")[0][:16])
    for row in rows:
        logits = row(images, torch.arange(4), 0)
        assert logits.shape == (4, 10) and logits.dtype == torch.float32 and logits.isfinite().all()
        assert row.describe().get("precision") == ("bf16" if row.purifier is not None else None)
        told = computed_by(row)
        assert (told["precision"], told["gradients"]) == ("bf16" if row.purifier is not None else "float32", "float32")
        assert row.guide is None or row.guide is rows[-1].classifier
    for kind in ("pgd", "square"):
        how = AttackConfig(name=kind, kind=kind, num_steps=1, num_eot=1)
        assert (attack(rows[3], images, labels, how) - images).abs().max() <= how.epsilon + 1e-6


def test_a_cell_in_16_bits_is_another_one_than_in_float32(short):
    images, labels = (tensor[:2] for tensor in digits("test"))
    how, config = AttackConfig(name="exact"), EvaluationConfig()
    keys = [
        fingerprint(Defence("ours", load_classifier("digits"), purifier), how, images, labels, config)
        for purifier in (short, in_float32(short))
    ]
    assert keys[0] != keys[1]
