"""`purify-engine purify`: an image folder, an image or an array file in, the same out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from purify_engine import __version__
from purify_engine.cli.console import Meter, say
from purify_engine.cli.loading import (
    Device,
    LayoutName,
    NetworkPrecision,
    PresetName,
    PurifierName,
    PurifierToLoad,
    RevisionName,
)
from purify_engine.cli.options import options_of, with_options
from purify_engine.cli.planned import say_plan
from purify_engine.cli.report import write_purification
from purify_engine.cli.stopping import stopping
from purify_engine.cli.streams import printable
from purify_engine.config import OfflineConfig, PurifierConfig, to_dict
from purify_engine.pages import visible

if TYPE_CHECKING:
    from purify_engine.data import PurificationSummary, Source
    from purify_engine.data.shares import Share
    from purify_engine.purifier import GuidedPurifier

SOME_FAILED, TOO_MANY_FAILED = 3, 4

NOT_HERE = ("schedule", "noise", "gradient", "surrogate_steps", "image_range")  # files hold images in [0, 1]
PurifierOptions: Any = options_of(PurifierConfig, without=NOT_HERE, saved=True)
OfflineOptions: Any = options_of(OfflineConfig)


def purify(
    source: Path,
    output: Path,
    *,
    purifier: PurifierName = "digits",
    preset: PresetName = None,
    layout: LayoutName = None,
    revision: RevisionName = None,
    column: str | None = None,
    device: Device = "auto",
    precision: NetworkPrecision = "auto",
    plan: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    offline: Annotated[OfflineOptions | None, Parameter(name="*")] = None,
    options: Annotated[PurifierOptions | None, Parameter(name="*")] = None,
) -> int:
    """Purify every image of SOURCE into OUTPUT, which becomes the same kind of thing.

    The same command again goes on where it was stopped. Noise is keyed by the image's place in the sorted source. In or beside
    OUTPUT lie run.json (what was done), manifest.jsonl (every file with its hash), failed.jsonl and skipped.jsonl (what was not
    purified, and why).

    Parameters
    ----------
    source:
        An image folder (class folders are kept), one image file, a .txt list of them, a .npy or .npz file of images, tar shards,
        .parquet files, or what Hugging Face's `save_to_disk` wrote.
    output:
        A new or empty folder for a folder, shards or tables; for an image a new .png file, or a folder to put it in; for an
        array a new file of its kind. Images are written as PNG, lossless, at the size that they had.
    column:
        Of tables, the one that holds the images; needed where several do.
    plan:
        Write nothing: say how many images there are, and by a sample what disk and time they will take.
    json:
        Print the result as one JSON line.
    """
    from purify_engine.data import Stop, open_sink, open_source, purify_dataset
    from purify_engine.data.engines import ByName
    from purify_engine.data.events import Events, tell_all
    from purify_engine.data.manifest import Manifest
    from purify_engine.data.sources import require_source

    config = with_options(OfflineConfig(), offline)
    share = _share(config)
    require_source(source)
    to_load = PurifierToLoad(purifier, options, device, precision, preset=preset, layout=layout, revision=revision)
    images_in = open_source(source, to_load.image_shape(), column)
    images_out = open_sink(images_in, output)
    Manifest(images_out, share).refuse_what_is_in_the_way()
    from purify_engine import devices  # PyTorch, which takes a second, once all else is well

    model = to_load.load()
    if plan:
        from purify_engine.data.compute import PurifierCompute
        from purify_engine.data.planning import plan as planned

        return say_plan(planned(PurifierCompute(model), images_in, images_out, config), as_json=json)
    computing = devices.computing(model.denoiser)
    asked = {"source": str(source), "output": str(output), "purifier": purifier, "revision": revision}
    about = {**asked, **computing, "config": to_dict(model.config), **_circumstances(model)}
    place = model.device.type if device == "auto" else device
    diary = images_out.record(share.record("events.jsonl"))
    stop, load = Stop(), ByName(purifier, model.config, place, precision, preset, layout, revision)
    with stopping(stop) as signals, Progress("purify") as progress, Events(diary) as events:
        told = tell_all(progress, events)
        summary = purify_dataset(model, images_in, images_out, config=config, told=told, stop=stop, about=about, load=load)
        for number in signals.received:
            events("signal", signal=number.name)
    if not summary.elsewhere:
        _report(images_out.output, images_in)
    failures = images_out.record(share.record("manifest.jsonl") if summary.elsewhere else "failed.jsonl")
    text = _text(summary, output, failures, devices.described(model.denoiser))
    say({**summary.as_record(), **computing, "output": str(output)}, text, as_json=json)
    signals.raise_if_stopped(summary.left)
    return exit_code(summary, config.max_failed)


def _share(config: OfflineConfig) -> Share:
    """Which share of the run is asked for, and a line about it: a fraction is never taken for all."""
    from purify_engine.data.shares import share_of

    share = share_of(config.shard_index, config.num_shards)
    if not share.is_whole:
        print(f"purify-engine: {share.described()}", file=sys.stderr)
    return share


class Progress(Meter):
    """A meter that understands what an offline run tells."""

    failed = 0

    def __call__(self, event: str, **facts: Any) -> None:
        if event == "start":
            self.failed = facts.get("failed", 0)
            self.begin(facts["total"] - facts["images_left"], facts["total"])
        elif event == "item":
            self.failed += not facts["ok"]
            self.update(self.done + 1, self.total, failed=self.failed)


def _report(output: Path, source: Source) -> None:
    """The page to look at, which costs no run its end: `purify-engine report` makes it again."""
    try:
        write_purification(output, source=source)
    except (OSError, ValueError) as reason:
        print(f"purify-engine: report.html could not be written: {printable(str(reason))}", file=sys.stderr)


def exit_code(summary: PurificationSummary, max_failed: float = 1.0) -> int:
    """0 all items are well, 3 some failed, 4 all did, or more than their share."""
    failed = len(summary.failed)
    if not failed:
        return 0
    return SOME_FAILED if summary.ok and failed <= max_failed * summary.total else TOO_MANY_FAILED


def _circumstances(model: GuidedPurifier) -> dict[str, Any]:
    import torch

    from purify_engine.data.pixels import POLICIES

    policies = {**POLICIES, "sizes": model.bridge.policy}
    return {"purify_engine": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(), "policies": policies}


def _text(summary: PurificationSummary, output: Path, failures: Path, where: str) -> str:
    how = f"{summary.images_per_second:.1f} images/s, {where}" if summary.ok_now or not summary.ok else "none of them now"
    lines = [f"{summary.ok} images purified into {output}, {how}"]
    if summary.elsewhere:
        lines.append(f"{summary.elsewhere} images are left to other shares; the last of them ends the run")
    if summary.skipped:
        named = ", ".join(visible(entry.name) for entry in summary.skipped[:5]) + (", ..." if len(summary.skipped) > 5 else "")
        lines.append(f"{len(summary.skipped)} other things there were skipped, with a reason in skipped.jsonl: {named}")
    if summary.failed:
        lines.append(f"{len(summary.failed)} images failed, listed in {failures}:")
        lines += [f"  {visible(failure.name)}: {visible(failure.reason)}" for failure in summary.failed[:10]]
    return "\n".join(lines)
