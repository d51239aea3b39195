"""What an evaluation has finished: a defence under an attack, image by image, as lines of a results file hold it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from purify_engine.files import read_json_lines

SCORED = ("scores", "selection")
LOGGED = ("labels", "agreement", "verdicts")  # of each image beside its scores; empty in lines that were written without them
BY_IMAGE = (*SCORED, *LOGGED, "ids")  # fields that hold one entry an image


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
    of: int | None = None  # how many images its evaluation has; None: these
    labels: tuple[int, ...] = ()
    agreement: tuple[float, ...] = ()  # share of an image's draws whose verdict is the guide's own of the same image
    verdicts: tuple[dict[str, int], ...] = ()  # class -> how many of an image's draws said it
    cost: dict[str, Any] = dataclasses.field(default_factory=dict)  # what a verdict took (scoring.py); part of no fingerprint
    adversarial: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)  # [N, C, H, W]; in no record

    @property
    def pooled(self) -> tuple[float, ...]:
        """Each image's score over all 2K draws."""
        return tuple((first + second) / 2 for first, second in zip(self.scores, self.selection, strict=True))

    @property
    def accuracy(self) -> float:
        """Expected accuracy of a single draw."""
        return sum(self.pooled) / len(self.pooled)

    @property
    def images(self) -> tuple[int, ...]:
        """The ids of its images."""
        return tuple(range(len(self.scores))) if self.ids is None else self.ids

    @property
    def missing(self) -> int:
        """How many images of its evaluation are not finished."""
        return 0 if self.of is None else self.of - len(self.scores)

    def only(self, ids: Iterable[int]) -> Cell:
        """Of those images alone, in their order."""
        ids = tuple(ids)
        if ids == self.images:
            return self
        places = {image: place for place, image in enumerate(self.images)}
        some = {name: tuple(values[places[image]] for image in ids) for name, values in self._by_image().items()}
        found = None if self.adversarial is None else self.adversarial[[places[image] for image in ids]]
        return dataclasses.replace(self, **some, ids=ids, adversarial=found)  # type: ignore[arg-type]

    def _by_image(self) -> dict[str, tuple[Any, ...]]:
        return {name: getattr(self, name) for name in (*SCORED, *LOGGED) if getattr(self, name) or name in SCORED}

    def as_record(self) -> dict[str, Any]:
        """What a line of a results file holds."""
        record = {**dataclasses.asdict(dataclasses.replace(self, adversarial=None)), "accuracy": round(self.accuracy, 6)}
        del record["adversarial"]
        left_out = [name for name in ("ids", "of", "cost", *LOGGED) if not record[name]]
        return {name: value for name, value in record.items() if name not in left_out}

    @staticmethod
    def from_record(record: dict[str, Any]) -> Cell:
        """The cell of a line; `accuracy` follows from the scores."""
        values = {name: value for name, value in record.items() if name != "accuracy"}
        lists = {name: tuple(values[name]) for name in BY_IMAGE if values.get(name) is not None}
        return Cell(**{**values, **lists})


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """Pieces of one fingerprint as one cell, in the order of the first of each; an image that two hold is the first's."""
    by_fingerprint: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        by_fingerprint.setdefault((cell.fingerprint, cell.defence, cell.attack), []).append(cell)
    return [_joined(pieces) for pieces in by_fingerprint.values()]


def _joined(pieces: Sequence[Cell]) -> Cell:
    if len(pieces) == 1:
        return pieces[0]
    found = {image: (piece, place) for piece in reversed(pieces) for place, image in enumerate(piece.images)}
    ids = tuple(sorted(found))
    fields = [name for name in (*SCORED, *LOGGED) if name in SCORED or all(getattr(piece, name) for piece in pieces)]
    of_images: dict[str, Any] = {
        name: tuple(getattr(piece, name)[place] for piece, place in (found[image] for image in ids)) for name in fields
    }
    is_all = ids == tuple(range(len(ids))) and pieces[0].of in (None, len(ids))
    return dataclasses.replace(
        pieces[0],
        **{**dict.fromkeys(LOGGED, ()), **of_images},
        cost=_cost(pieces),
        seconds=round(sum(piece.seconds for piece in pieces), 2),
        computed=_together([piece.computed for piece in pieces]),
        ids=None if is_all else ids,
        of=None if is_all or pieces[0].of == len(ids) else pieces[0].of,
        adversarial=_adversarial([found[image] for image in ids]),
    )


def _adversarial(places: Sequence[tuple[Cell, int]]) -> np.ndarray | None:
    """The adversarial images of pieces, where all have theirs."""
    images = [piece.adversarial[place] for piece, place in places if piece.adversarial is not None]
    return np.stack(images) if len(images) == len(places) else None


def _cost(pieces: Sequence[Cell]) -> dict[str, Any]:
    """Times are means over images, memory is the most of any piece."""
    known = [piece for piece in pieces if piece.cost]
    if not known:
        return {}
    images = sum(len(piece.scores) for piece in known)
    spent = sum(piece.cost["ms_an_image"] * len(piece.scores) for piece in known)
    peaks = [piece.cost["peak_bytes"] for piece in known if piece.cost.get("peak_bytes") is not None]
    return {**known[0].cost, "ms_an_image": round(spent / images, 3), "peak_bytes": max(peaks, default=None)}


def _together(computed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where pieces were computed: what differs between them is named one after the other."""
    names = dict.fromkeys(name for one in computed for name in one)
    values = {name: list(dict.fromkeys(str(one[name]) for one in computed if name in one)) for name in names}
    first = {name: value for one in reversed(computed) for name, value in one.items()}
    return {name: first[name] if len(values[name]) == 1 else " and ".join(values[name]) for name in names}


def read_cells(results: Path) -> list[Cell]:
    """The cells of a results file, finished or in part; none where there is no file. A line that a kill cut short is left out, as
    are those of other things."""
    lines = read_json_lines(results) if results.exists() else []
    return merged(Cell.from_record(record) for record in lines if "scores" in record)


def common(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells on the images that all of them have; what is compared must stand on the same images."""
    if not cells:
        return []
    shared = set(cells[0].images).intersection(*(cell.images for cell in cells[1:]))
    return [cell.only(image for image in cell.images if image in shared) for cell in cells]
