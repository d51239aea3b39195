"""score_sde in PyTorch (Song et al. 2021): DDPM++ and DDPM++ deep, as trained on the VP SDE in continuous time.

A module list holds the whole network in the order an image meets it. A training file keeps the moving averages, which are the
weights to purify with, as a list in the order of the model's parameters; the names are only in the model beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn

from torch import Tensor

from purify_engine.config import UNetConfig
from purify_engine.models.blocks import AttentionBlock, ResBlock
from purify_engine.models.checkpoints.layout import (
    TRANSPOSED,
    Entry,
    Given,
    Layout,
    Shapes,
    Tensors,
    Told,
    channels_of,
    pair,
    stacked,
)
from purify_engine.models.checkpoints.sizes import Sizeless, told_size
from purify_engine.models.checkpoints.walk import residual, units
from purify_engine.models.checkpoints.wrappings import bare
from purify_engine.models.published import DDPMPP_CIFAR10, DDPMPP_DEEP_CIFAR10

Kind = Literal["block", "resampler", "attention", "other"]

FIRST_UNIT = 3  # before it: the embedding's two layers, and the first convolution
RESIDUAL = {
    "norm1": "GroupNorm_0", "conv1": "Conv_0", "projection": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1",
    "shortcut": "Conv_2",
}  # fmt: skip
FOURIER = "all_modules.0.W"
UNTRAINED = ("sigmas", FOURIER)  # in the model, and not among its parameters' averages


PUBLISHED = (DDPMPP_CIFAR10, DDPMPP_DEEP_CIFAR10)
CONTINUOUS = {"time_offset": 1.0, "time_scale": 0.999}  # labels are 999 t, t = (i + 1) / 1000
SAYS = "labels of a network trained in continuous time (999 t); one of discrete time has time_offset=0, time_scale=1"


def recognise(shapes: Shapes, given: Given) -> UNetConfig | None:
    """The DDPM++ that these are. ValueError where they are of score_sde, and another network."""
    network = _read(shapes)
    return None if network is None else network.completed(given, PUBLISHED)


def told(shapes: Shapes, name: str) -> list[Told]:
    """The size of a published network, and how the time is told."""
    network = _read(shapes)
    return [] if network is None else [*told_size(network, PUBLISHED), Told(CONTINUOUS, SAYS)]


def _read(shapes: Shapes) -> Sizeless | None:
    modules = _modules(shapes)
    if not modules:
        return None
    kinds = _kinds(shapes, modules)
    downs = kinds.count("resampler") // 2
    num_levels, num_blocks = downs + 1, kinds.count("block")
    num_res_blocks, rest = divmod(num_blocks - 2 - num_levels, 2 * num_levels)
    if rest or kinds.count("resampler") % 2 or num_res_blocks < 1:
        _refuse(f"{num_blocks} residual blocks and {kinds.count('resampler')} that resample")
    base = channels_of(shapes, "all_modules.0.weight")[1]
    levels = _encoder(shapes, kinds, num_levels)
    config = UNetConfig(
        image_size=2**downs * 2,
        in_channels=channels_of(shapes, "all_modules.2.weight")[1],
        base_channels=base,
        channel_mult=tuple(width // base for width, _ in levels),
        num_res_blocks=num_res_blocks,
        attention_resolutions=(),
        resample="residual",
        resample_shortcut=True,
        decoder_attention="last_block",
        skip_rescale=True,
        time_offset=CONTINUOUS["time_offset"],
        time_scale=CONTINUOUS["time_scale"],
    )
    return Sizeless(config, tuple(level for level, (_, attention) in enumerate(levels) if attention))


def _modules(shapes: Shapes) -> list[set[str]]:
    """The names within each module of the list; empty where there is no such list."""
    found = dict[int, set[str]]()
    for name in shapes:
        match = re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", name)
        if match:
            found.setdefault(int(match[1]), set()).add(match[2])
    if sorted(found) != list(range(len(found))):
        _refuse(f"a list of modules from {min(found)} to {max(found)} with gaps")
    return [found[number] for number in range(len(found))]


def _kinds(shapes: Shapes, modules: list[set[str]]) -> list[Kind]:
    """What the modules between the first convolution and the last norm are."""
    if FOURIER in shapes:
        _refuse("NCSN++, told sigma by Fourier features and trained on the VE SDE")
    if any(name.startswith("Conv2d_0.") for module in modules for name in module):
        _refuse("NCSN++, which resamples by FIR filters and has a progressive input or output")
    if len(modules) < FIRST_UNIT + 2 or len(shapes.get("all_modules.0.weight", ())) != 2:
        _refuse("a network that is not told the time")
    kinds: list[Kind] = []
    for number, module in enumerate(modules[FIRST_UNIT:-2], FIRST_UNIT):
        kinds.append(_kind(shapes, f"all_modules.{number}", module))
    if "other" in kinds:
        _refuse(f"module {FIRST_UNIT + kinds.index('other')}, of a progressive input or output")
    return kinds


def _kind(shapes: Shapes, name: str, module: set[str]) -> Kind:
    if "NIN_3.W" in module:
        return "attention"
    if "NIN_0.W" in module or module == {"Conv_0.weight", "Conv_0.bias"} and shapes[f"{name}.Conv_0.weight"][-1:] == (3,):
        _refuse("the older DDPM, whose blocks have other shortcuts or resample by convolutions")
    if not {"GroupNorm_0.weight", "Conv_0.weight", "Conv_1.weight"} <= module:
        return "other"
    out_channels, channels = channels_of(shapes, f"{name}.Conv_0.weight")
    return "resampler" if "Conv_2.weight" in module and channels == out_channels else "block"


def _encoder(shapes: Shapes, kinds: list[Kind], num_levels: int) -> list[tuple[int, bool]]:
    """(channels, whether it attends) of each level on the way down."""
    starts = [0, *(place + 1 for place, kind in enumerate(kinds) if kind == "resampler")][:num_levels]
    if any(kinds[start : start + 1] != ["block"] for start in starts):
        _refuse("a level that does not begin with a residual block")
    widths = [channels_of(shapes, f"all_modules.{FIRST_UNIT + start}.Conv_0.weight")[0] for start in starts]
    return [(width, kinds[start + 1 : start + 2] == ["attention"]) for start, width in zip(starts, widths, strict=True)]


def _refuse(found: str) -> NoReturn:
    raise ValueError(
        "a network of score_sde must be DDPM++ (positional embedding, BigGAN blocks, no FIR filters, nothing progressive), "
        f"got {found}"
    )


def entries(config: UNetConfig) -> Iterator[Entry]:
    """Our tensors, and the modules of the list that make them."""
    for number, ours in enumerate(("time_embedding.mlp.0", "time_embedding.mlp.2", "conv_in")):
        yield from pair(ours, f"all_modules.{number}")
    walk = units(config)
    for number, unit in enumerate(walk, FIRST_UNIT):
        theirs = f"all_modules.{number}"
        if isinstance(unit.module, ResBlock):
            yield from residual(unit, theirs, RESIDUAL)
        else:
            assert isinstance(unit.module, AttentionBlock)
            yield from _attention(unit.name, theirs)
    yield from pair("norm_out", f"all_modules.{FIRST_UNIT + len(walk)}")
    yield from pair("conv_out", f"all_modules.{FIRST_UNIT + len(walk) + 1}")


def _attention(ours: str, theirs: str) -> Iterator[Entry]:
    """Queries, keys, values and the output are four matrices [in, out]."""
    yield from pair(f"{ours}.norm", f"{theirs}.GroupNorm_0")
    inputs = [f"{theirs}.NIN_{which}" for which in range(3)]
    yield Entry(f"{ours}.qkv.weight", tuple(f"{name}.W" for name in inputs), stacked(TRANSPOSED))
    yield Entry(f"{ours}.qkv.bias", tuple(f"{name}.b" for name in inputs), stacked())
    yield Entry(f"{ours}.out.weight", (f"{theirs}.NIN_3.W",), TRANSPOSED)
    yield Entry(f"{ours}.out.bias", (f"{theirs}.NIN_3.b",))


def unwrap(content: Any) -> Tensors | None:
    """The moving averages of a training file."""
    ema = content.get("ema") if isinstance(content, Mapping) else None
    if not isinstance(ema, Mapping) or "shadow_params" not in ema:
        return None
    tensors = bare(content.get("model"))
    if tensors is None or not any(name.startswith("all_modules.") for name in tensors):
        return None
    return _averaged(tensors, ema["shadow_params"])


def _averaged(tensors: dict[str, Tensor], averages: Any) -> dict[str, Tensor]:
    """`tensors` with the averages in place of the parameters, which are in the same order."""
    names = [name for name in tensors if name not in UNTRAINED]
    if not isinstance(averages, list | tuple) or len(averages) != len(names):
        many = len(averages) if isinstance(averages, list | tuple) else type(averages).__name__
        raise ValueError(f"ema.shadow_params must be a list of the model's {len(names)} parameters, got {many}")
    for name, average in zip(names, averages, strict=True):
        if not isinstance(average, Tensor) or average.shape != tensors[name].shape:
            wanted = tuple(tensors[name].shape)
            raise ValueError(
                f"ema.shadow_params must be in the order of the model's parameters: none for {name} of shape {wanted}"
            )
    return {**tensors, **dict(zip(names, averages, strict=True))}


SCORE_SDE = Layout(
    name="score_sde",
    title="score_sde (Song et al. 2021, PyTorch): DDPM++ and DDPM++ deep, VP",
    recognise=recognise,
    entries=entries,
    ignored=("sigmas",),
    unwrap=unwrap,
    told=told,
)
