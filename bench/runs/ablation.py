"""Ablations of a purifier on validation images: one thing varied at a time, against the same attacks and noise.

    python -m bench ablation steps --purifier FOLDER --data TRAINING --images 64     appends to bench/results/ablations-DATA.jsonl
    python -m bench ablation --list                                                  what there is

Each (row, attack) is one JSON line, written at once; the same command goes on where it was stopped. Images are validation images,
the last of the training data, never a test set; scales are calibrated on the others. Rows are attacked by what the level says:
transferred is PGD on the classifier alone; adaptive adds PGD through the purifier's gradient and transfer from the guide, light
enough for two cores. These figures choose between settings; those that are claimed come from `purify-engine evaluate`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.core.ablations import ABLATIONS, BASE, TERMS, TWO, Ablation, Effort, Radii, Variant
from bench.core.run import RESULTS, commit
from bench.subjects.ablated import LEVELS, LeftOutError, OutOfTimeError, Scored, Subject, attacks, calls, digest, measured
from bench.subjects.validation import Chosen, validation
from purify_engine import GuidedPurifier, load_classifier
from purify_engine.benchmark.machine import machine_name
from purify_engine.config import AttackConfig, Sampler, require
from purify_engine.evaluation.cells import Cell
from purify_engine.evaluation.defences import LATENT_RATIO, Defence
from purify_engine.evaluation.statistics import paired_difference, wilson
from purify_engine.evaluation.suite import CLEAN
from purify_engine.files import append_json_line, read_json_lines

DIGITS_RADII = Radii(0.15, 0.75, 0.3)


@dataclass
class Study:
    """One call of the command: what is attacked, on which images, how hard, where lines go, and until when."""

    subject: Subject
    chosen: Chosen
    effort: Effort
    level: str
    results: Path
    batch: int
    ends: float

    def __post_init__(self) -> None:
        known = read_json_lines(self.results) if self.results.exists() else []
        self.finished = {line["key"]: line for line in known}
        self.written = {(line["ablation"], line["variant"], line["key"]) for line in known}
        base = [line for line in known if line["variant"] == BASE.name]
        self.base = digest(self.subject.settings(BASE), self._given(BASE), asdict(self.effort))
        self.bases = {(line["ablation"], line["cell"]["attack"]): line for line in base if line["base"] == self.base}

    def _given(self, variant: Variant) -> str:
        """The weights, the images and their labels that a variant's figures are of."""
        subject = self.subject
        names = ("second" if variant.guide == TWO else variant.guide, variant.classifier)
        networks = [subject.networks[name] for name in names if name]
        purifier = subject.purifier
        own = [purifier.denoiser, *([] if purifier.guide is None else [purifier.guide]), subject.classifier]
        return digest(*own, *networks, self.chosen.images, self.chosen.labels, self.chosen.ids)

    def run(self, name: str) -> bool:
        """Every cell of one ablation, a column after the other; False where the time was not enough."""
        rows = []
        for variant in ABLATIONS[name].variants:
            try:
                self.subject.require(variant)
                rows.append(variant)
            except LeftOutError as reason:
                print(f"{name}: {variant.name} is left out: {reason}", flush=True)
        for variant, how in self._cells(ABLATIONS[name], rows):
            try:
                self._cell(name, variant, how)
            except LeftOutError as reason:
                print(f"{name}: {variant.name} under {how.name} is left out: {reason}", flush=True)
            except OutOfTimeError:
                print(f"{name}: stopped in time before {variant.name} under {how.name}; the same command goes on there")
                return False
        return True

    def _cells(self, ablation: Ablation, rows: Sequence[Variant]) -> list[tuple[Variant, AttackConfig]]:
        """Cheap attacks first, on all rows, so that what a stopped run leaves is whole columns; clean images once."""
        cells: dict[tuple[str, str], tuple[Variant, AttackConfig]] = {}
        for threat in ablation.threats:
            for variant in rows:
                label = self.subject.takes_label(variant)
                runs = attacks(self.level, threat, self.effort, variant, takes_label=label)
                cells |= {(variant.name, how.name): (variant, how) for how in runs}
        order = [CLEAN.name, *LEVELS["adaptive"]]
        return sorted(cells.values(), key=lambda cell: next(n for n, name in enumerate(order) if cell[1].name.startswith(name)))

    def _cell(self, name: str, variant: Variant, how: AttackConfig) -> None:
        key = digest(self.subject.settings(variant), self._given(variant), asdict(how), self.effort.draws)
        if (name, variant.name, key) in self.written:
            return
        if key in self.finished:  # the same settings, under another name
            line = {**self.finished[key], **self._named(name, variant)}
        else:
            if time.monotonic() > self.ends:
                raise OutOfTimeError
            defence, guide = self.subject.defence(variant), self.subject.guide(variant)
            data = self.chosen
            scored = measured(defence, how, data.images, data.labels, data.ids, guide,
                              draws=self.effort.draws, batch=self.batch, ends=self.ends)  # fmt: skip
            line = {**self._named(name, variant), **self._line(defence, variant, how, scored, key)}
        line |= self._compared(name, line["cell"])
        append_json_line(self.results, line)
        self.written.add((name, variant.name, key))
        self.finished.setdefault(key, line)
        self.bases |= {(name, line["cell"]["attack"]): line} if variant == BASE else {}
        print(_said(line), flush=True)

    def _named(self, name: str, variant: Variant) -> dict[str, Any]:
        return {"ablation": name, "variant": variant.name, "place": variant.place, "base": self.base}

    def _line(self, defence: Defence, variant: Variant, how: AttackConfig, scored: Scored, key: str) -> dict[str, Any]:
        config = {"attack": asdict(how), "defence": self.subject.settings(variant), "num_draws": self.effort.draws}
        scale = None if defence.purifier is None else defence.purifier.config.guidance.scale
        norm = "none" if how.kind == "none" else how.norm
        cell = Cell(variant.name, how.name, norm, scored.scores, scored.selection, scored.seconds, key, config,
                    ids=tuple(self.chosen.ids.tolist()))  # fmt: skip
        found = wilson(cell.pooled)
        return {
            "key": key, "data": self.chosen.name, "n": found.n, "accuracy": round(found.value, 4), "low": round(found.low, 4),
            "high": round(found.high, 4), "agreement": round(scored.agreement, 4), "guide_right": scored.guide_right,
            "scale": scale, "ms_an_image": round(scored.ms_an_image, 2), "calls": calls(defence),
            "machine": machine_name(self.chosen.images.device), "commit": commit(),
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "cell": cell.as_record(),
        }  # fmt: skip

    def _compared(self, name: str, record: dict[str, Any]) -> dict[str, Any]:
        """Against the base row under the attack of the same name, image by image."""
        cell, beside = Cell.from_record(record), self.bases.get((name, record["attack"]))
        if beside is None or cell.defence == BASE.name:
            return {"against_base": None}
        gap = paired_difference(cell.pooled, Cell.from_record(beside["cell"]).pooled)
        return {"against_base": {"value": round(gap.value, 4), "low": round(gap.low, 4), "high": round(gap.high, 4)}}


def _said(line: dict[str, Any]) -> str:
    gap = line["against_base"]
    beside = "" if gap is None else f", {100 * gap['value']:+.1f} to ours ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
    figure = f"{100 * line['accuracy']:.1f} ({100 * line['low']:.1f}–{100 * line['high']:.1f})"
    cost = f"{line['ms_an_image']:.0f} ms an image, {line['cell']['seconds']:.0f} s"
    where = f"{line['ablation']}: {line['variant']}, {line['cell']['attack']}"
    return f"{where}: {figure}{beside}; agrees with the guide {line['agreement']:.3f}; {cost}"


def main(words: list[str]) -> int:
    chosen = _options().parse_args(words)
    if chosen.list or not chosen.names:
        print("\n".join(f"  {name:<16}{each.about}, {len(each.variants)} rows" for name, each in ABLATIONS.items()))
        return 0 if chosen.list else 2
    study = _study(chosen)
    for name in chosen.names:
        if not study.run(name):
            return 0
    return 0


def _study(chosen: argparse.Namespace) -> Study:
    ends = time.monotonic() + chosen.seconds
    device = torch.device(chosen.device)
    asked = _given(chosen, "t_star", "num_steps", "sampler", "eta")
    purifier = GuidedPurifier.from_pretrained(chosen.purifier, device=device).configured(**asked)
    classifier = load_classifier(chosen.classifier or chosen.purifier, device=device)
    data = validation(chosen.data, purifier, images=chosen.images, held=chosen.validation, calibration=chosen.calibration)
    networks = {name: network(path, device) for name, path in (word.split("=", 1) for word in chosen.network)}
    radii = DIGITS_RADII if chosen.data == "digits" else Radii()
    effort = Effort(chosen.steps, chosen.eot, chosen.gradient, chosen.draws, replace(radii, **_given(chosen, *asdict(radii))))
    subject = Subject(purifier, classifier, data.known, chosen.term, chosen.ratio, networks)
    results = chosen.results / f"ablations-{data.name}.jsonl"
    return Study(subject, data, effort, chosen.level, results, chosen.batch, ends)


def _given(chosen: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Of these options those that were given."""
    return {name: value for name in names if (value := getattr(chosen, name)) is not None}


def network(path: str, device: torch.device) -> nn.Module:
    """The guide of a purifier's folder, or the classifier of a folder or a file."""
    if (Path(path) / "guide.safetensors").exists():
        guide = GuidedPurifier.from_pretrained(path, device=device).guide
        return require_module(guide, path)
    return load_classifier(path, device=device)


def require_module(found: object, path: str) -> nn.Module:
    require(isinstance(found, nn.Module), "network", "NAME=PATH of a folder with a guide, or of a classifier", path)
    assert isinstance(found, nn.Module)
    return found


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("python -m bench ablation", description=(__doc__ or "").splitlines()[0])
    options.add_argument("names", nargs="*", choices=[*ABLATIONS, []], help="which ablations, in this order")
    options.add_argument("--list", action="store_true", help="say what there is")
    options.add_argument("--purifier", default="digits", help="a name or a folder")
    options.add_argument("--classifier", help="what is defended; by default the one beside the purifier")
    more = "another guide or classifier, by the name that variants have for it: weak, plain, l2, second, alike"
    options.add_argument("--network", action="append", default=[], metavar="NAME=PATH", help=more)
    options.add_argument("--data", default="digits", help="training data: digits, CIFAR's batches, .npz, class folders")
    options.add_argument("--images", type=int, default=64, help="validation images, as many of each class")
    options.add_argument("--validation", type=int, default=2000, help="so many of the last images are for validation")
    options.add_argument("--calibration", type=int, default=64, help="training images that scales are calibrated on")
    options.add_argument("--seconds", type=float, default=3600, help="stop, between two batches, after this long")
    options.add_argument("--level", choices=list(LEVELS), default="adaptive", help="which attacks")
    options.add_argument("--term", choices=list(TERMS), default="latent", help="the base row's guidance")
    options.add_argument("--ratio", type=float, default=LATENT_RATIO, help="the base row's r")
    options.add_argument("--t-star", type=int, help="the base row's; the purifier's own by default, as the next three")
    options.add_argument("--num-steps", type=int)
    options.add_argument("--sampler", choices=list(Sampler.__args__))  # type: ignore[attr-defined]
    options.add_argument("--eta", type=float)
    options.add_argument("--steps", type=int, default=10, help="of the adaptive attack; cheaper attacks take four times as many")
    options.add_argument("--eot", type=int, default=1, help="noise draws a step of the adaptive attack")
    options.add_argument("--gradient", default="exact", help="the adaptive attack's view of the purifier, such as surrogate")
    options.add_argument("--draws", type=int, default=4, help="K; verdicts are of 2K fresh draws")
    options.add_argument("--linf", type=float, help="radius; 8/255, for the digits 0.15")
    options.add_argument("--l2", type=float, help="radius; 0.5, for the digits 0.75")
    options.add_argument("--shift", type=float, help="StAdv's, in pixels; 0.3")
    options.add_argument("--batch", type=int, default=64, help="images attacked and scored at once")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="in PyTorch's words")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    return options

