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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_engine import devices
from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.cells import Cell, merged, read_cells
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.memory import images_at_once, peak_of
from purify_engine.evaluation.pieces import MOST, Deadline, in_order, pieces
from purify_engine.evaluation.scoring import Stopwatch, agreement, cost, counted, shares, verdicts_of
from purify_engine.evaluation.suite import EXACT, attack_suite, decisive, fitted
from purify_engine.evaluation.workers import shared
from purify_engine.evaluation.worst_images import WorstImages
from purify_engine.files import append_json_line

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images, Labels

SCALE_ROUNDING = 1e-5  # relative: calibrated scales that differ by less are the same scale, rounded by different processors


def evaluate(
    defences: Iterable[Defence],
    images: Images,
    labels: Labels,
    config: EvaluationConfig | None = None,
    *,
    attacks: Sequence[AttackConfig] | None = None,
    ids: Ids | None = None,
    results: Path | None = None,
    worst: Path | None = None,
    workers: int = 1,
    also: Sequence[Path] = (),
    deadline: Deadline | None = None,
    share: tuple[int, int] = (0, 1),
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Every attack that applies, on every defence; a `results` file keeps what is finished for the next call.

    `images` [N, C, H, W] in [0, 1], `labels` int64 [N]; `ids` int64 [N] key their noise, so that some of a set's images meet the
    noise that they meet among all of them. Cells are computed in pieces of `config.batch_size` images, and each piece is a line
    of `results` once it is done. Running the same command again goes on where it stopped, with pieces of any size; a changed
    attack, weight or image makes another fingerprint, so nothing stale is reused. `workers` processes of one thread each share
    the pieces; where this one is stopped, they stop, and what was finished is in `results`.

    worst: a folder that keeps each image's worst adversarial image of each norm, so that `validate` need not attack again.
    also: other results files, whose finished pieces count. deadline: no piece is begun that would not be done by then, as long
    as pieces took before; the cells that come back may then lack images, or be missing. share: (i, n), every n-th image alone,
    from the i-th on, in a mixed order. on_cell: told what was found, then every piece as it is done.
    """
    config, deadline = config or EvaluationConfig(), deadline or Deadline()
    ids = _named(ids, images)
    tasks = {}
    for defence, wanted in _pairs(defences, attacks or attack_suite(config)):
        key = fingerprint(defence, wanted, images, labels, config, ids)
        tasks[key] = (defence, wanted, images, labels, config, key, *(() if ids is None else (ids,)))
    known = merged(cell for path in (*([] if results is None else [results]), *also) for cell in read_cells(path))
    cells = _finished(tasks, known)
    for cell in cells.values():
        on_cell(cell)
    numbers = range(len(images)) if ids is None else ids.tolist()
    own = set(in_order(len(images))[share[0] :: share[1]])
    left = {key: _places(numbers, cells.get(key)) & own for key in tasks}
    size = piece_size([tasks[key][0] for key, places in left.items() if places], images, labels, config, workers)
    planned = (_piece(tasks[key], rows) for key, rows in pieces(left, len(images), size, deadline))
    likeliest = sorted(tasks, key=lambda key: tasks[key][1].name != EXACT)  # to be the strongest, which wins among equals
    kept = None if worst is None else WorstImages(worst, likeliest)
    marks = {} if kept is None else {defence.name: identity(defence, images, labels, ids) for defence in _rows(tasks)}
    for piece in shared(run_piece, planned, workers):
        deadline.measured(piece.fingerprint, piece.seconds, len(piece.scores))
        if results is not None:
            append_json_line(results, piece.as_record())
        if kept is not None:
            kept.keep(marks[piece.defence], piece)
        cell = dataclasses.replace(piece, adversarial=None)
        on_cell(cell)
        cells[cell.fingerprint] = _as_one([cells[cell.fingerprint], cell] if cell.fingerprint in cells else [cell])
    return [cells[key] for key in tasks if key in cells]


def _rows(tasks: Mapping[str, tuple[Any, ...]]) -> list[Defence]:
    """The defences of the tasks, each once."""
    return list({task[0].name: task[0] for task in tasks.values()}.values())


def _places(numbers: Sequence[int], found: Cell | None) -> set[int]:
    """Those places whose images a cell lacks."""
    if found is None:
        return set(range(len(numbers)))
    done = set(found.images)
    return {place for place, number in enumerate(numbers) if number not in done} if found.missing else set()


def _piece(task: tuple[Any, ...], rows: Sequence[int]) -> tuple[Any, ...]:
    """The task on some of its images."""
    defence, wanted, images, labels, config, key, *ids = task
    if len(rows) == len(images):
        return task
    chosen = torch.tensor(rows, device=images.device)
    named = ids[0][chosen] if ids else chosen
    return defence, wanted, images[chosen], labels[chosen], config, key, named, len(images), (images, labels)


def piece_size(
    defences: Sequence[Defence], images: Images, labels: Labels, config: EvaluationConfig, workers: int = 1
) -> int:
    """Images of a piece: as configured, or as many as memory holds while the costliest of the defences is attacked."""
    if config.batch_size is not None or not defences:
        return config.batch_size or MOST
    costliest = max(defences, key=lambda defence: (defence.purifier is not None, defence.guide is not None))

    def gradient(count: int) -> None:
        some, ids = images[:count], torch.arange(count, device=images.device)
        attack(costliest, some, labels[:count], AttackConfig(name="trial", num_steps=1, num_eot=1), ids=ids)

    return images_at_once(images, gradient, MOST, workers)


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
        found = [by_fingerprint[key]] if key in by_fingerprint else []
        if not found or found[0].missing:
            settings, scale = _without_scale(_settings(defence, wanted, config))
            tensors = _tensors(defence, images, labels, *ids)
            alike = (cell for rest, other, cell in apart if rest == settings and _same_scale(scale, other) and cell not in found)
            found += [cell for cell in alike if cell.fingerprint == _hash(cell.config, tensors)]
        if found:
            finished[key] = _as_one(found)
    return finished


def _as_one(cells: Sequence[Cell]) -> Cell:
    """Cells of the same evaluation, whose calibrated scales differ by rounding, under the first one's fingerprint."""
    return merged(dataclasses.replace(cell, fingerprint=cells[0].fingerprint) for cell in cells)[0]


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
    of: int | None = None,
    pool: tuple[Images, Labels] | None = None,
) -> Cell:
    """Attack once, then score the result on two disjoint sets of draws.

    key: the cell's fingerprint. named: the images' ids. of: how many images the cell has, where these are some of them; pool: all
    of them, and their labels.
    """
    whole = Stopwatch(images.device)
    ids = torch.arange(len(images), device=images.device) if named is None else named
    with peak_of(images.device) as peak:
        adversarial = attack(defence, images, labels, wanted, ids=ids, pool=pool, batch_size=config.batch_size)
    first = FIRST_SCORING_DRAW + 2 * config.num_draws * config.seed
    scoring = Stopwatch(images.device)
    verdicts = verdicts_of(defence, adversarial, ids, range(first, first + 2 * config.num_draws))
    spent, hits = scoring.seconds, verdicts == labels.cpu()
    return Cell(
        defence=defence.name,
        attack=wanted.name,
        norm="none" if wanted.kind == "none" else wanted.norm,
        scores=shares(hits[: config.num_draws]),
        selection=shares(hits[config.num_draws :] if defence.randomised else hits),
        seconds=round(whole.seconds, 2),
        fingerprint=key,
        config=_settings(defence, wanted, config),
        computed=computed_by(defence),
        ids=None if named is None else tuple(named.tolist()),
        of=of,
        labels=tuple(labels.tolist()),
        agreement=agreement(defence, adversarial, verdicts),
        verdicts=counted(verdicts),
        cost=cost(defence, spent, verdicts, peak),
        adversarial=adversarial.to(torch.promote_types(adversarial.dtype, torch.float32)).cpu().numpy(),
    )


def run_piece(defence: Defence, wanted: AttackConfig, images: Images, labels: Labels, *rest: Any) -> Cell:
    """`run_cell`; where a GPU's memory is too small, in halves."""
    try:
        return run_cell(defence, wanted, images, labels, *rest)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    torch.cuda.empty_cache()
    config, key, *named = rest
    ids = named[0] if named else torch.arange(len(images), device=images.device)
    of, pool = named[1:] if len(named) > 1 else (len(images), (images, labels))
    halves = torch.arange(len(images), device=images.device).chunk(2)
    return merged(run_piece(defence, wanted, images[half], labels[half], config, key, ids[half], of, pool) for half in halves)[0]


def computed_by(defence: Defence) -> dict[str, Any]:
    """Where a defence's verdicts are computed and in which precision, and in which its gradients are."""
    network = defence.classifier if defence.purifier is None else defence.purifier
    if next(network.parameters(), None) is None:
        return {}
    gradients = "float32" if devices.in_sixteen_bits(network) else devices.precision_of(network)
    return {**devices.computing(network), "gradients": gradients}


def score(defence: Defence, images: Images, labels: Labels, ids: Ids, draws: range) -> tuple[float, ...]:
    """Share of `draws` for which each image is classified correctly; a deterministic defence is asked once."""
    return shares(verdicts_of(defence, images, ids, draws) == labels.cpu())


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


def identity(defence: Defence, images: Images, labels: Labels, ids: Ids | None = None) -> str:
    """Hash of a defence and of the data that it is evaluated on, whatever the attack."""
    return _hash({"defence": defence.describe()}, _tensors(defence, images, labels, _named(ids, images)))


def _named(ids: Ids | None, images: Images) -> Ids | None:
    """None where the ids are 0, 1, ..."""
    return None if ids is None or torch.equal(ids.cpu(), torch.arange(len(images), device="cpu")) else ids


def _hash(settings: dict[str, Any], tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()[:16]


def _tensors(defence: Defence, images: Images, labels: Labels, ids: Ids | None = None) -> list[Tensor]:
    """Images, labels, ids that are not 0, 1, ..., and every weight of every network that takes part."""
    networks = [defence.classifier, defence.bare, defence.guide, defence.purifier, *defence.others]
    weights = (value for network in networks if network is not None for value in network.state_dict().values())
    return [images, labels, *(() if ids is None else (ids,)), *weights]


def _settings(defence: Defence, wanted: AttackConfig, config: EvaluationConfig) -> dict[str, Any]:
    return {
        "attack": decisive(wanted),
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
