"""Checkpoints as guided-diffusion and improved-diffusion save them, with random weights.

Names and shapes follow `UNetModel` of github.com/openai/guided-diffusion, unet.py, and the flags of its script_util.py;
improved-diffusion's are the same. Nothing here knows of our own networks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from torch import Tensor

from purify_engine.testing.published.drawing import drawn

Named = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The arguments of its scripts that shape a network, by their own names."""

    image_size: int
    num_channels: int
    num_res_blocks: int
    channel_mult: tuple[int, ...]
    attention_resolutions: tuple[int, ...]
    num_heads: int = 4
    num_head_channels: int = -1
    learn_sigma: bool = True
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    conv_resample: bool = True
    use_new_attention_order: bool = False
    channels: int = 3  # of the images; its scripts have 3 always

    def heads(self, channels: int) -> int:
        """Of an attention block."""
        return self.num_heads if self.num_head_channels == -1 else channels // self.num_head_channels

    def attends(self, downsampled: int) -> bool:
        """Whether there is attention where images are so many times smaller a side."""
        return downsampled in {self.image_size // resolution for resolution in self.attention_resolutions}


# MODEL_FLAGS of both repositories' README for their unconditional networks.
ADM_256 = Flags(
    image_size=256, num_channels=256, num_res_blocks=2, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(32, 16, 8),
    num_head_channels=64, resblock_updown=True,
)  # fmt: skip
IMPROVED_32 = Flags(image_size=32, num_channels=128, num_res_blocks=3, channel_mult=(1, 2, 2, 2), attention_resolutions=(16, 8))
IMPROVED_64 = Flags(image_size=64, num_channels=128, num_res_blocks=3, channel_mult=(1, 2, 3, 4), attention_resolutions=(16, 8))
IMPROVED_256 = Flags(
    image_size=256, num_channels=128, num_res_blocks=2, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,), num_heads=1,
    use_scale_shift_norm=False,
)  # fmt: skip


def state_dict(flags: Flags, *, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """What `torch.save` writes, in the file's order: float32, of a size that keeps activations of order one."""
    return drawn(dict(shapes(flags)), seed, device)


def in_fp16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `convert_to_fp16` leaves them: the convolutions of the three stacks of blocks are halves, all else is float32."""

    def is_halved(name: str) -> bool:
        part = ".".join(name.split(".")[-3:-1])
        convolutions = ("in_layers.2", "out_layers.3")
        blocks = name.startswith(("input_blocks.", "middle_block.", "output_blocks."))
        alone = part.endswith((".qkv", ".proj_out", ".skip_connection", ".op", ".conv"))
        return blocks and (part in convolutions or alone or name.startswith("input_blocks.0."))

    return {name: weight.half() if is_halved(name) else weight for name, weight in weights.items()}


def shapes(flags: Flags) -> Iterator[Named]:
    """Every tensor's name and shape, in the order in which the module makes them."""
    base, widths = flags.num_channels, [flags.num_channels * mult for mult in flags.channel_mult]
    yield from _layer("time_embed.0", 4 * base, base)
    yield from _layer("time_embed.2", 4 * base, 4 * base)
    if flags.class_cond:
        yield "label_emb.weight", (1000, 4 * base)
    skips = yield from _down(flags, widths)
    yield from _block(flags, "middle_block.0", widths[-1], widths[-1])
    yield from _attention("middle_block.1", widths[-1])
    yield from _block(flags, "middle_block.2", widths[-1], widths[-1])
    yield from _up(flags, widths, skips)
    yield from _layer("out.0", widths[0])
    yield from _layer("out.2", flags.channels * (2 if flags.learn_sigma else 1), widths[0], 3, 3)


def _down(flags: Flags, widths: list[int]) -> Generator[Named, None, list[int]]:
    """Returns the channels of the skips that the way down leaves."""
    yield from _layer("input_blocks.0.0", widths[0], flags.channels, 3, 3)
    skips = [widths[0]]
    for level, width in enumerate(widths):
        for _ in range(flags.num_res_blocks):
            block = f"input_blocks.{len(skips)}"
            yield from _block(flags, f"{block}.0", skips[-1], width)
            if flags.attends(2**level):
                yield from _attention(f"{block}.1", width)
            skips.append(width)
        if level < len(widths) - 1:
            yield from _resampler(flags, f"input_blocks.{len(skips)}.0", "op", width)
            skips.append(width)
    return skips


def _up(flags: Flags, widths: list[int], skips: list[int]) -> Iterator[Named]:
    channels, index = widths[-1], 0
    for level in reversed(range(len(widths))):
        for number in range(flags.num_res_blocks + 1):
            block, layer = f"output_blocks.{index}", 1
            yield from _block(flags, f"{block}.0", channels + skips.pop(), widths[level])
            channels = widths[level]
            if flags.attends(2**level):
                yield from _attention(f"{block}.{layer}", channels)
                layer += 1
            if level and number == flags.num_res_blocks:
                yield from _resampler(flags, f"{block}.{layer}", "conv", channels)
            index += 1


def _layer(name: str, *shape: int) -> Iterator[Named]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _block(flags: Flags, name: str, channels: int, out_channels: int) -> Iterator[Named]:
    yield from _layer(f"{name}.in_layers.0", channels)
    yield from _layer(f"{name}.in_layers.2", out_channels, channels, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", out_channels * (2 if flags.use_scale_shift_norm else 1), 4 * flags.num_channels)
    yield from _layer(f"{name}.out_layers.0", out_channels)
    yield from _layer(f"{name}.out_layers.3", out_channels, out_channels, 3, 3)
    if channels != out_channels:
        yield from _layer(f"{name}.skip_connection", out_channels, channels, 1, 1)


def _attention(name: str, channels: int) -> Iterator[Named]:
    yield from _layer(f"{name}.norm", channels)
    yield from _layer(f"{name}.qkv", 3 * channels, channels, 1)
    yield from _layer(f"{name}.proj_out", channels, channels, 1)


def _resampler(flags: Flags, name: str, conv: str, channels: int) -> Iterator[Named]:
    """A residual block, a convolution, or a mean without parameters."""
    if flags.resblock_updown:
        yield from _block(flags, name, channels, channels)
    elif flags.conv_resample:
        yield from _layer(f"{name}.{conv}", channels, channels, 3, 3)
