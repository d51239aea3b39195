"""guided-diffusion's forward pass in plain PyTorch, over the tensors of a checkpoint by their own names: what ours is held to."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.testing.published.guided_diffusion import Flags


class PlainUNet:
    """A checkpoint's tensors in float64, and the flags it was trained with."""

    def __init__(self, weights: dict[str, Tensor], flags: Flags) -> None:
        self.weights = {name: weight.double() for name, weight in weights.items()}
        self.flags = flags

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        half, per_level = self.flags.num_channels // 2, self.flags.num_res_blocks + 1
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
        angles = t.double()[:, None] * frequencies
        emb = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1))
        emb = self.linear("time_embed.2", F.silu(emb))
        count, h, skips = per_level * len(self.flags.channel_mult), x, []
        for index in range(count):
            h = self.sequence(f"input_blocks.{index}", h, emb, "down" if index and index % per_level == 0 else None)
            skips.append(h)
        h = self.sequence("middle_block", h, emb, None)
        for index in range(count):
            last = (index + 1) % per_level == 0 and index + 1 < count
            h = self.sequence(f"output_blocks.{index}", torch.cat([h, skips.pop()], dim=1), emb, "up" if last else None)
        return self.conv("out.2", F.silu(self.norm("out.0", h)))

    def sequence(self, name: str, h: Tensor, emb: Tensor, resize: str | None) -> Tensor:
        places = [f"{name}.{place}" for place in range(3)]
        kinds = [place for place in places if any(key.startswith(f"{place}.") for key in self.weights)]
        for place in kinds:
            resampler = resize == "down" or (resize == "up" and place == kinds[-1])
            if f"{place}.in_layers.0.weight" in self.weights:
                residual = resampler and self.flags.resblock_updown
                h = self.block(place, h, emb, resized(resize) if residual else lambda image: image)
            elif f"{place}.qkv.weight" in self.weights:
                h = self.attention(place, h)
            elif f"{place}.op.weight" in self.weights:
                h = self.conv(f"{place}.op", h, stride=2)
            elif f"{place}.conv.weight" in self.weights:
                h = self.conv(f"{place}.conv", resized("up")(h))
            else:
                h = self.conv(place, h)
        if resize and not self.flags.resblock_updown and not self.flags.conv_resample:
            h = resized(resize)(h)
        return h

    def block(self, name, x, emb, resize):
        h = self.conv(f"{name}.in_layers.2", resize(F.silu(self.norm(f"{name}.in_layers.0", x))))
        row = self.linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if self.flags.use_scale_shift_norm:
            scale, shift = row.chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + row)
        h = self.conv(f"{name}.out_layers.3", F.silu(h))
        x = resize(x)
        return (self.conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.weights else x) + h

    def attention(self, name: str, x: Tensor) -> Tensor:
        """One head at a time, as indices say."""
        batch, channels, *_ = x.shape
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm", x).flatten(2))
        heads = self.flags.heads(channels)
        width, outputs = channels // heads, []
        for head in range(heads):
            if self.flags.use_new_attention_order:  # all queries, then all keys, then all values
                starts = [part * channels + head * width for part in range(3)]
            else:  # each head's queries, keys and values
                starts = [(3 * head + part) * width for part in range(3)]
            q, k, v = (qkv[:, start : start + width] for start in starts)
            weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(width), dim=-1)
            outputs.append(v @ weight.transpose(1, 2))
        return x + self.conv(f"{name}.proj_out", torch.cat(outputs, dim=1)).reshape(x.shape)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        convolution = F.conv1d if weight.dim() == 3 else F.conv2d
        return convolution(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def resized(direction):
    """Halved by means, or doubled by repetition."""
    if direction == "down":
        return lambda image: F.avg_pool2d(image, 2)
    return lambda image: image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
