"""`purify-engine convert`: a published checkpoint in, a purifier's folder out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from purify_engine.cli.console import say
from purify_engine.cli.loading import LayoutName, PresetName
from purify_engine.cli.options import given, options_of, with_options
from purify_engine.config import PRESETS, ClassifierConfig, PurifierConfig, UNetConfig, to_dict
from purify_engine.config.networks import NormalisationName

if TYPE_CHECKING:
    from purify_engine.conversion import Conversion, Settings

PurifierOptions: Any = options_of(PurifierConfig, without=("noise", "gradient", "surrogate_steps"), saved=True)
UNetOptions: Any = options_of(UNetConfig, saved=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatedClassifier(ClassifierConfig):
    """What can be said of a published classifier."""

    normalisation: NormalisationName | None = None
    """In place of mean and std: images are not normalised, centred at 0.5 and doubled (half), or as is usual for a dataset."""


ClassifierOptions: Any = options_of(StatedClassifier, saved=True)


def convert(
    source: Path,
    output: Path,
    *,
    preset: PresetName = None,
    layout: LayoutName = None,
    precision: Literal["float32", "bf16"] = "float32",
    guide: Path | None = None,
    classifier: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    unet: UNetOptions | None = None,
    guide_network: ClassifierOptions | None = None,
    classifier_network: ClassifierOptions | None = None,
    options: Annotated[PurifierOptions | None, Parameter(name="*")] = None,
) -> int:
    """Convert the checkpoint SOURCE into the folder OUTPUT, which every --purifier takes: safetensors and config.json.

    No code of the file is run. config.json says where each network came from: file name, SHA-256, layout. What weights cannot
    tell (--unet.image-size, --classifier-network.normalisation) and how to purify is stated by options. A classifier's file
    becomes a folder with that classifier, which --classifier takes.

    Parameters
    ----------
    source:
        A checkpoint of PyTorch (.pt, .pth, .ckpt, .bin, .safetensors), or a diffusers folder.
    output:
        A new or an empty folder.
    precision:
        Of the stored weights.
    guide:
        The checkpoint of the guide, an adversarially trained classifier.
    classifier:
        The checkpoint of the classifier that is defended; `evaluate` wants one.
    json:
        Print the result as one JSON line.
    unet:
        Of the diffusion model.
    guide_network:
        Of the guide.
    classifier_network:
        Of the classifier.
    """
    from purify_engine import conversion

    stated = conversion.Stated(layout=layout, unet=given(unet), guide=given(guide_network), classifier=given(classifier_network))
    made = conversion.convert(
        source, output, guide=guide, classifier=classifier, preset=preset, stated=stated, precision=precision,
        configured=lambda config: with_options(config, options),
    )  # fmt: skip
    how, preset = made.purification or (None, None)
    purifier = None if how is None else to_dict(how)
    result = {"output": str(output), "precision": precision, "origin": made.origin, "preset": preset, "purifier": purifier}
    say(result, _text(made, output, precision), as_json=json)
    return 0


def _text(made: Conversion, output: Path, precision: str) -> str:
    lines = [f"{output}: {precision}"]
    for part, network in made.networks.items():
        origin = made.origin[part]
        count = sum(tensor.numel() for tensor in network.weights.values())
        lines.append(f"  {part}: {count:,} numbers from {origin['file']} ({network.layout}), SHA-256 {origin['sha256'][:16]}...")
        lines.extend(f"    {said}" for said in network.says)
    return "\n".join(lines if made.purification is None else [*lines, *_purification(made.purification)])


def _purification(made: Settings) -> list[str]:
    """How it will purify, whose that is, and what is still to be done."""
    how, said = made.config, PRESETS[made.preset] if made.preset else None
    lines = [f"  purifies from t* = {how.t_star} of {how.schedule.num_timesteps} ({how.schedule.kind}) by {how.sampler}"]
    if said is None:
        return [*lines, "    no published purification is known for this network: say --preset or --t-star"]
    changed = "" if how == said.config else ", changed by the options given"
    lines.append(f"    as {said.name}{changed}: {said.source}")
    lines += [f"    {said.differs}"] if said.differs else []
    if said.calibrate_to is not None and how.guidance.scale == 0:
        ratio = f"GuidedPurifier.calibrate(training_images, {said.calibrate_to})"
        lines.append(f"    nothing guides until --guidance.scale is given: {ratio} finds it, with --guide")
    return lines
