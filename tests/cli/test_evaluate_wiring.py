"""What `evaluate` hands on: which images, defences, attacks, settings and seeds; and which exit code and words come back."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from purify_engine import Classifier, GuidedPurifier, load_classifier
from purify_engine.config import AttackConfig, ClassifierConfig, EvaluationConfig
from purify_engine.data import digits
from purify_engine.evaluation import protocol, row_self_test
from purify_engine.evaluation.defences import UNGUIDED
from purify_engine.evaluation.own_classifier import own_classifier
from purify_engine.evaluation.suite import CLEAN, attack_suite

LINF_SCORES = {"ours": (1.0, 0.5, 1.0, 0.0), "undefended": (0.0, 0.0, 1.0, 0.0)}


@pytest.fixture
def labelled(tmp_path):
    images = np.random.RandomState(0).rand(4, 1, 8, 8).astype(np.float32)
    np.savez(tmp_path / "in.npz", images=images, labels=np.array([3, 1, 2, 0]))
    return tmp_path / "in.npz", torch.tensor(images), torch.tensor([3, 1, 2, 0])


@pytest.fixture
def handed_on(monkeypatch):
    """What the command gave to the protocol and to the self-test, in place of both; `verdict` is the self-test's."""
    seen = {"verdict": True}

    def evaluate(rows, images, labels, config, *, attacks, ids, results, worst, also, workers, deadline, share, on_cell):
        seen.update(rows=rows, images=images, labels=labels, config=config, attacks=attacks, results=results, workers=workers)
        seen.update(ids=ids, seconds=deadline.seconds, also=also, share=share, worst=worst)
        for row in rows:
            for attack in attacks:
                scores = LINF_SCORES.get(row.name, (1.0,) * 4) if attack.kind != "none" else (1.0,) * 4
                norm = "none" if attack.kind == "none" else attack.norm
                on_cell(protocol.Cell(row.name, attack.name, norm, scores, scores, 0.0, "", {}))

    def tested(rows, images, labels, *, ids, seed=0, workers=1):
        seen.update(tested=rows, tested_images=images, tested_labels=labels, tested_ids=ids, tested_seed=seed)
        seen.update(tested_workers=workers)
        return {"passed": seen["verdict"], "rows": {}}

    monkeypatch.setattr(protocol, "evaluate", evaluate)
    monkeypatch.setattr(row_self_test, "row_self_tests", tested)
    return seen


@pytest.fixture
def evaluated(command, labelled, small_purifier, tmp_path):
    def typed(*words):
        source = labelled[0]
        return command(
            "evaluate", source, "--purifier", small_purifier, "--calibration", source, "--output", tmp_path / "o", *words
        )

    return typed


def test_the_held_out_digits_are_evaluated_and_the_training_digits_calibrated_on(handed_on, command, small_purifier, monkeypatch):
    calibrated_on = []

    def calibrate(purifier, images, ratio):
        calibrated_on.append(images)
        return 3.0

    monkeypatch.setattr(GuidedPurifier, "calibrate", calibrate)
    code, _, err = command("evaluate", "--purifier", small_purifier)
    assert code == 4 and "LABELS PROBABLY DO NOT FIT" in err, "no digit was shown to its classifier"
    images, labels = digits("test")
    assert torch.equal(handed_on["images"], images) and torch.equal(handed_on["labels"], labels)
    assert len(images) == 360 and torch.equal(handed_on["tested_images"], images[:4])
    assert calibrated_on and all(torch.equal(known, digits("train")[0][:256]) for known in calibrated_on)
    assert str(handed_on["results"]) == "evaluation.jsonl" and handed_on["workers"] == 1


def test_by_default_every_defence_meets_the_whole_protocol(handed_on, evaluated, small_purifier, labelled):
    code, out, err = evaluated("--json", "--epsilon-l2", 0.75, "--max-shift", 0.3)
    assert code == 0, err
    names = ["undefended", "DiffPure", "GDMP", "ours", "ours, latent", "ours, label", "ours, fixed noise", "the guide alone"]
    assert [row.name for row in handed_on["rows"]] == names
    assert handed_on["config"] == EvaluationConfig() and handed_on["attacks"] == list(attack_suite(EvaluationConfig()))
    ours, saved = handed_on["rows"][3], GuidedPurifier.from_pretrained(small_purifier)
    assert ours.purifier.config == saved.config and handed_on["tested"] is handed_on["rows"]
    weights = load_classifier(small_purifier).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in handed_on["rows"][0].classifier.state_dict().items())
    assert torch.equal(handed_on["images"], labelled[1]) and torch.equal(handed_on["labels"], labelled[2])
    assert [row["defence"] for row in json.loads(out)["rows"]] == names


def test_a_revision_is_of_the_purifier_and_of_the_classifier_beside_it(
    handed_on, command, labelled, small_purifier, tmp_path, hub
):
    hub.folders["v1"] = small_purifier
    words = ["--purifier", "owner/name", "--revision", "v1", "--calibration", labelled[0], "--output", tmp_path / "o"]
    code, _, err = command("evaluate", labelled[0], *words)
    assert code == 0, err
    assert [asked[:2] for asked in hub.asked] == [("owner/name", "v1")] * 4  # purifier, its radius, classifier, presets


def test_every_option_arrives_where_it_belongs(handed_on, evaluated, tmp_path):
    settings = {
        "epsilon": 0.11, "epsilon_l2": 0.6, "max_shift": 0.2, "num_steps": 7, "num_eot": 2, "num_queries": 30, "num_draws": 6,
        "confidence": 0.9, "seed": 5, "batch_size": 2,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    code, _, err = evaluated(
        *words, "--limit", 3, "--workers", 2, "--seconds", 90, "--shard-index", 1, "--num-shards", 4, "--merge", tmp_path / "a",
        "--attacks", "BPDA", "--attacks", "square", "--defences", "GDMP"
    )
    assert code == 0, err
    config = EvaluationConfig(**settings)
    assert handed_on["config"] == config and len(handed_on["images"]) == len(handed_on["labels"]) == 3
    assert handed_on["workers"] == handed_on["tested_workers"] == 2
    assert handed_on["attacks"] == [attack for attack in attack_suite(config) if attack.name in ("BPDA", "square")]
    assert [row.name for row in handed_on["rows"]] == ["GDMP"] and handed_on["tested_seed"] == 5
    assert torch.equal(handed_on["tested_ids"], handed_on["ids"]) and torch.equal(handed_on["tested_labels"], handed_on["labels"])
    assert handed_on["results"] == tmp_path / "o" and handed_on["seconds"] == 90
    assert handed_on["worst"] == tmp_path / "o.worst"
    assert handed_on["also"] == [tmp_path / "a"] and handed_on["share"] == (1, 4)


def test_images_of_another_size_are_evaluated_where_the_purifier_is_told_how(handed_on, command, small_purifier, tmp_path):
    images = np.random.RandomState(0).rand(4, 1, 9, 14).astype(np.float32)
    np.savez(tmp_path / "in.npz", images=images, labels=np.array([3, 1, 2, 0]))
    words = ["evaluate", tmp_path / "in.npz", "--purifier", small_purifier, "--calibration", tmp_path / "in.npz"]
    code, _, err = command(*words)
    assert code == 2 and "the network takes 8x8" in err and err.count("\n") == 1
    options = ["--sizes", "tile", "--tile-stride", 7, "--no-clamp", "--defences", "ours", "--defences", "DiffPure"]
    assert command(*words, *options, "--output", tmp_path / "o")[0] == 0
    saved = GuidedPurifier.from_pretrained(small_purifier).config
    told = dataclasses.replace(saved, sizes="tile", tile_stride=7, clamp=False)
    assert [row.purifier.config for row in handed_on["rows"]] == [dataclasses.replace(told, guidance=UNGUIDED), told]
    assert torch.equal(handed_on["images"], torch.tensor(images))


def test_the_rivals_are_calibrated_on_the_images_that_are_named(
    handed_on, command, labelled, small_purifier, tmp_path, monkeypatch
):
    known = []
    monkeypatch.setattr(GuidedPurifier, "calibrate", lambda purifier, images, ratio: known.append(images) or 3.0)
    other = np.random.RandomState(1).rand(5, 1, 8, 8).astype(np.float32)
    np.savez(tmp_path / "known.npz", images=other)
    words = ["--purifier", small_purifier, "--calibration", tmp_path / "known.npz", "--output", tmp_path / "o"]
    assert command("evaluate", labelled[0], *words)[0] == 0
    assert known and all(torch.equal(images, torch.tensor(other)) for images in known)
    assert handed_on["rows"][2].purifier.config.guidance == dataclasses.replace(UNGUIDED, kind="pixel", scale=3.0)


def test_an_attack_of_ones_own_stands_beside_the_clean_images_and_takes_the_rest_from_the_evaluation(handed_on, evaluated):
    assert evaluated("--attack.norm", "l2", "--attack.num-eot", 1, "--epsilon", 0.3, "--num-steps", 9, "--seed", 4)[0] == 0
    own = AttackConfig(name="own", norm="l2", epsilon=0.3, num_steps=9, num_eot=1, seed=4)
    assert handed_on["attacks"] == [CLEAN, own]
    assert evaluated("--attack.name", "mine", "--attack.epsilon", 0.2, "--attack.loss", "margin", "--attack.seed", 6)[0] == 0
    default = EvaluationConfig()
    own = AttackConfig(name="mine", epsilon=0.2, loss="margin", num_steps=default.num_steps, num_eot=default.num_eot, seed=6)
    assert handed_on["attacks"] == [CLEAN, own]


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 4)])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_failed_self_test_is_code_4_and_said(passed, code, as_json, handed_on, evaluated):
    handed_on["verdict"] = passed
    ended, out, _ = evaluated("--defences", "ours", "--attacks", "standard", *(["--json"] if as_json else []))
    assert ended == code
    if as_json:
        assert json.loads(out)["self_test"]["passed"] is passed and out.count("\n") == 1
    else:
        verdict = "passed" if passed else "FAILED: exact figures mean nothing"
        assert out.splitlines()[-1] == f"gradient self-test {verdict}"


def test_the_purifier_is_scored_in_the_precision_asked_for_and_that_is_said(handed_on, evaluated):
    words = ["--defences", "ours", "--attacks", "exact", "--device", "cpu", "--precision", "bf16"]
    code, out, err = evaluated(*words)
    assert code == 0, err
    assert "scored on cpu in bf16, channels_last; gradients in float32" in out.splitlines()
    ours = handed_on["rows"][0].purifier
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16} and handed_on["tested"][0].purifier is ours
    assert {parameter.dtype for parameter in handed_on["rows"][0].guide.parameters()} == {torch.float32}
    assert json.loads(evaluated(*words, "--json")[1])["computing"]["precision"] == "bf16"
    assert "scored on cpu in float32" in evaluated(*words[:-2])[1].splitlines()


def test_the_text_names_images_attacks_and_paired_comparisons(handed_on, evaluated):
    words = ["--defences", "ours", "--defences", "undefended", "--attacks", "standard", "--attacks", "exact"]
    code, out, _ = evaluated(*words)
    assert code == 0 and "Accuracy on 4 images, percent, with its interval" in out
    # (1 + 1/2 + 0 + 0) / 4 on average; 1.96 standard deviations of the four differences over 2
    half = 1.959964 * np.std([1, 0.5, 0, 0], ddof=1) / 2
    span = f"{100 * (0.375 - half):+.1f} to {100 * (0.375 + half):+.1f}"
    assert f"ours - undefended: +37.5 points ({span}), McNemar p = 1" in out


def test_the_json_holds_rows_comparisons_and_the_confidence_asked_for(handed_on, evaluated):
    words = ["--defences", "ours", "--defences", "undefended", "--defences", "GDMP", "--attacks", "exact", "--attacks", "BPDA"]
    comparisons = {}
    for confidence in (0.5, 0.95):
        result = json.loads(evaluated(*words, "--confidence", confidence, "--json")[1])
        assert [(item["a"], item["b"]) for item in result["comparisons"]] == [("ours", "GDMP"), ("ours", "undefended")]
        comparisons[confidence] = result["comparisons"][1]["difference"]
        columns = {row["defence"]: row["columns"] for row in result["rows"]}
        assert columns["ours"]["exact"]["value"] == 0.625 and columns["undefended"]["minimum, linf"]["value"] == 0.25
    assert comparisons[0.5]["low"] > comparisons[0.95]["low"]


def test_without_ours_there_is_nothing_to_compare(handed_on, evaluated):
    result = json.loads(evaluated("--defences", "GDMP", "--defences", "undefended", "--attacks", "exact", "--json")[1])
    assert result["comparisons"] == []
    result = json.loads(evaluated("--defences", "GDMP", "--defences", "ours", "--attacks", "standard", "--json")[1])
    assert result["comparisons"] == []  # clean images alone are no attack


def test_the_report_holds_the_settings_the_figures_and_the_self_test(handed_on, evaluated, tmp_path):
    words = ["--defences", "ours", "--defences", "undefended", "--attacks", "standard", "--attacks", "exact"]
    code, _, _ = evaluated(*words, "--num-draws", 6, "--report", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert code == 0
    for text in ("Evaluation", "evaluation.num_draws", "purifier.guidance.scale", "undefended", "62.5", "passed"):
        assert text in html, text
    for name in ("data", "labels", "radii", "date", "images"):
        assert f"<dt>{name}</dt>" in html, name


def test_progress_is_told_by_images_attacked(handed_on, evaluated):
    _, _, err = evaluated("--defences", "ours", "--attacks", "exact")
    last = json.loads(err.splitlines()[-1])
    assert (last["job"], last["done"], last["total"]) == ("evaluate", 4, 4)  # images times attacks
    assert (last["defence"], last["attack"], last["accuracy"]) == ("ours", "exact", 0.625)


def test_a_purifier_without_labels_for_its_images_is_refused(command, small_purifier, tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((2, 1, 8, 8), np.float32))
    code, _, err = command(
        "evaluate", tmp_path / "bare.npz", "--purifier", small_purifier, "--calibration", tmp_path / "bare.npz"
    )
    assert code == 2 and "source must have labels" in err


def published_classifier(path, num_classes, channels=1):
    config = ClassifierConfig(
        architecture="cifar_resnet", depth=8, width=8, num_classes=num_classes, in_channels=channels, mean=(0.3,) * channels,
        std=(0.4,) * channels,
    )  # fmt: skip
    network = Classifier(config).eval()
    named = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"net": {**named, "mean": network.mean, "std": network.std}}, path)
    return network


def test_the_classifier_of_a_published_file_is_defended(handed_on, evaluated, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = published_classifier(tmp_path / "net.pth", 10)
    assert evaluated("--classifier", tmp_path / "net.pth", "--json")[0] == 0
    defended = handed_on["rows"][0].classifier
    assert all(torch.equal(value, defended.state_dict()[name]) for name, value in network.state_dict().items())
    assert defended.config.mean == pytest.approx((0.3,))


def test_a_classifier_of_ones_own_is_defended(handed_on, evaluated, tmp_path, monkeypatch):
    """Its eight images are labelled as it does not answer: that is said loudly, and is no success."""
    made = "torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout())"
    (tmp_path / "own_net.py").write_text(f"import torch\nfrom torch import nn\n\ndef net():\n    {made}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    code, _, err = evaluated("--classifier", "own_net:net", "--defences", "undefended")
    assert code == 0, err
    own = handed_on["rows"][0].classifier
    assert (own.origin, own.config.num_classes, own.training) == ("own_net:net", 10, False)
    images = np.random.RandomState(0).rand(8, 1, 8, 8).astype(np.float32)
    answers = own_classifier("own_net:net")(torch.tensor(images)).argmax(dim=1).numpy()
    for shift, ended in ((0, 0), (1, 4)):
        np.savez(tmp_path / "in.npz", images=images, labels=(answers + shift) % 10)
        code, out, err = evaluated("--classifier", "own_net:net", "--defences", "undefended")
        assert code == ended
        assert all(("LABELS PROBABLY DO NOT FIT" in said) == bool(ended) for said in (out, err))
    del sys.modules["own_net"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((3, 1), "labels[0] must be in [0, 3), the classes of the classifier, got 3"),
        ((10, 3), "classifier must be one for images of 1 channels, got 3"),
    ],
)
def test_a_classifier_of_other_classes_or_images_is_one_line(handed_on, evaluated, tmp_path, monkeypatch, words, said):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    published_classifier(tmp_path / "net.pth", *words)
    code, _, err = evaluated("--classifier", tmp_path / "net.pth")
    assert code == 2 and said in err and err.count("\n") == 1


def test_the_committed_evaluation_is_shown_where_there_is_one(capsys, tmp_path):
    from purify_engine.cli.evaluate import show_full_evaluation

    show_full_evaluation(tmp_path / "absent.jsonl")
    assert capsys.readouterr().out == ""
    cells = [protocol.Cell(name, "exact", "linf", (1.0, 0.0), (1.0, 0.0), 0.0, "", {}) for name in ("ours", "GDMP")]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(dataclasses.asdict(cell)) + "\n" for cell in cells))
    show_full_evaluation(tmp_path / "r.jsonl")
    out = capsys.readouterr().out
    assert f"The full evaluation, from {tmp_path / 'r.jsonl'} (`make evaluate-digits` makes it again):" in out
    assert "Accuracy on 2 images" in out and "ours - GDMP: +0.0 points" in out and "self-test" not in out
