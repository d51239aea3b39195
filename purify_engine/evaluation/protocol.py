"""The evaluation protocol: attack, re-score with fresh noise, keep each image's score, take the minimum by image.

The metric. A purifier is random, so the score of one image under one attack is the share of K fresh noise draws whose
verdict is right; its mean over images is the expected accuracy of a single draw. Votes over draws are another metric
and are not used. Scores are drawn twice, K draws each. The headline is the minimum over attacks of all 2K draws: it never
exceeds a column of the table, and is biased low for random defences, because a minimum over noise finds the unlucky draws. The
two sets apart tell how much: the worst attack is picked by one and scored on the other (see summary.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_engine import devices
from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.suite import attack_suite, fitted
from purify_engine.evaluation.workers import shared
from purify_engine.files import append_json_line, read_json_lines

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images, Labels

SCALE_ROUNDING = 1e-5  # relative: calibrated scales that differ by less are the same scale, rounded by different processors


@dataclass(frozen=True)
class Cell:
    """One defence under one attack; `scores[i]` is image i's on K draws, `selection[i]` the same on K others."""

    defence: str
    attack: str
    norm: str
    scores: tuple[float, ...]
    selection: tuple[float, ...]
    seconds: float
    fingerprint: str  # of everything that decides the scores: attack, purifier, weights, images, K
    config: dict[str, Any]
    computed: dict[str, Any] = dataclasses.field(default_factory=dict)  # device, precision and TF32; part of no fingerprint
    ids: tuple[int, ...] | None = None  # of the images, where they are some of a larger set; None: 0, 1, ...

    @property
    def pooled(self) -> tuple[float, ...]:
        """Each image's score over all 2K draws."""
        return tuple((first + second) / 2 for first, second in zip(self.scores, self.selection, strict=True))

    @property
    def accuracy(self) -> float:
        """Expected accuracy of a single draw."""
        return sum(self.pooled) / len(self.pooled)

    def as_record(self) -> dict[str, Any]:
        """What a line of a results file holds."""
        record = {**dataclasses.asdict(self), "accuracy": round(self.accuracy, 6)}
        return record if self.ids is not None else {name: value for name, value in record.items() if name != "ids"}

    @staticmethod
    def from_record(record: dict[str, Any]) -> Cell:
        """The cell of a line; `accuracy` follows from the scores."""
        values = {name: value for name, value in record.items() if name != "accuracy"}
        lists = {name: tuple(values[name]) for name in ("scores", "selection", "ids") if values.get(name) is not None}
        return Cell(**{**values, **lists})


def evaluate(
    defences: Iterable[Defence],
    images: Images,
    labels: Labels,
    config: EvaluationConfig | None = None,
    *,
    attacks: Sequence[AttackConfig] | None = None,
    ids: Ids | None = None,
    results: Path | None = None,
    workers: int = 1,
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Every attack that applies, on every defence; a `results` file keeps finished cells for the next call.

    `images` [N, C, H, W] in [0, 1], `labels` int64 [N]; `ids` int64 [N] key their noise, so that some of a set's images meet the
    noise that they meet among all of them. Running the same command again goes on where it stopped; a changed attack, weight or
    image makes another fingerprint, so nothing stale is reused. `workers` processes of one thread each share the cells; where
    this one is stopped, they stop, and what was finished is in `results`.
    """
    config = config or EvaluationConfig()
    ids = None if ids is None or torch.equal(ids.cpu(), torch.arange(len(images), device="cpu")) else ids
    tasks = {}
    for defence, wanted in _pairs(defences, attacks or attack_suite(config)):
        key = fingerprint(defence, wanted, images, labels, config, ids)
        tasks[key] = (defence, wanted, images, labels, config, key, *(() if ids is None else (ids,)))
    cells = {} if results is None else _finished(tasks, read_cells(results))
    for cell in cells.values():
        on_cell(cell)
    for cell in _run([task for key, task in tasks.items() if key not in cells], workers):
        if results is not None:
            append_json_line(results, cell.as_record())
        on_cell(cell)
        cells[cell.fingerprint] = cell
    return [cells[key] for key in tasks]


def _finished(tasks: Mapping[str, tuple[Any, ...]], cells: Sequence[Cell]) -> dict[str, Cell]:
    """Those of `cells` that are one of `tasks`, by the task's fingerprint.

    A cell is a task's where their fingerprints are equal. Calibration on another processor gives a scale that differs from the
    seventh digit or so on, and with it another fingerprint. So a cell is a task's, too, where only the scales differ, within
    `SCALE_ROUNDING`; its own fingerprint, made from its own settings with this task's images and weights, must then be right.
    """
    by_fingerprint = {cell.fingerprint: cell for cell in cells}
    apart = [(*_without_scale(cell.config), cell) for cell in cells]
    finished = {}
    for key, (defence, wanted, images, labels, config, _, *ids) in tasks.items():
        cell = by_fingerprint.get(key)
        if cell is None:
            settings, scale = _without_scale(_settings(defence, wanted, config))
            tensors = _tensors(defence, images, labels, *ids)
            alike = (cell for rest, other, cell in apart if rest == settings and _same_scale(scale, other))
            cell = next((cell for cell in alike if cell.fingerprint == _hash(cell.config, tensors)), None)
        if cell is not None:
            finished[key] = cell
    return finished


def _run(tasks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Cell]:
    """The cells of `tasks` as they finish. Small images scale over processes, not over the threads of one operation."""
    if workers == 1:
        yield from (run_cell(*task) for task in tasks)
        return
    yield from shared(run_cell, tasks, workers)


def _pairs(defences: Iterable[Defence], attacks: Sequence[AttackConfig]) -> Iterator[tuple[Defence, AttackConfig]]:
    for defence in defences:
        for wanted in attacks:
            if (run := fitted(wanted, defence)) is not None:
                yield defence, run


def run_cell(
    defence: Defence,
    wanted: AttackConfig,
    images: Images,
    labels: Labels,
    config: EvaluationConfig,
    key: str,
    named: Ids | None = None,
) -> Cell:
    """Attack once, then score the result on two disjoint sets of draws; `key` is the cell's fingerprint, `named` its ids."""
    started = time.perf_counter()
    ids = torch.arange(len(images), device=images.device) if named is None else named
    adversarial = attack(defence, images, labels, wanted, ids=ids)
    first = FIRST_SCORING_DRAW + 2 * config.num_draws * config.seed
    scores = score(defence, adversarial, labels, ids, range(first, first + config.num_draws))
    if defence.randomised:
        selection = score(
            defence, adversarial, labels, ids, range(first + config.num_draws, first + 2 * config.num_draws)
        )
    else:
        selection = scores
    return Cell(
        defence=defence.name,
        attack=wanted.name,
        norm="none" if wanted.kind == "none" else wanted.norm,
        scores=scores,
        selection=selection,
        seconds=round(time.perf_counter() - started, 2),
        fingerprint=key,
        config=_settings(defence, wanted, config),
        computed=computed_by(defence),
        ids=None if named is None else tuple(named.tolist()),
    )


def computed_by(defence: Defence) -> dict[str, Any]:
    """Where a defence's verdicts are computed and in which precision, and in which its gradients are."""
    network = defence.classifier if defence.purifier is None else defence.purifier
    if next(network.parameters(), None) is None:
        return {}
    gradients = "float32" if devices.in_sixteen_bits(network) else devices.precision_of(network)
    return {**devices.computing(network), "gradients": gradients}


@torch.no_grad()
def score(defence: Defence, images: Images, labels: Labels, ids: Ids, draws: range) -> tuple[float, ...]:
    """Share of `draws` for which each image is classified correctly; a deterministic defence is asked once."""
    if not defence.randomised:
        draws = draws[:1]
    hits = torch.stack([defence(images, ids, draw).argmax(dim=1) == labels for draw in draws])
    return tuple(round(value, 6) for value in hits.double().mean(dim=0).tolist())


def fingerprint(
    defence: Defence,
    wanted: AttackConfig,
    images: Images,
    labels: Labels,
    config: EvaluationConfig,
    ids: Ids | None = None,
) -> str:
    """Hash of everything that decides a cell's scores."""
    return _hash(_settings(defence, wanted, config), _tensors(defence, images, labels, ids))


def _hash(settings: dict[str, Any], tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()[:16]


def _tensors(defence: Defence, images: Images, labels: Labels, ids: Ids | None = None) -> list[Tensor]:
    """Images, labels, ids that are not 0, 1, ..., and every weight of every network that takes part."""
    networks = [defence.classifier, defence.bare, defence.guide, defence.purifier]
    weights = (value for network in networks if network is not None for value in network.state_dict().values())
    return [images, labels, *(() if ids is None else (ids,)), *weights]


def _settings(defence: Defence, wanted: AttackConfig, config: EvaluationConfig) -> dict[str, Any]:
    return {
        "attack": dataclasses.asdict(wanted),
        "defence": defence.describe(),
        "num_draws": config.num_draws,
        "scoring_seed": config.seed,
    }


def _without_scale(settings: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The settings as JSON keeps them, and the guidance scale taken out of them; 0 where nothing guides."""
    plain = json.loads(json.dumps(settings))
    purifier = plain.get("defence", {}).get("purifier") or {}
    return plain, purifier.get("guidance", {}).pop("scale", 0.0)


def _same_scale(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SCALE_ROUNDING)


def read_cells(results: Path) -> list[Cell]:
    """The finished cells of a results file; none where there is no file, and a line that a kill cut short is left out."""
    return [Cell.from_record(record) for record in read_json_lines(results)] if results.exists() else []
