"""In which pieces an evaluation is computed: how many images at once, in which order, and until when."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from purify_engine.config import require

ORDER_SEED = 0
MOST = 512  # images at once: more gain nothing, and a piece is what is lost where a run is killed
PROBED = 4  # images of the first pieces where time is short and nothing is known of how long they take
SPARE = 1.1  # a piece is taken to last so much longer than measured


@dataclass
class Deadline:
    """`seconds` from now, and how long pieces took: nothing is begun that would not be done by then. None: no end."""

    seconds: float | None = None
    started: float = field(default_factory=lambda: time.monotonic())
    pace: dict[str, float] = field(default_factory=dict)
    """Seconds an image of each cell that was measured."""

    def __post_init__(self) -> None:
        require(self.seconds is None or self.seconds > 0, "seconds", "positive", self.seconds)

    @property
    def left(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self.started)

    def measured(self, key: str, seconds: float, images: int) -> None:
        """A piece of cell `key` took so long."""
        self.pace[key] = max(self.pace.get(key, 0.0), seconds / max(1, images))

    def fits(self, key: str, images: int) -> bool:
        """Whether a piece of so many images of cell `key` would be done in time; an unmeasured one while any time is left."""
        return self.left > SPARE * self.pace.get(key, 0.0) * images

    def block(self, keys: Sequence[str], most: int) -> int:
        """How many images of every cell fit, `most` at most; few where nothing is known of some, and 0 where not one does."""
        if self.seconds is None:
            return most
        known = [self.pace[key] for key in keys if key in self.pace]
        if len(known) < len(keys):
            return min(most, PROBED) if self.left > 0 else 0
        return min(most, int(max(0.0, self.left) / (SPARE * sum(known)))) if sum(known) else most


def in_order(count: int) -> list[int]:
    """All places, mixed and always alike, so that the first of them stand for all: sorted sets begin with a single class."""
    places = list(range(count))
    random.Random(ORDER_SEED).shuffle(places)  # noqa: S311 (an order, no secret)
    return places


def pieces(left: dict[str, set[int]], count: int, most: int, deadline: Deadline) -> Iterator[tuple[str, list[int]]]:
    """(cell, places of images) until nothing is left of `left`, its places that are not finished, or time is up.

    Block by block of images: each is finished in all cells before the next begins, so that what is there when time is up can be
    compared. A whole cell at once keeps its own order.
    """
    waiting = in_order(count)
    while waiting and any(left.values()):
        open_cells = [key for key, places in left.items() if places]
        size = deadline.block(open_cells, most)
        block, waiting = waiting[:size], waiting[size:]
        if not block:
            return
        for key in open_cells:
            rows = sorted(left[key].intersection(block))
            if rows:
                if not deadline.fits(key, len(rows)):
                    return
                left[key].difference_update(rows)
                yield key, rows
