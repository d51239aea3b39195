"""`purify-engine train`: the three networks of a purifier, and the embedded ones again."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from cyclopts import Parameter

from purify_engine.cli.console import Meter, say
from purify_engine.cli.loading import Device, labelled_images, training_images
from purify_engine.cli.options import options_of, with_options
from purify_engine.config import ClassifierConfig, ClassifierTraining, DiffusionTraining, TradesTraining, UNetConfig

# Smooth unless told otherwise: the exact gradient goes through second derivatives of the guide, and those of a ReLU are zero.
GUIDE = ClassifierConfig(activation="silu")

UNetOptions: Any = options_of(UNetConfig)
ClassifierOptions: Any = options_of(ClassifierConfig)
GuideOptions: Any = options_of(GUIDE)
DiffusionOptions: Any = options_of(DiffusionTraining)
TradesOptions: Any = options_of(TradesTraining)
ClassifierTrainingOptions: Any = options_of(ClassifierTraining)

Source = Annotated[str, Parameter(help='An image folder, a .npy or .npz file, or "digits".')]
Output = Annotated[Path, Parameter(help="Folder for the weights (safetensors), the model card and the checkpoint.")]
Resume = Annotated[bool, Parameter(negative="", help="Go on from the checkpoint in OUTPUT.")]
Json = Annotated[bool, Parameter(negative="", help="Print the result as one JSON line.")]


def diffusion(
    source: Source,
    output: Output,
    *,
    resume: Resume = False,
    device: Device = "auto",
    json: Json = False,
    network: UNetOptions | None = None,
    options: Annotated[DiffusionOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train the noise predictor on the images of SOURCE; labels are not used."""
    from purify_engine.data import ImageShape
    from purify_engine.devices import torch_device
    from purify_engine.training.diffusion import train_diffusion

    unet, how, where = with_options(UNetConfig(), network), with_options(DiffusionTraining(), options), torch_device(device)
    images = training_images(source, ImageShape(unet.in_channels, unet.image_size)).to(where)
    with Reports("train diffusion", json) as told:
        train_diffusion(images, unet, how, output, data=source, resume=resume, progress=told)


def trades(
    source: Source,
    output: Output,
    *,
    resume: Resume = False,
    device: Device = "auto",
    json: Json = False,
    network: GuideOptions | None = None,
    options: Annotated[TradesOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a guide by TRADES on the labelled images of SOURCE: class folders, or an array `labels` in a .npz file."""
    from purify_engine.data import ImageShape
    from purify_engine.devices import torch_device
    from purify_engine.training.trades import train_trades

    net, how, where = with_options(GUIDE, network), with_options(TradesTraining(), options), torch_device(device)
    images, labels = (tensor.to(where) for tensor in labelled_images(source, ImageShape(net.in_channels)))
    with Reports("train trades", json) as told:
        train_trades(images, labels, net, how, output, data=source, resume=resume, progress=told)


def classifier(
    source: Source,
    output: Output,
    *,
    resume: Resume = False,
    device: Device = "auto",
    json: Json = False,
    network: ClassifierOptions | None = None,
    options: Annotated[ClassifierTrainingOptions | None, Parameter(name="*")] = None,
) -> None:
    """Train a plain classifier on the labelled images of SOURCE: class folders, or an array `labels` in a .npz file."""
    from purify_engine.data import ImageShape
    from purify_engine.devices import torch_device
    from purify_engine.training.classifier import train_classifier

    net, how = with_options(ClassifierConfig(), network), with_options(ClassifierTraining(), options)
    where = torch_device(device)
    images, labels = (tensor.to(where) for tensor in labelled_images(source, ImageShape(net.in_channels)))
    with Reports("train classifier", json) as told:
        train_classifier(images, labels, net, how, output, data=source, resume=resume, progress=told)


def digits(*, output: Output = Path("runs/digits"), resume: Resume = False, json: Json = False) -> None:
    """Train the embedded U-Net, guide and classifier again, on scikit-learn's bundled digits."""
    from purify_engine.data import digits as bundled
    from purify_engine.training.embedded import train_embedded

    with Reports("train digits", json) as told:
        train_embedded(*bundled("train"), output, held_out=bundled("test"), resume=resume, progress=told)


class Reports(Meter):
    """A meter that understands the trainers' reports; the closing ones (figures, weights) are the verb's result."""

    def __init__(self, job: str, as_json: bool) -> None:
        super().__init__(job)
        self.as_json = as_json
        self.finished: list[dict[str, Any]] = []

    def __call__(self, report: dict[str, Any]) -> None:
        if "step" in report:
            self.update(report["step"], report["steps"], network=report["network"], loss=report["loss"])
        else:
            self.finished.append(report)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            lines = [f"{report['network']}: {report['weights']}\n{_figures(report['figures'])}" for report in self.finished]
            say({"trained": self.finished}, "\n".join(lines), as_json=self.as_json)


def _figures(figures: dict[str, float]) -> str:
    return "\n".join(f"  {name}: {value:.4g}" for name, value in figures.items())
