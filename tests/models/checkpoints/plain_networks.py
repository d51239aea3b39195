"""The published networks written out once more, plainly and in the dtype of their tensors, straight from a layout's own names."""

import math

import torch
import torch.nn.functional as F

HALF = math.sqrt(0.5)


def waves(labels, channels, endpoint=True):
    """[B] -> [B, channels]: sines, then cosines."""
    half = channels // 2
    powers = torch.arange(half, dtype=labels.dtype) / (half - endpoint)
    angles = labels[:, None] / 10000.0**powers
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Tensors(dict):
    """A state_dict, and the layers read from it by name."""

    def conv(self, name, x, **options):
        weight = self[f"{name}.weight"]
        return F.conv2d(x, weight, self[f"{name}.bias"], **{"padding": weight.shape[-1] // 2, **options})

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name, x, groups=None):
        """32 groups of at least four channels; with `groups`, so many."""
        return F.group_norm(x, groups or min(x.shape[1] // 4, 32), self[f"{name}.weight"], self[f"{name}.bias"], eps=1e-6)


def attended(q, k, v):
    """One head over the pixels; [B, C, H, W] each."""
    q, k, v = (part.flatten(2) for part in (q, k, v))
    weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(q.shape[1]), dim=2)
    return torch.einsum("bqk,bck->bcq", weights, v)


def score_sde(tensors, x, labels, *, ch_mult, num_res_blocks, attn_resolutions, **_):
    """DDPM++ told `labels` = 999 t, by counting through the list of modules."""
    w, number = Tensors(tensors), iter(range(10_000))
    temb = waves(labels, w["all_modules.0.weight"].shape[1])
    temb = w.linear(f"all_modules.{next(number)}", temb)
    temb = F.silu(w.linear(f"all_modules.{next(number)}", F.silu(temb)))

    def block(x, resized=lambda image: image):
        name = f"all_modules.{next(number)}"
        h = w.conv(f"{name}.Conv_0", resized(F.silu(w.norm(f"{name}.GroupNorm_0", x))))
        h = h + w.linear(f"{name}.Dense_0", temb)[:, :, None, None]
        h = w.conv(f"{name}.Conv_1", F.silu(w.norm(f"{name}.GroupNorm_1", h)))
        x = resized(x)
        return ((w.conv(f"{name}.Conv_2", x) if f"{name}.Conv_2.weight" in w else x) + h) * HALF

    def attention(x):
        name = f"all_modules.{next(number)}"

        def nin(which, h):
            return torch.einsum("bchw,cd->bdhw", h, w[f"{name}.NIN_{which}.W"]) + w[f"{name}.NIN_{which}.b"][:, None, None]

        h = w.norm(f"{name}.GroupNorm_0", x)
        return (x + nin(3, attended(nin(0, h), nin(1, h), nin(2, h)).reshape(x.shape))) * HALF

    skips, levels = [w.conv(f"all_modules.{next(number)}", x)], len(ch_mult)
    for level in range(levels):
        for _ in range(num_res_blocks):
            h = block(skips[-1])
            skips.append(attention(h) if h.shape[-1] in attn_resolutions else h)
        if level < levels - 1:
            skips.append(block(skips[-1], lambda image: F.avg_pool2d(image, 2)))
    h = block(attention(block(skips[-1])))
    for level in reversed(range(levels)):
        for _ in range(num_res_blocks + 1):
            h = block(torch.cat([h, skips.pop()], dim=1))
        h = attention(h) if h.shape[-1] in attn_resolutions else h
        h = block(h, doubled) if level else h
    h = F.silu(w.norm(f"all_modules.{next(number)}", h))
    return w.conv(f"all_modules.{next(number)}", h)


def doubled(x):
    """Each pixel four times."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def pesser(tensors, x, labels, *, ch_mult, num_res_blocks, attn_resolutions, **_):
    """The DDPM told `labels` = the timestep; every norm has 32 groups."""
    w = Tensors(tensors)
    temb = waves(labels, w["temb.dense.0.weight"].shape[1])
    temb = F.silu(w.linear("temb.dense.1", F.silu(w.linear("temb.dense.0", temb))))

    def block(name, x):
        h = w.conv(f"{name}.conv1", F.silu(w.norm(f"{name}.norm1", x, 32)))
        h = h + w.linear(f"{name}.temb_proj", temb)[:, :, None, None]
        h = w.conv(f"{name}.conv2", F.silu(w.norm(f"{name}.norm2", h, 32)))
        return (w.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x) + h

    def attention(name, x):
        h = w.norm(f"{name}.norm", x, 32)
        return x + w.conv(f"{name}.proj_out", attended(*(w.conv(f"{name}.{part}", h) for part in "qkv")).reshape(x.shape))

    def stage(name, number, x):
        h = block(f"{name}.block.{number}", x)
        return attention(f"{name}.attn.{number}", h) if h.shape[-1] in attn_resolutions else h

    skips, levels = [w.conv("conv_in", x)], len(ch_mult)
    for level in range(levels):
        for number in range(num_res_blocks):
            skips.append(stage(f"down.{level}", number, skips[-1]))
        if level < levels - 1:
            padded = F.pad(skips[-1], (0, 1, 0, 1))
            skips.append(w.conv(f"down.{level}.downsample.conv", padded, stride=2, padding=0))
    h = block("mid.block_2", attention("mid.attn_1", block("mid.block_1", skips[-1])))
    for level in reversed(range(levels)):
        for number in range(num_res_blocks + 1):
            h = stage(f"up.{level}", number, torch.cat([h, skips.pop()], dim=1))
        h = w.conv(f"up.{level}.upsample.conv", doubled(h)) if level else h
    return w.conv("conv_out", F.silu(w.norm("norm_out", h, 32)))


def edm(tensors, x, sigma, *, img_resolution, channel_mult, num_blocks, attn_resolutions, **_):
    """EDM's denoiser D(x; sigma) of a batch x at one sigma, by the table of Karras et al. 2022."""
    w, data = Tensors({name.removeprefix("model."): tensor for name, tensor in tensors.items()}), 0.5
    labels = torch.full((len(x),), math.log(sigma) / 4, dtype=x.dtype)
    emb = waves(labels, w["map_layer0.weight"].shape[1])
    emb = F.silu(w.linear("map_layer1", F.silu(w.linear("map_layer0", emb))))

    def block(name, x, resized=lambda image: image):
        h = w.conv(f"{name}.conv0", resized(F.silu(w.norm(f"{name}.norm0", x))))
        h = F.silu(w.norm(f"{name}.norm1", h + w.linear(f"{name}.affine", emb)[:, :, None, None]))
        x = resized(x)
        x = (w.conv(f"{name}.conv1", h) + (w.conv(f"{name}.skip", x) if f"{name}.skip.weight" in w else x)) * HALF
        if f"{name}.qkv.weight" not in w:
            return x
        mixed = w.conv(f"{name}.qkv", w.norm(f"{name}.norm2", x))
        made = attended(mixed[:, 0::3], mixed[:, 1::3], mixed[:, 2::3])  # channel by channel: its q, its k, its v
        return (w.conv(f"{name}.proj", made.reshape(x.shape)) + x) * HALF

    sides = [img_resolution >> level for level in range(len(channel_mult))]
    skips = [w.conv(f"enc.{sides[0]}x{sides[0]}_conv", x / math.sqrt(sigma**2 + data**2))]
    for side in sides:
        if side != sides[0]:
            skips.append(block(f"enc.{side}x{side}_down", skips[-1], lambda image: F.avg_pool2d(image, 2)))
        for index in range(num_blocks):
            skips.append(block(f"enc.{side}x{side}_block{index}", skips[-1]))
    h = skips[-1]
    for side in reversed(sides):
        if side == sides[-1]:
            h = block(f"dec.{side}x{side}_in1", block(f"dec.{side}x{side}_in0", h))
        else:
            h = block(f"dec.{side}x{side}_up", h, doubled)
        for index in range(num_blocks + 1):
            h = block(f"dec.{side}x{side}_block{index}", torch.cat([h, skips.pop()], dim=1))
    top = f"dec.{sides[0]}x{sides[0]}_aux"
    out = w.conv(f"{top}_conv", F.silu(w.norm(f"{top}_norm", h)))
    return data**2 / (sigma**2 + data**2) * x + sigma * data / math.sqrt(sigma**2 + data**2) * out
