"""What every `purify-engine train` does: read, check what OUTPUT holds, train, report, and put the purifier together."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from purify_engine.cli.console import Meter, say
from purify_engine.cli.labelled import Labelled, labelled, spread
from purify_engine.cli.options import given, with_options
from purify_engine.cli.stopping import Stopped, command_line
from purify_engine.config import (
    Assembly,
    ClassifierConfig,
    ClassifierTraining,
    DiffusionTraining,
    Perturbation,
    PurifierConfig,
    ScheduleConfig,
    TradesTraining,
    UNetConfig,
    from_dict,
    require,
    to_dict,
)

if TYPE_CHECKING:
    from purify_engine.types import Images, Labels

# Smooth unless told otherwise: the exact gradient goes through second derivatives of the guide, and those of a ReLU are zero.
GUIDE = ClassifierConfig(activation="silu")

SHOWN = ("loss", "learning_rate", "images_per_second")  # of a report, beside the progress


class Networks(NamedTuple):
    """Options of the three networks."""

    unet: Any
    guide: Any
    classifier: Any


class Trainings(NamedTuple):
    """Options of their trainings."""

    diffusion: Any
    trades: Any
    classifier: Any


class Reports(Meter):
    """A meter that understands the trainers' reports; the closing ones (figures, weights) are the verb's result."""

    def __init__(self, job: str, as_json: bool) -> None:
        from purify_engine.training.processes import join

        super().__init__(job)
        self.as_json = as_json
        self.finished: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.stopped: dict[str, Any] | None = None
        self.reports = join().is_first  # of torchrun's processes
        self.about: dict[str, Any] = {}

    def __enter__(self) -> Reports:
        return super().__enter__() if self.reports else self

    def __call__(self, report: dict[str, Any]) -> None:
        if "step" in report:
            facts = {name: report[name] for name in SHOWN if name in report}
            self.update(report["step"], report["steps"], network=report["network"], **facts)
        elif "stopped" in report:
            self.stopped = report
        elif "note" in report:
            self.notes.append(report["note"])
        else:
            self.finished.append(report)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.reports:
            super().__exit__(kind, error, trace)
        if self.stopped is not None and isinstance(error, (KeyboardInterrupt, Stopped)):
            number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
            again = command_line() if "--resume" in sys.argv else f"{command_line()} --resume"
            done = f"stopped at step {self.stopped['stopped']} of {self.stopped['steps']} of the {self.stopped['network']}"
            raise Stopped(number, f"{done}; go on with: {again}") from error
        if error is None and self.reports:
            lines = [f"{report['network']}: {report['weights']}\n{_figures(report['figures'])}" for report in self.finished]
            say({"trained": self.finished, **self.about}, "\n".join([*lines, *self.notes]), as_json=self.as_json)


@dataclass
class Job:
    """One call of `train`: from SOURCE into OUTPUT."""

    source: str
    output: Path
    resume: bool
    replace: bool
    device: str
    told: Reports
    seconds: float | None = None
    read: dict[tuple[int, int | None], Labelled] = field(default_factory=dict, init=False)
    """SOURCE by the channels and the size that it was asked for in."""

    def diffusion(self, network: Any, options: Any) -> None:
        """Train the noise predictor."""
        from purify_engine.training.diffusion import train_diffusion

        net, how = with_options(UNetConfig(), network), with_options(DiffusionTraining(), options)
        self._check("unet", net, how)
        images = self._read(net.in_channels, net.image_size).images
        if not self._is_kept("unet", net, how, images, None):
            there = images.to(self._where())
            train_diffusion(
                there, net, how, self.output, data=self.source, seconds=self.seconds, resume=self.resume, progress=self.told
            )

    def trades(self, network: Any, options: Any, unet: UNetConfig | None = None, schedule: ScheduleConfig | None = None) -> None:
        """Train the guide; `unet`, `schedule`: of the diffusion model that comes after it."""
        from purify_engine.training.trades import train_trades

        base = TradesTraining() if schedule is None else TradesTraining(schedule=schedule)
        self._classifying("guide", train_trades, GUIDE, network, with_options(base, options), unet)

    def classifier(self, network: Any, options: Any, unet: UNetConfig | None = None) -> None:
        """Train the plain classifier."""
        from purify_engine.training.classifier import train_classifier

        how = with_options(ClassifierTraining(), options)
        self._classifying("classifier", train_classifier, ClassifierConfig(), network, how, unet)

    def everything(self, networks: Networks, trainings: Trainings, options: Any) -> None:
        """Classifier, guide and noise predictor, then the purifier of them; what cannot fit is refused before the first."""
        from purify_engine.training import assembly

        for part in assembly.PARTS:
            assembly.require_room(self.output, part, resume=self.resume, replace=self.replace)
        unet, how = with_options(UNetConfig(), networks.unet), with_options(DiffusionTraining(), trainings.diffusion)
        guide = with_options(TradesTraining(schedule=how.schedule), trainings.trades)
        assembly.depth(with_options(assembly.settled(self.output), options), how, guide)
        self.seconds = self.seconds and self.seconds / 3
        self.classifier(networks.classifier, trainings.classifier, unet)
        self.trades(networks.guide, trainings.trades, unet, how.schedule)
        self.diffusion(networks.unet, trainings.diffusion)
        self.assemble(options)

    def assemble(self, options: Any = None) -> None:
        """Put together what OUTPUT holds, as it was settled the last time but for `options`, and say what came of it."""
        from purify_engine.training import assembly

        if not self.told.reports:  # the first process does it
            return
        there = assembly.contents(self.output)
        if "unet" not in there:
            self.told.notes.append(f"{self.output} is no purifier yet: `train diffusion` adds its diffusion model")
            return
        how, net = with_options(assembly.settled(self.output), options), assembly.network_of(there, "unet")
        images = self._read(net.in_channels, net.image_size).images
        chosen = images[spread(len(images), how.calibration_images)].to(self._where())
        config = assembly.assemble(self.output, chosen, how, self.source)
        assert config is not None  # as there is a U-Net
        self.told.about["purifier"] = {"folder": str(self.output), "config": to_dict(config)}
        guided = _guided(config, how, len(chosen), self.source) + (_resists(there) if "guide" in there else "")
        self.told.notes.append(f"{self.output} is a purifier: t_star {config.t_star}, {guided}")

    def _classifying(
        self, part: str, train: Any, base: ClassifierConfig, network: Any, how: Any, unet: UNetConfig | None
    ) -> None:
        self._check(part)
        asked = given(network)
        channels, size = self._beside(unet)
        data = self._read(asked.get("in_channels", channels), size)
        labels = data.required_labels()
        net = dataclasses.replace(base, **{**_measured(data.images, labels, data.classes), **asked})
        if data.classes is not None:
            count = len(data.classes)
            require(net.num_classes == count, "num_classes", f"{count}, the classes of {self.source}", net.num_classes)
        self._check(part, net, how, data.classes)
        if not self._is_kept(part, net, how, data.images, labels):
            train(
                data.images.to(self._where()), labels.to(self._where()), net, how, self.output,
                data=self.source, class_names=data.classes, seconds=self.seconds, resume=self.resume, progress=self.told,
            )  # fmt: skip

    def _beside(self, unet: UNetConfig | None) -> tuple[int, int | None]:
        """Channels and size of the images that the networks in OUTPUT take."""
        from purify_engine.training import assembly

        if unet is not None:
            return unet.in_channels, unet.image_size
        there = assembly.contents(self.output)
        networks = [assembly.network_of(there, part) for part in assembly.PARTS if part in there]
        sizes = [network.image_size for network in networks if isinstance(network, UNetConfig)]
        return networks[0].in_channels if networks else GUIDE.in_channels, sizes[0] if sizes else None

    def _check(self, part: str, net: Any = None, how: Any = None, names: tuple[str, ...] | None = None) -> None:
        """Refuse to train over what is there, or beside what does not fit."""
        from purify_engine.training import assembly

        assembly.require_room(self.output, part, resume=self.resume, replace=self.replace)
        if net is not None:
            assembly.require_fitting(self.output, part, net, how, names)

    def _is_kept(self, part: str, net: Any, how: Any, images: Images, labels: Labels | None) -> bool:
        """Whether --resume finds this network finished, and by the same training; ValueError where it was another."""
        from purify_engine.training import assembly

        if not self.resume or self.replace or not assembly.is_finished(self.output, part):
            return False
        assembly.require_same(self.output, part, net, how, images, labels)
        self.told.about.setdefault("kept", []).append(part)
        self.told.notes.append(f"{part}: {self.output / part}.safetensors was finished before, and is kept")
        return True

    def _read(self, channels: int, size: int | None) -> Labelled:
        from purify_engine.data import ImageShape

        self._where()  # a device that is refused is refused before anything is read
        key = channels, size
        if key not in self.read:
            self.read = {key: labelled(self.source, ImageShape(channels, size, _refusal(size)))}
        return self.read[key]

    def _where(self) -> Any:
        from purify_engine.devices import torch_device

        return torch_device(self.device)


def _refusal(size: int | None) -> Callable[[int, int], str | None] | None:
    """Why images are of no use to a network of `size` pixels a side that is not trained yet, so that its size is free."""
    if size is None:
        return None
    said = f"the network takes {size}x{size}: resize it first, or train a network of another size (image_size)"
    return lambda height, width: None if height == width == size else said


def _measured(images: Images, labels: Labels, names: tuple[str, ...] | None) -> dict[str, Any]:
    """What a classifier of these images is told unless the command line does."""
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp(min=0.01)  # one colour everywhere has no spread to divide by
    return {
        "in_channels": images.shape[1],
        "num_classes": max(2, int(labels.max()) + 1) if names is None else len(names),
        "mean": tuple(round(value, 4) for value in mean.tolist()),
        "std": tuple(round(value, 4) for value in std.tolist()),
    }


def _guided(config: PurifierConfig, how: Assembly, count: int, source: str) -> str:
    if config.guidance.kind == "none":
        return "not guided (`train trades` adds a guide)"
    return f"guidance scale {config.guidance.scale:.4g}, calibrated to the ratio {how.ratio:g} on {count} images of {source}"


def _resists(there: dict[str, Any]) -> str:
    """What the guide was trained against, in a line of its own."""
    attack = from_dict(Perturbation, there["training"]["guide"]["attack"])
    radius = f"{attack.norm} up to {attack.epsilon:.4g}"
    return f"\n  its guide was trained against perturbations in {radius}, which `evaluate` takes for its radius"


def _figures(figures: dict[str, float]) -> str:
    return "\n".join(f"  {name}: {value:.4g}" for name, value in figures.items())
