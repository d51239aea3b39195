"""`purify-engine train`: the three networks of a purifier, one at a time or all at once, and the embedded ones again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from cyclopts import Parameter

from purify_engine.cli.loading import Device
from purify_engine.cli.options import options_of
from purify_engine.cli.recipes import follow
from purify_engine.cli.training import GUIDE, Job, Networks, Reports, Trainings
from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    TradesTraining,
    UNetConfig,
    require,
)
from purify_engine.training.recipes import RECIPES

OF_THE_IMAGES = {"num_classes": "as many as SOURCE has", "mean": "of SOURCE's images", "std": "of SOURCE's images"}
BESIDE = {**OF_THE_IMAGES, "in_channels": "as the networks in OUTPUT, else 3"}
AS_THE_UNET = {**OF_THE_IMAGES, "in_channels": "as the U-Net's"}

UNetOptions: Any = options_of(UNetConfig)
ClassifierOptions: Any = options_of(ClassifierConfig, derived=BESIDE)
GuideOptions: Any = options_of(GUIDE, derived=BESIDE)
DiffusionOptions: Any = options_of(DiffusionTraining)
TradesOptions: Any = options_of(TradesTraining)
ClassifierTrainingOptions: Any = options_of(ClassifierTraining)
AssemblyOptions: Any = options_of(Assembly)
SettledOptions: Any = options_of(Assembly, saved=True)
ClassifierBesideUNet: Any = options_of(ClassifierConfig, derived=AS_THE_UNET)
GuideBesideUNet: Any = options_of(GUIDE, derived=AS_THE_UNET)

Source = Annotated[str, Parameter(help='An image folder, a .npy or .npz file, CIFAR\'s batches, or "digits".')]
Labelled = Annotated[
    str,
    Parameter(
        help="Class folders of images, a .npz file with an array `labels`, a folder of them (train-0.npz, ...), CIFAR's batches "
        'as published (cifar-10-batches-py, cifar-10-python.tar.gz), or "digits".'
    ),
]
Output = Annotated[
    Path, Parameter(help="Folder for weights, model cards and config.json: a purifier's as soon as its diffusion model is there.")
]
Resume = Annotated[bool, Parameter(negative="", help="Go on from the checkpoint in OUTPUT; what is finished there is kept.")]
Replace = Annotated[bool, Parameter(negative="", help="Train again what is finished, or was interrupted, in OUTPUT.")]
Seconds = Annotated[
    Optional[float],  # noqa: UP045  (cyclopts asks for it)
    Parameter(
        help="Wall-clock time that all runs together may train for: the learning rate falls to its end within it, and what is "
        "trained by then is saved."
    ),
]
Parts = Annotated[
    list[str] | None,
    Parameter(
        negative_iterable=(),
        help="Only these networks: unet, guide, classifier; of cifar10 and cifar100 also guide-clean, guide-l2, guide-wide. "
        "All by default.",
    ),
]
Json = Annotated[bool, Parameter(negative="", help="Print the result as one JSON line.")]


def diffusion(
    source: Source,
    output: Output,
    *,
    resume: Resume = False,
    replace: Replace = False,
    seconds: Seconds = None,
    device: Device = "auto",
    json: Json = False,
    network: UNetOptions | None = None,
    options: Annotated[DiffusionOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train the noise predictor on the images of SOURCE; labels are not used.

    OUTPUT is then a purifier: guided where a guide is there, and calibrated on images of SOURCE; without one unguided, as is
    DiffPure.
    """
    with Reports("train diffusion", json) as told:
        job = Job(source, output, resume, replace, device, told, seconds)
        job.diffusion(network, options)
        job.assemble()


def trades(
    source: Labelled,
    output: Output,
    *,
    resume: Resume = False,
    replace: Replace = False,
    seconds: Seconds = None,
    device: Device = "auto",
    json: Json = False,
    network: GuideOptions | None = None,
    options: Annotated[TradesOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a guide by TRADES on the labelled images of SOURCE.

    Where OUTPUT has a diffusion model, it is then a guided purifier, its guidance calibrated on images of SOURCE.
    """
    with Reports("train trades", json) as told:
        job = Job(source, output, resume, replace, device, told, seconds)
        job.trades(network, options)
        job.assemble()


def classifier(
    source: Labelled,
    output: Output,
    *,
    resume: Resume = False,
    replace: Replace = False,
    seconds: Seconds = None,
    device: Device = "auto",
    json: Json = False,
    network: ClassifierOptions | None = None,
    options: Annotated[ClassifierTrainingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a plain classifier on the labelled images of SOURCE: what a purifier protects, and what `evaluate` attacks."""
    with Reports("train classifier", json) as told:
        Job(source, output, resume, replace, device, told, seconds).classifier(network, options)


def purifier(
    source: Labelled,
    output: Output,
    *,
    resume: Resume = False,
    replace: Replace = False,
    seconds: Seconds = None,
    device: Device = "auto",
    json: Json = False,
    unet: UNetOptions | None = None,
    guide_network: GuideBesideUNet | None = None,
    classifier_network: ClassifierBesideUNet | None = None,
    diffusion: DiffusionOptions | None = None,
    trades: TradesOptions | None = None,
    classifier: ClassifierTrainingOptions | None = None,
    options: Annotated[AssemblyOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train classifier, guide and diffusion model on the labelled images of SOURCE: OUTPUT is then what --purifier takes.

    The same as `train classifier`, `train trades` and `train diffusion` into one OUTPUT, each within a third of the seconds where
    they are limited, then `train assemble`.

    Parameters
    ----------
    unet:
        Of the diffusion model's network; image-size and in-channels must be those of the images.
    guide_network:
        Of the guide's network.
    classifier_network:
        Of the classifier's network.
    diffusion:
        Of the diffusion model's training.
    trades:
        Of the guide's training.
    classifier:
        Of the classifier's training.
    """
    with Reports("train purifier", json) as told:
        job = Job(source, output, resume, replace, device, told, seconds)
        networks = Networks(unet, guide_network, classifier_network)
        job.everything(networks, Trainings(diffusion, trades, classifier), options)


def assemble(
    output: Output,
    source: Source,
    *,
    device: Device = "auto",
    json: Json = False,
    options: Annotated[SettledOptions | None, Parameter(name="*")] = None,
) -> None:
    """Make a purifier of the networks trained into OUTPUT once more, with other options than the last time.

    Its guidance is calibrated on images of SOURCE, which must be training images, never those that are evaluated. What is not
    given stays as it was settled the last time.
    """
    from purify_engine.training.assembly import contents

    held = ", ".join(contents(output)) or "nothing"
    require("unet" in contents(output), "output", "a folder with a diffusion model (`train diffusion`)", f"{output} with {held}")
    with Reports("train assemble", json) as told:
        Job(source, output, False, False, device, told).assemble(options)


def digits(
    *,
    output: Output = Path("runs/digits"),
    resume: Resume = False,
    replace: Replace = False,
    seconds: Seconds = None,
    json: Json = False,
) -> None:
    """Train the embedded U-Net, guide and classifier again, on scikit-learn's bundled digits: the recipe `digits`."""
    with Reports("train digits", json) as told:
        job = Job("digits", output, resume, replace, "cpu", told, seconds)
        follow(job, RECIPES["digits"], [], "purify-engine train digits")


def recipe(
    name: str,
    output: Output,
    *,
    data: str,
    part: Parts = None,
    resume: Resume = False,
    replace: Replace = False,
    seconds: Seconds = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train the purifier NAME into OUTPUT, by one of the recipes that come with the package.

    cifar10-small is made for two CPU cores and hours, cifar10 and cifar100 for a GPU and a day, or less by --seconds; digits are
    the embedded digits. OUTPUT is then a purifier that names its presets, with cards that say by which data, recipe and command.
    The last 2,000 training images are held out to choose by; of class folders, as many of each class.

    Parameters
    ----------
    name:
        cifar10-small, cifar10, cifar100 or digits.
    data:
        CIFAR's batches as published (cifar-10-batches-py, cifar-10-python.tar.gz), a .npz file with `images` and `labels`, a
        folder of them (train-0.npz, ...), or class folders of images; "digits" for digits.
    """
    require(name in RECIPES, "name", f"one of {', '.join(RECIPES)}", name)
    with Reports(f"train recipe {name}", json) as told:
        job = Job(data, output, resume, replace, device, told, seconds)
        parts = "".join(f" --part {one}" for one in part or ())
        within = "" if seconds is None else f" --seconds {seconds:g}"
        command = f"purify-engine train recipe {name} {output.name} --data {Path(data).name}{parts}{within}"
        follow(job, RECIPES[name], part or [], command)


def pack(
    folder: Path,
    output: Path,
    *,
    precision: Literal["fp16", "bf16"] = "fp16",
    json: Json = False,
) -> None:
    """Copy the purifier in FOLDER into the new folder OUTPUT, its weights in 16 bits: half the size, to be shipped.

    They are loaded into float32, as others are. Cards go along, with the hashes of the new files.

    Parameters
    ----------
    folder:
        A purifier that was trained.
    output:
        A new or an empty folder.
    precision:
        fp16 rounds eight times finer than bf16, and refuses numbers beyond 65,504.
    """
    from purify_engine.training.packing import pack as packed

    with Reports("train pack", json) as told:
        size = packed(folder, output, precision)
        told.about["packed"] = {"folder": str(output), "bytes": size, "precision": precision}
        told.notes.append(f"{output}: {size / 1e6:.1f} MB in {precision}")
