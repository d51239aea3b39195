"""An offline run: which parts are left to do, who does them, what is recorded. The same call again goes on where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from purify_engine import __version__
from purify_engine.config import require
from purify_engine.config.offline import OfflineConfig
from purify_engine.data.engines import Engine, Load, engine_of, usual_threads
from purify_engine.data.items import Compute, Part, Sink, Skipped, Source, Written
from purify_engine.data.manifest import Manifest, Record, digest
from purify_engine.data.pipeline import Told
from purify_engine.data.pixels import POLICIES
from purify_engine.data.retrying import NeverWorse, is_worse, to_retry
from purify_engine.data.shares import share_of
from purify_engine.data.tuning import measured
from purify_engine.data.work import tell_nothing

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZE = 64


class Stop:
    """Asks a run to end after the parts that it works on: `stop.requested = True`, from any thread or signal."""

    requested = False


@dataclass(frozen=True)
class ItemFailure:
    """One input that was not purified."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class PurificationSummary:
    """What became of every input, in this run and those that it goes on from."""

    total: int
    """Images in the source."""
    ok: int
    """Images that were purified and written."""
    failed: tuple[ItemFailure, ...]
    """Those that could not be read, purified or written, each with its reason."""
    skipped: Sequence[Skipped]
    """What lies in the source and is no image, each with its reason."""
    seconds: float
    """Of this run."""
    ok_now: int
    """Images that this run purified; the rest were there before."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """How many images of each "WIDTHxHEIGHT" were purified."""
    elsewhere: int = 0
    """Images that are left to other shares of the run."""

    @property
    def images_per_second(self) -> float:
        return self.ok_now / max(self.seconds, 1e-9)

    @property
    def left(self) -> int:
        """Images that are still to be done: the run was stopped."""
        return self.total - self.ok - len(self.failed) - self.elsewhere

    def as_record(self) -> dict[str, Any]:
        counts = {"ok": self.ok, "failed": len(self.failed), "skipped": len(self.skipped), "left": self.left}
        if self.elsewhere:
            counts["elsewhere"] = self.elsewhere
        return {**counts, "seconds": round(self.seconds, 3), "images_per_second": round(self.images_per_second, 3)}


def purify_dataset(
    purifier: nn.Module,
    source: Source,
    sink: Sink,
    *,
    config: OfflineConfig | None = None,
    told: Told = tell_nothing,
    stop: Stop | None = None,
    about: Mapping[str, Any] | None = None,
    load: Load | None = None,
) -> PurificationSummary:
    """Purify every image of `source` into `sink`; called again after an interruption, it does what is left.

    `purifier(images, ids=...)` takes float32 [B, C, H, W] in [0, 1]; noise is keyed by the ids. What is written is cut to [0, 1].
    An image that cannot be read, purified (NaN, memory) or written is listed in failed.jsonl, with the reason.
    told(event, **facts) is called as the run goes on. about: further facts for run.json. load: how other processes get the
    purifier (config.workers, config.engine), in place of a pickled copy.
    ValueError where the output holds something else, or a run of another configuration; OSError where the disk is full or broken.
    """
    from purify_engine.data.compute import PurifierCompute

    return run(PurifierCompute(purifier), source, sink, config=config, told=told, stop=stop, about=about, load=load)


def run(
    compute: Compute,
    source: Source,
    sink: Sink,
    *,
    config: OfflineConfig | None = None,
    told: Told = tell_nothing,
    stop: Stop | None = None,
    about: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    load: Load | None = None,
) -> PurificationSummary:
    """`purify_dataset` by a `Compute`; `engine` does the parts elsewhere, through the same sink, and yields their records."""
    config, stop, started = config or OfflineConfig(), stop or Stop(), time.perf_counter()
    share = share_of(config.shard_index, config.num_shards)
    with Manifest(sink, share) as manifest:
        parts, identity = source.parts(config.part_size), identity_of(compute, source, config)
        usual = {"batch_size": config.batch_size or BATCH_SIZE, "threads": usual_threads(config)}
        about = {"source": str(source.root), "output": str(sink.output), **(about or {})}
        pinned = manifest.begin(identity, lambda: measured(compute, source, config, usual), source.skipped, about)
        refuse_what_is_pinned_otherwise(config, pinned)
        before = to_retry(manifest.records(), sink) if config.retry_failed else {}
        mine = share.of(parts)
        todo = parts_to_do(mine, manifest.done().keys() - before.keys())
        counts = {"total": images(mine), "images_left": images(todo), "failed": failed_in(mine, todo, manifest.done())}
        told("start", **counts, parts=len(mine), parts_left=len(todo))
        asked: dict[str, Any] = {"load": load, "told": told, "stopped": lambda: stop.requested}
        work = engine or engine_of(compute, source, NeverWorse(sink, before), config, pinned, **asked)
        mark, ok_now = {"identity": digest(identity), "versions": {"purify_engine": __version__}}, 0
        for record in work(part for part in todo if not stop.requested):
            if is_worse(record, before):
                told("kept", part=record["part"], failed=record["failed"])
                continue
            manifest.commit({**record, **mark})
            ok_now += record["ok"]
            told("part", **record)
        files = assembled(sink, parts, manifest) if manifest.ends(len(parts)) else []
        summary = summarise(source, manifest.records(), time.perf_counter() - started, ok_now)
        if not share.is_whole:
            others = parts_to_do([part for part in parts if not share.holds(part)], manifest.done())
            summary = replace(summary, elsewhere=images(others))
        manifest.finish({**about, **summary.as_record(), "image_sizes": dict(summary.sizes), "files": files})
    told("end", **summary.as_record())
    return summary


def identity_of(compute: Compute, source: Source, config: OfflineConfig) -> Record:
    """What decides the bytes of the output, beside what is pinned."""
    shape = {"channels": source.shape.channels, "size": source.shape.size, "clip": source.shape.clip}
    return {
        "source": source.fingerprint(),
        "images": shape,
        "policies": POLICIES,
        "part_size": config.part_size,
        **compute.identity(),
    }


def refuse_what_is_pinned_otherwise(config: OfflineConfig, pinned: Record) -> None:
    """ValueError where what a run had pinned when it began is asked for otherwise now."""
    for name in ("batch_size", "threads"):
        asked = getattr(config, name)
        said = f"{pinned[name]}, as this output was begun, or left out"
        require(asked in (None, pinned[name]), name, said, asked)


def parts_to_do(parts: Iterable[Part], done: Container[int]) -> list[Part]:
    """The parts that are not among `done`."""
    return [part for part in parts if part.index not in done]


def failed_in(parts: Iterable[Part], left: Iterable[Part], done: Mapping[int, int]) -> int:
    """How many images failed in the `parts` that are not `left` to do; `done` (part: failed images)."""
    numbers = {part.index for part in left}
    return sum(done.get(part.index, 0) for part in parts if part.index not in numbers)


def assembled(sink: Sink, parts: Sequence[Part], manifest: Manifest) -> list[list[Any]]:
    """What the sink makes of all parts once they are all there."""
    if len(manifest.done()) < len(parts):
        return []
    failed = [failure[0] for record in manifest.records() for failure in record["failed"]]
    written = (Written(*file) for record in manifest.records() for file in record["files"])
    return [list(file) for file in sink.assemble(parts, failed, written)]


def images(parts: Iterable[Part]) -> int:
    """How many they hold."""
    return sum(part.count for part in parts)


def summarise(source: Source, records: Iterable[Record], seconds: float, ok_now: int) -> PurificationSummary:
    """The counts of all records."""
    ok, failed, sizes = 0, list[ItemFailure](), Counter[str]()
    for record in records:
        ok += record["ok"]
        failed += [ItemFailure(*failure) for failure in record["failed"]]
        sizes.update(record["sizes"])
    return PurificationSummary(len(source), ok, tuple(failed), source.skipped, seconds, ok_now, dict(sorted(sizes.items())))
