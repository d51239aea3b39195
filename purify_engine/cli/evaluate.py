"""`purify-engine evaluate`: every attack of the protocol on every defence, resumable, with the headline per image."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from purify_engine.cli.budget import Budget, budget, chosen, numbered, require_same_classes, with_labels
from purify_engine.cli.defended import classes_of, load_defended
from purify_engine.cli.evaluated import computed, found_in, said, said_of_sanity, sane
from purify_engine.cli.labelled import DIGITS, labelled, spread
from purify_engine.cli.loading import (
    Device,
    LayoutName,
    NetworkPrecision,
    PresetName,
    PurifierName,
    RevisionName,
    image_shape,
    load_purifier,
    stored_training,
)
from purify_engine.cli.options import given, options_of
from purify_engine.cli.report import write_evaluation
from purify_engine.config import UNIT_RANGE, AttackConfig, EvaluationConfig, PurifierConfig, require, to_dict

if TYPE_CHECKING:
    from torch import nn

    from purify_engine.evaluation.defences import Defence
    from purify_engine.purifier import GuidedPurifier
    from purify_engine.types import Images

CHECK_FAILED = 4
FULL_EVALUATION = Path("bench/results/digits.jsonl")

Names = Annotated[list[str] | None, Parameter(negative_iterable=())]

RADIUS = "as the guide was trained for, else to be given"
RADII_WITHOUT_OPTION = {
    "epsilon": f"{RADIUS}; for the digits 0.15",
    "epsilon_l2": f"{RADIUS}; for the digits 0.75",
    "max_shift": "to be given; for the digits 0.3",
}
EvaluationOptions: Any = options_of(EvaluationConfig, derived=RADII_WITHOUT_OPTION)
OF_THE_EVALUATION = dict.fromkeys(("epsilon", "num_steps", "num_eot", "seed"), "the evaluation's")
AttackOptions: Any = options_of(AttackConfig, derived=OF_THE_EVALUATION)
SIZE_OPTIONS = ("sizes", "tile_stride", "clip_input", "clamp")  # what a purifier for other images than its network's must be told
SizeOptions: Any = options_of(
    PurifierConfig, without=tuple({field.name for field in fields(PurifierConfig)} - {*SIZE_OPTIONS}), saved=True
)


def evaluate(
    source: str = "digits",
    *,
    purifier: PurifierName = "digits",
    preset: PresetName = None,
    layout: LayoutName = None,
    revision: RevisionName = None,
    classifier: str | None = None,
    normalisation: str | None = None,
    output: Path = Path("evaluation.jsonl"),
    report: Path | None = None,
    calibration: str | None = None,
    limit: int | None = None,
    defences: Names = None,
    attacks: Names = None,
    transfer_from: Names = None,
    device: Device = "auto",
    precision: NetworkPrecision = "auto",
    workers: int = 1,
    seconds: float | None = None,
    shard_index: int | Literal["auto"] | None = None,
    num_shards: int | None = None,
    merge: Annotated[list[Path] | None, Parameter(negative_iterable=())] = None,
    sanity: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    attack: AttackOptions | None = None,
    sizes: Annotated[SizeOptions | None, Parameter(name="*")] = None,
    options: Annotated[EvaluationOptions | None, Parameter(name="*")] = None,
) -> int:
    """Attack the classifier behind PURIFIER by every attack of the protocol, and compare defences on the same images.

    Every adversarial image is scored on fresh noise draws. Finished cells are appended to OUTPUT and not computed again, so the
    same command goes on where it was stopped. The headline is each image's score under its own worst attack. The purifier that is
    scored computes in PRECISION, as it would be deployed; gradients go through the same weights in float32 where PRECISION is of
    16 bits. A radius that is not given is the one that the guide was trained for, or for the digits the digits'; attacks in a
    norm without one are left out, and named.

    Parameters
    ----------
    source:
        "digits" (its held-out scans), class folders of images, or a .npz file with `images` and `labels`; of CIFAR's batches
        (cifar-10-batches-py or the .tar.gz) and of a folder with test-0.npz, ... the test split. Folders become labels by the
        classifier's names of its classes, or where it names none, by their sorted position.
    classifier:
        What is defended: an embedded name, a folder with a classifier, a published checkpoint (TRADES, RobustBench, torchvision,
        ...), or your own as module:factory, a callable that returns an nn.Module from images in [0, 1] to logits, whose names of
        classes are compared where it has class_names; by default the one beside the purifier.
    normalisation:
        Of that checkpoint's images, where neither the file nor its name tells it: none, half, cifar10, cifar100, imagenet.
    output:
        JSON lines, one a cell: scores image by image, and everything that decided them. A folder beside it, *.worst, keeps each
        image's worst adversarial image of each norm, as .npz files, for the scores afresh; without it these attack again.
    report:
        Also write a report, one HTML file, and its figures beside it as CSV and JSON.
    calibration:
        Training images that the guidance scales of GDMP, "ours, latent", "ours, label" and "ours, both" are calibrated on: a
        folder, a file, or "digits", which is taken where SOURCE is "digits". Never those evaluated. Not needed where --defences
        leaves these out.
    limit:
        Only so many images, as many of each class as of any other: always the same ones, with the noise that they have among all.
    defences:
        Only these rows: undefended, DiffPure, GDMP, ours, "ours, latent", "ours, label", "ours, both" (those that ours is not),
        "ours, fixed noise", "ours, NAME" for each preset in the purifier's folder, "the guide alone".
    attacks:
        Only these attacks of the protocol, by name, such as exact or BPDA.
    transfer_from:
        Further classifiers, each named as CLASSIFIER is: what fools them, one by one and together, is tried on every row.
    workers:
        Processes of one thread each that share the work; small images scale over processes better than over threads.
    seconds:
        Stop within so many seconds: no piece is begun that would end too late, judging by earlier ones. The same command goes on.
    shard_index:
        Work on one share of the images, counted from 0, with an OUTPUT of its own: several machines share an evaluation. auto:
        by torchrun's or Slurm's environment, num_shards too.
    num_shards:
        How many shares there are.
    merge:
        Outputs of other shares or machines: what is finished there is not computed again, and stands in the tables.
    sanity:
        Also ask whether the attack on ours is sound: about nothing withstands 8 times the radius, twice the steps or the draws
        neither raise accuracy nor lower it by more than 2 points, and neither a black box nor a gradient without the guide's
        does better. Its cells go beside OUTPUT.
    json:
        Print the result as one JSON line.
    attack:
        One attack of your own instead of the protocol's, such as --attack.norm l2 --attack.gradient bpda.
    """
    require(workers >= 1, "workers", "at least 1", workers)
    require(limit is None or limit >= 1, "limit", "at least 1", limit)
    require(seconds is None or seconds > 0, "seconds", "positive", seconds)
    require(seconds is None or not sanity, "sanity", "left out where seconds are given: it takes whole cells", sanity)
    from purify_engine.conversion import Stated
    from purify_engine.data.shares import share_of
    from purify_engine.devices import computing
    from purify_engine.evaluation.row_self_test import SELF_TESTED, row_self_tests
    from purify_engine.evaluation.self_test_said import keep_self_test
    from purify_engine.presets import presets_of

    calibration = calibration or (DIGITS if source == DIGITS else None)
    ours = load_purifier(purifier, sizes, device, precision, preset=preset, layout=layout, revision=revision)
    held_to = budget(options, source, stored_training(purifier, layout, revision).get("guide"))
    config, wanted = held_to.config, _attacks(held_to, attacks, given(attack))
    defended = load_defended(classifier or purifier, ours, normalisation=normalisation, revision=None if classifier else revision)
    data = labelled(source, image_shape(ours), split="test").to(ours.device)
    everyone = numbered(data, defended)
    others = _others(transfer_from, ours, defended, attacks)
    presets = presets_of(purifier, Stated(layout=layout), revision)
    rows = tuple(replace(row, others=others) for row in _defences(ours, defended, calibration, defences, presets))
    images, labels, ids, told, doubt = chosen(data, everyone, defended, limit)
    wanted, left_out = with_labels(wanted, labels, attacks)
    few = slice(0, SELF_TESTED)
    self_test = row_self_tests(rows, images[few], labels[few], ids=ids[few], seed=config.seed, workers=workers)
    keep_self_test(output, self_test)
    share = share_of(shard_index, num_shards)
    how: dict[str, Any] = {"attacks": wanted, "ids": ids, "results": output, "also": merge or (), "workers": workers}
    found = computed(rows, images, labels, config, **how, seconds=seconds, share=(share.index, share.count))
    checks = sane(rows, images, labels, config, ids=ids, results=output, workers=workers) if sanity else []
    of = {"source": source, "images": len(images), "of": data.count, "labels": told, "doubt": doubt, "calibration": calibration}
    about = {"data": of, "evaluation": held_to.settings(), "sanity": list(map(asdict, checks))}
    if report is not None:
        settings = {**about, "purifier": to_dict(ours.config), "computing": computing(ours)}
        top = {**_about(source, ours, images), "labels": doubt or told, "radii": held_to.said()}
        write_evaluation(report, found, self_test=self_test, configuration=settings, confidence=config.confidence, about=top)
    lines = [told, held_to.said(), *filter(None, (left_out, doubt)), *map(said_of_sanity, checks)]
    said(found, self_test, config.confidence, as_json=json, ours=ours, about=about, lines=lines)
    return 0 if self_test["passed"] and not doubt and all(check.passed for check in checks) else CHECK_FAILED


def show_full_evaluation(results: Path = FULL_EVALUATION) -> None:
    """The committed evaluation, where this is a checkout that has it."""
    if results.exists():
        print(f"\nThe full evaluation, from {results} (`make evaluate-digits` makes it again):")
        said(found_in([results]), None, EvaluationConfig().confidence, as_json=False)


def _defences(
    ours: GuidedPurifier,
    classifier: nn.Module,
    calibration: str | None,
    names: list[str] | None,
    presets: dict[str, PurifierConfig],
) -> tuple[Defence, ...]:
    from purify_engine.evaluation.defences import CALIBRATED, CALIBRATION_IMAGES, defence_names, is_guided, standard_defences

    presets = {name: replace(config, image_range=UNIT_RANGE) for name, config in presets.items()}
    wanted = _chosen(defence_names(ours, presets), names, "defences")
    if any(map(is_guided, wanted)):
        require_same_classes(ours.guide, classifier)
    uncalibrated, known = [name for name in wanted if name in CALIBRATED], None
    if uncalibrated:
        how = f"given (--calibration, training images) to calibrate {' and '.join(uncalibrated)}, or these left out by --defences"
        require(calibration is not None, "calibration", how, calibration)
        found = labelled(str(calibration), image_shape(ours)).to(ours.device)
        is_mixed = calibration == DIGITS  # the committed evaluation was calibrated on the first of them
        known = found.rows(range(CALIBRATION_IMAGES) if is_mixed else spread(found.count, CALIBRATION_IMAGES))
    return standard_defences(ours, classifier, known, wanted, presets=presets)


def _others(
    names: list[str] | None, ours: GuidedPurifier, defended: nn.Module, attacks: list[str] | None
) -> tuple[nn.Module, ...]:
    """The classifiers that attacks are transferred from, of as many classes as the one that is defended."""
    asked = [name for name in attacks or () if name.startswith("transfer from others")]
    require(bool(names) or not asked, "transfer_from", f"given, a classifier or more, for {' and '.join(asked)}", None)
    found, (count, _) = tuple(load_defended(name, ours) for name in names or ()), classes_of(defended)
    for name, other in zip(names or (), found, strict=True):
        its, _ = classes_of(other)
        fits = f"classifiers of {count} classes, as the one that is defended"
        require(its == count, "transfer_from", fits, f"{name}, of {its}")
    return found


def _attacks(held_to: Budget, names: list[str] | None, own: dict[str, Any]) -> list[AttackConfig]:
    from purify_engine.evaluation.suite import CLEAN, attack_suite, known_attacks

    config = held_to.config
    if not own:
        known = known_attacks(config)
        wanted = [known[name] for name in _chosen(tuple(known), names, "attacks")] if names else list(attack_suite(config))
        return held_to.known(wanted, names)
    settings = {"epsilon": config.epsilon, "num_steps": config.num_steps, "num_eot": config.num_eot, "seed": config.seed}
    attack = AttackConfig(**{"name": "own", **settings, **own})
    radius = f"given (--attack.epsilon): nothing says how large {attack.norm} perturbations of these images may be"
    require("epsilon" in own or held_to.says_of(attack.norm), "attack.epsilon", radius, None)
    return [CLEAN, attack]


def _chosen(known: Sequence[str], names: list[str] | None, option: str) -> list[str]:
    for name in names or ():
        require(name in known, option, f"of {', '.join(known)}", name)
    return [name for name in known if not names or name in names]


def _about(source: str, ours: GuidedPurifier, images: Images) -> dict[str, str]:
    from purify_engine.devices import described

    height, width = images.shape[2:]
    data = f"{source}, {len(images):,} images of {width}×{height} pixels"
    return {"data": data, "purifier": described(ours), "date": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"}
