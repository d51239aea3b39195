"""Validation, apart from attack: each image's worst attack is scored again on fresh noise draws, of several seeds.

The winner is picked by the draws that scored the attacks. Its adversarial image is then judged on K draws of each of several
seeds, from a noise stream of this defence and this group alone: no attack has seen them, nor any other seed, row or process.
Three metrics, which are never mixed: the accuracy of a single draw (mean); the worst of 10 draws, an image counting only where
all ten are right; the majority of 128 draws, one verdict an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.cells import Cell, common
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.pieces import Deadline
from purify_engine.evaluation.protocol import identity, piece_size
from purify_engine.evaluation.scoring import Stopwatch, agreement, verdicts_of
from purify_engine.evaluation.suite import CLEAN, fitted
from purify_engine.evaluation.summary import HEADLINE, UNION
from purify_engine.evaluation.workers import shared
from purify_engine.evaluation.worst_images import WorstImages
from purify_engine.files import append_json_line, read_json_lines

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images, Labels

WORST_OF, MAJORITY_OF = 10, 128
DRAWS_OF_A_SEED = 2**12  # at most, so that seeds have draws of their own
SEEDS_OF_A_RUN = 2**6


@dataclass(frozen=True)
class Validation:
    """A defence under each image's worst attack of a group, on fresh draws."""

    defence: str
    group: str  # the clean images, or those attacks that the winner is of
    attacks: int  # how many attacks the winner was picked from
    winners: tuple[str, ...]  # of each image
    right: tuple[tuple[int, ...], ...]  # of each seed: of each image, how many draws are right
    draws: int  # K, of each seed
    majority: tuple[int, ...]  # whether the class that most draws say is the label's
    voting: int  # draws of that vote
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    agreement: tuple[float, ...]  # with the guide, on the same images; () where no guide takes part
    seconds: float
    key: str  # of what decides it: the cells, K and the seeds

    def as_record(self) -> dict[str, Any]:
        """What a line of a results file holds."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> Validation:
        """The validation of a line."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        return Validation(**{**values, "right": tuple(map(tuple, record["right"]))})

    @property
    def single(self) -> tuple[float, ...]:
        """Each image's share of all fresh draws that are right."""
        return tuple(sum(counts) / (self.draws * len(counts)) for counts in zip(*self.right, strict=True))

    @property
    def by_seed(self) -> tuple[float, ...]:
        """The accuracy of a single draw by each seed's draws alone."""
        return tuple(sum(counts) / (self.draws * len(counts)) for counts in self.right)

    @property
    def worst(self) -> tuple[float, ...]:
        """The chance that `WORST_OF` draws, taken out of a seed's K at random, are all right: without bias from which ten."""
        return tuple(
            sum(all_right(count, self.draws) for count in counts) / len(counts) for counts in zip(*self.right, strict=True)
        )


def all_right(right: int, draws: int, of: int = WORST_OF) -> float:
    """The chance that `of` draws, taken without replacement from `draws` of which `right` are right, are all right."""
    of = min(of, draws)
    return math.comb(right, of) / math.comb(draws, of)


def groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Of one defence's cells, what is validated: the clean images, the l_inf attacks, and all attacks where norms differ."""
    attacked = [cell for cell in cells if cell.attack != CLEAN.name]
    found = {CLEAN.name: [cell for cell in cells if cell.attack == CLEAN.name]}
    found[HEADLINE] = [cell for cell in attacked if cell.norm == "linf"]
    found[UNION] = attacked if len({cell.norm for cell in attacked}) > 1 else []
    named = {name if name == CLEAN.name or len(own) > 1 else own[0].attack: own for name, own in found.items() if own}
    return {name: common(own) for name, own in named.items()}


def winners(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cell with the lowest score of each image, over all draws that the attacks were scored on; of equals the first.

    `left_to_validate` gives them with the strongest first: few draws leave many attacks equal, at 0 above all.
    """
    images = range(len(cells[0].scores))
    return tuple(min(cells, key=lambda cell, place=place: cell.pooled[place]) for place in images)  # type: ignore[misc]


def key_of(cells: Sequence[Cell], config: EvaluationConfig) -> str:
    """Of what decides a validation of these cells."""
    said = [sorted(cell.fingerprint for cell in cells), config.fresh_draws, config.fresh_seeds, config.seed]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def fresh_draws(config: EvaluationConfig, seed: int) -> range:
    """The numbers of seed `seed`'s draws, which no other seed of this run or of another has."""
    first = FIRST_SCORING_DRAW + (config.seed * SEEDS_OF_A_RUN + seed) * DRAWS_OF_A_SEED
    return range(first, first + config.fresh_draws)


def validated(
    defence: Defence,
    group: str,
    cells: Sequence[Cell],
    wanted: Mapping[str, AttackConfig],
    images: Images,
    labels: Labels,
    ids: Ids,
    config: EvaluationConfig,
    pool: tuple[Images, Labels] | None = None,
    kept: Mapping[int, Images] = MappingProxyType({}),
) -> Validation:
    """Score `images` afresh, each as its winner of `cells`, of these images in this order, made it.

    kept: adversarial images [C, H, W] by the image's id; those that are not there are attacked again.
    """
    watch, won = Stopwatch(images.device), winners(cells)
    adversarial, again = images.clone(), dict[str, list[int]]()
    for place, (image, cell) in enumerate(zip(ids.tolist(), won, strict=True)):
        if image in kept:
            adversarial[place] = kept[image].to(images.device, images.dtype)
        else:
            again.setdefault(cell.attack, []).append(place)
    for name, places in again.items():
        rows = torch.tensor(places, device=images.device)
        adversarial[rows] = attack(defence, images[rows], labels[rows], wanted[name], ids=ids[rows], pool=pool)
    fresh = _with_stream(defence, f"validation of {defence.name}, {group}")
    seeds = range(config.fresh_seeds if defence.randomised else 1)
    verdicts = [verdicts_of(fresh, adversarial, ids, fresh_draws(config, seed)) for seed in seeds]
    everyone = torch.cat(verdicts)
    voting = everyone[:MAJORITY_OF]
    right = [(of_seed == labels.cpu()).sum(dim=0) for of_seed in verdicts]
    return Validation(
        defence=defence.name,
        group=group,
        attacks=len(cells),
        winners=tuple(cell.attack for cell in won),
        right=tuple(tuple(counts.tolist()) for counts in right),
        draws=len(verdicts[0]),
        majority=tuple((voting.mode(dim=0).values == labels.cpu()).int().tolist()),
        voting=len(voting),
        ids=tuple(ids.tolist()),
        labels=tuple(labels.tolist()),
        agreement=agreement(defence, adversarial, everyone),
        seconds=round(watch.seconds, 2),
        key=key_of(cells, config),
    )


def _with_stream(defence: Defence, name: str) -> Defence:
    """The same defence, whose draws are of a noise stream of their own."""
    if defence.purifier is None or not defence.randomised:
        return defence
    return dataclasses.replace(defence, purifier=defence.purifier.twin(name))


def validate(
    defences: Sequence[Defence],
    cells: Sequence[Cell],
    images: Images,
    labels: Labels,
    config: EvaluationConfig,
    *,
    attacks: Sequence[AttackConfig],
    ids: Ids,
    results: Path | None = None,
    worst: Path | None = None,
    also: Sequence[Path] = (),
    workers: int = 1,
    deadline: Deadline | None = None,
) -> list[Validation]:
    """Every defence on its worst attacks of `cells`, whose images are among `images` with their `ids`.

    As `protocol.evaluate`: in pieces, each a line of `results` once it is done; what is there is not computed again; nothing is
    begun that would not be done in time. `fresh_draws=0`: nothing. Cells without labels, of older lines, are left out.
    """
    files, deadline = (*([] if results is None else [results]), *also), deadline or Deadline()
    done = joined(one for path in files for one in read_validations(path))
    if config.fresh_draws == 0:
        return done
    rows, places = {row.name: row for row in defences}, {int(image): place for place, image in enumerate(ids.tolist())}
    logged = [cell for cell in cells if cell.labels and cell.defence in rows]
    size = piece_size(defences, images, labels, config, workers) if logged else 1

    everyone = (images, labels)  # whom feature matching aims at, as the attacks did
    store = None if worst is None else WorstImages(worst)

    def tasks() -> Iterator[tuple[Any, ...]]:
        for name, group, chosen in left_to_validate(logged, done, config):
            wanted = {attack.name: run for attack in attacks if (run := fitted(attack, rows[name])) is not None}
            mark = "" if store is None else identity(rows[name], images, labels, ids)
            for first in range(0, len(chosen[0].images), size):
                some = [cell.only(cell.images[first : first + size]) for cell in chosen]
                where = torch.tensor([places[image] for image in some[0].images], device=images.device)
                if not deadline.fits(f"{name}, {group}", len(where)):
                    return
                won = dict(zip(some[0].images, winners(some), strict=True))
                kept = {} if store is None else store.found(mark, won)
                yield rows[name], group, some, wanted, images[where], labels[where], ids[where], config, everyone, kept

    found = []
    for piece in shared(validated, tasks(), workers):
        deadline.measured(f"{piece.defence}, {piece.group}", piece.seconds, len(piece.ids))
        if results is not None:
            append_json_line(results, piece.as_record())
        found.append(piece)
    keys = {key_of(chosen, config) for of_it in _by_defence(logged).values() for chosen in groups(of_it).values()}
    return [one for one in joined([*done, *found]) if one.key in keys]


def read_validations(results: Path) -> list[Validation]:
    """Those of a results file, pieces put together."""
    lines = read_json_lines(results) if results.exists() else []
    return joined(Validation.from_record(record) for record in lines if "winners" in record)


def joined(pieces: Iterable[Validation]) -> list[Validation]:
    """Pieces of the same defence, group and key as one; an image that two hold is the first's."""
    found: dict[tuple[str, str, str], list[Validation]] = {}
    for piece in pieces:
        found.setdefault((piece.defence, piece.group, piece.key), []).append(piece)
    return [own[0] if len(own) == 1 else _as_one(own) for own in found.values()]


def _as_one(pieces: Sequence[Validation]) -> Validation:
    places = {image: (piece, place) for piece in reversed(pieces) for place, image in enumerate(piece.ids)}
    order = [places[image] for image in sorted(places)]
    fields = ("winners", "majority", "labels", "ids", *(("agreement",) if pieces[0].agreement else ()))
    of_images: dict[str, Any] = {name: tuple(getattr(piece, name)[place] for piece, place in order) for name in fields}
    right = tuple(tuple(piece.right[seed][place] for piece, place in order) for seed in range(len(pieces[0].right)))
    return dataclasses.replace(pieces[0], **of_images, right=right, seconds=round(sum(piece.seconds for piece in pieces), 2))


def left_to_validate(
    cells: Iterable[Cell], done: Sequence[Validation], config: EvaluationConfig
) -> Iterator[tuple[str, str, list[Cell]]]:
    """(defence, group, its cells, the strongest first, on the images that were not validated yet)."""
    for defence, of_it in _by_defence(cells).items():
        for group, chosen in groups(of_it).items():
            key = key_of(chosen, config)
            seen = {image for one in done if (one.defence, one.group, one.key) == (defence, group, key) for image in one.ids}
            left = [image for image in chosen[0].images if image not in seen]
            if left:
                yield defence, group, [cell.only(left) for cell in sorted(chosen, key=lambda cell: cell.accuracy)]


def _by_defence(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    own: dict[str, list[Cell]] = {}
    for cell in cells:
        own.setdefault(cell.defence, []).append(cell)
    return own
