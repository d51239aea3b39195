"""`purify-engine purify`: an image folder, an image or an array file in, the same out."""

from __future__ import annotations

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
    RevisionName,
    image_shape,
    load_purifier,
)
from purify_engine.cli.options import options_of
from purify_engine.config import PurifierConfig, to_dict

if TYPE_CHECKING:
    from purify_engine.data import PurificationSummary
    from purify_engine.purifier import GuidedPurifier

SOME_FAILED, ALL_FAILED = 3, 4

NOT_HERE = ("schedule", "noise", "gradient", "surrogate_steps", "image_range")  # files hold images in [0, 1]
PurifierOptions: Any = options_of(PurifierConfig, without=NOT_HERE, saved=True)


def purify(
    source: Path,
    output: Path,
    *,
    purifier: PurifierName = "digits",
    preset: PresetName = None,
    layout: LayoutName = None,
    revision: RevisionName = None,
    batch_size: int = 64,
    device: Device = "auto",
    precision: NetworkPrecision = "auto",
    json: Annotated[bool, Parameter(negative="")] = False,
    options: Annotated[PurifierOptions | None, Parameter(name="*")] = None,
) -> int:
    """Purify every image of SOURCE into OUTPUT, which becomes the same kind of thing.

    Noise is keyed by the image's place in the sorted source, so that neither batch size nor order changes the result beyond float
    rounding. run.json (what was done) and failed.jsonl (what could not be, and why) lie in or beside OUTPUT.

    Parameters
    ----------
    source:
        An image folder (class folders are kept), one image file, or a .npy or .npz file of images.
    output:
        A new or empty folder for a folder; for an image a new .png file, or a folder to put it in; for an array a new file of
        its kind. Images are written as PNG, lossless, at the size that they had.
    batch_size:
        Images a batch; fewer where they are so large that 512 MiB hold no more.
    json:
        Print the result as one JSON line.
    """
    from purify_engine import devices
    from purify_engine.data import open_sink, open_source, purify_dataset, write_record

    model = load_purifier(purifier, options, device, precision, preset=preset, layout=layout, revision=revision)
    images_in = open_source(source, image_shape(model))
    images_out = open_sink(images_in, output)
    with Meter("purify") as meter:
        summary = purify_dataset(
            model,
            images_in,
            images_out,
            batch_size=batch_size,
            progress=lambda done, total, failed: meter.update(done, total, failed=failed),
        )
    asked = {"source": str(source), "output": str(output), "purifier": purifier, "revision": revision, "batch_size": batch_size}
    computing = devices.computing(model.denoiser)
    circumstances = {**_circumstances(model), "image_sizes": dict(summary.sizes)}
    run = {**asked, **computing, "config": to_dict(model.config), **circumstances, **summary.as_record()}
    write_record(images_out.record("run.json"), run)
    where = devices.described(model.denoiser)
    text = _text(summary, output, images_out.record("failed.jsonl"), where)
    say({**summary.as_record(), **computing, "output": str(output)}, text, as_json=json)
    return exit_code(summary)


def exit_code(summary: PurificationSummary) -> int:
    """0 all items are well, 3 some failed, 4 all did."""
    if not summary.failed:
        return 0
    return SOME_FAILED if summary.ok else ALL_FAILED


def _circumstances(model: GuidedPurifier) -> dict[str, Any]:
    import torch

    from purify_engine.data.pixels import POLICIES

    policies = {**POLICIES, "sizes": model.bridge.policy}
    return {"purify_engine": __version__, "torch": torch.__version__, "threads": torch.get_num_threads(), "policies": policies}


def _text(summary: PurificationSummary, output: Path, failures: Path, where: str) -> str:
    lines = [f"{summary.ok} images purified into {output}, {summary.images_per_second:.1f} images/s, {where}"]
    if summary.skipped:
        lines.append(f"{len(summary.skipped)} files are no images and were skipped: {_some(summary.skipped)}")
    if summary.failed:
        lines.append(f"{len(summary.failed)} images failed, listed in {failures}:")
        lines += [f"  {failure.name}: {failure.reason}" for failure in summary.failed[:10]]
    return "\n".join(lines)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
