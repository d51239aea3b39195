"""Every op of the extension on buffers of exactly the size it may touch, for tools that watch memory. Knows no torch.

    python every_op.py [FOLDER]     the extension of the installed package, or the `_C` of FOLDER
"""

import sys
from array import array
from itertools import product
from typing import Any


def extension() -> Any:
    if len(sys.argv) > 1:
        sys.path.insert(0, sys.argv[1])
        import _C  # type: ignore[import-not-found]

        return _C
    from purify_engine import _C  # type: ignore[attr-defined,no-redef]

    return _C


def buffer(kind: str, length: int) -> Any:
    return array(kind, [0] * length) if kind in "qH" else array(kind, [0.1 * (i % 7) for i in range(length)])


def at(values: Any) -> int:
    return values.buffer_info()[0]


def noise(module: Any, images: int, numel: int) -> None:
    key, step, ids = (buffer("q", length) for length in (1, 1, images))
    batch = (images, numel, at(key), at(step), at(ids), 1)
    words = buffer("q", images * numel)
    module.philox(at(words), batch)
    for kind, dtype in (("f", "float32"), ("d", "float64")):
        out, x, eps, grad = (buffer(kind, images * numel) for _ in range(4))
        rows, marginal = buffer("d", 4), buffer("d", 2)
        getattr(module, f"philox_normal_{dtype}")(at(out), batch)
        getattr(module, f"q_sample_{dtype}")(at(out), at(x), at(marginal), batch)
        getattr(module, f"guided_step_{dtype}")(at(out), at(x), at(eps), at(grad), at(rows), 1, batch)


def norm(module: Any, images: int, channels: int, pixels: int, groups: int, threads: int) -> None:
    for kind, dtype in (("f", "float32"), ("d", "float64")):
        x, y, grad_out, grad_x = (buffer(kind, images * channels * pixels) for _ in range(4))
        weight, bias, grad_weight, grad_bias = (buffer(kind, channels) for _ in range(4))
        scale, shift, grad_scale, grad_shift = (buffer(kind, images * channels) for _ in range(4))
        arguments = (*map(at, (x, weight, bias, scale, shift)), images, channels, pixels, groups, 1e-5, True, threads)
        getattr(module, f"group_norm_silu_{dtype}")(at(y), arguments)
        grads = map(at, (grad_x, grad_weight, grad_bias, grad_scale, grad_shift, grad_out))
        getattr(module, f"group_norm_silu_backward_{dtype}")(*grads, arguments)
    for kind, dtype in (("f", "float32"), ("H", "bfloat16")):
        x, y, grad_out, grad_x = (buffer(kind, images * channels * pixels) for _ in range(4))
        weight, bias, grad_weight, grad_bias = (buffer("f", channels) for _ in range(4))
        scale, shift, grad_scale, grad_shift = (buffer("f", images * channels) for _ in range(4))
        arguments = (*map(at, (x, weight, bias, scale, shift)), images, channels, pixels, groups, 1e-5, True, threads)
        grads = map(at, (grad_x, grad_weight, grad_bias, grad_scale, grad_shift, grad_out))
        getattr(module, f"group_norm_silu_nhwc_backward_{dtype}")(*grads, arguments)
        forward = getattr(module, f"group_norm_silu_nhwc_{dtype}")
        forward(at(y), arguments, 0, channels)
        for own in {1, channels // 2, channels - 1}:
            one, other = (buffer(kind, images * pixels * width) for width in (own, channels - own))
            forward(at(y), (at(one), *arguments[1:]), at(other), own)


def convolution(module: Any, sizes: tuple[int, int, int], channels: tuple[int, int], threads: int) -> None:
    (images, height, width), (into, out_of) = sizes, channels
    weight, bias = buffer("f", into * out_of * 9), buffer("f", out_of)
    temb = buffer("f", images * out_of)
    for results, keep, flip, upsample in product((2, 4), (False, True), (False, True), (False, True)):
        zoom = 2 if upsample else 1
        pixels = images * height * width
        x, y, residual, behind = (buffer("f", length) for length in (pixels * into, *(zoom**2 * pixels * out_of,) * 3))
        packed = buffer("f", module.conv3x3_winograd_packed_size(results if keep else 0, into, out_of))
        strides = (9 * out_of, 9) if flip else (9, 9 * into)
        module.conv3x3_winograd_pack(at(packed), results if keep else 0, (at(weight), into, out_of, *strides, flip, threads))
        pointers = tuple(map(at, (x, packed, bias, temb, residual)))
        all_sizes = (images, zoom * height, zoom * width, into, out_of, out_of)
        lines = [buffer("f", into) for _ in range(2)], [buffer("f", out_of) for _ in range(2)]
        relus = (0, 0, 0, False), (0, 0, 0, True), (0, *map(at, lines[0]), True), (at(behind), *map(at, lines[1]), False)
        for relu in relus:
            module.conv3x3_winograd(at(y), pointers, relu, all_sizes, 0.5, upsample, results, keep, 5, threads)
            assert all(value == value for value in y)


def main() -> None:
    module = extension()
    for instruction_set in module.instruction_sets():
        module.use_instruction_set(instruction_set)
        for images, numel in ((1, 1), (2, 33), (3, 3 * 31 * 5)):
            noise(module, images, numel)
        for images, channels, pixels, groups, threads in ((1, 4, 1, 2, 1), (2, 6, 35, 3, 1), (1, 40, 9, 8, 2)):
            norm(module, images, channels, pixels, groups, threads)
        for sizes, channels in product(((1, 1, 1), (2, 5, 3), (1, 9, 4)), ((1, 1), (3, 20), (37, 5), (8, 34))):
            for threads in (1, 2):
                convolution(module, sizes, channels, threads)
    print("done")


if __name__ == "__main__":
    main()
