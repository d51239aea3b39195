"""purify::attention and its gradient on GPUs. Specification: purify_engine/reference/layers.py.

Forward: 4 T^2 D FLOPs a head (T tokens of D numbers), and 4 T D numbers between it and memory: T/D of softmax a number, none of
it stored (online softmax: Milakov & Gimelshein 2018; Dao et al. 2022). Backward: 18 T^2 D FLOPs in two kernels, of which 8
recompute what a forward pass could have saved; 8 T D numbers and 6 T of float32. A program owns its rows, so nothing is added
atomically and two runs agree to the bit. Sums are float32; those of a row, in the gradient of float32 inputs, float64, since
what is computed from them cancels. float32 inputs are multiplied as such, never as TF32, and their weights come of a polynomial:
a GPU's own exponential is wrong by two units in the last place. A row's softmax is kept as its maximum and the reciprocal of
its sum: from the logarithm of the sum a weight would have the rounding of the whole exponent.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _outputs, _tiles
from ._launch import Launch, capability
from ._variants import Variant

LOG2_E = math.log2(math.e)
LARGEST_HEAD = 256
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def _head(ptr, index, heads, stride_b, stride_h):
    """Where head `index` of all the images' heads begins."""
    return ptr + (index // heads).to(tl.int64) * stride_b + (index % heads).to(tl.int64) * stride_h


@triton.jit
def _load(ptr, rows, tokens, stride_t, stride_d, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] of one head; zeros beyond its tokens and beyond its width."""
    dims = tl.arange(0, BLOCK_D)
    inside = (rows < tokens)[:, None]
    if HEAD_DIM != BLOCK_D:
        inside = inside & (dims < HEAD_DIM)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * stride_t + dims[None, :] * stride_d, mask=inside, other=0.0)


@triton.jit
def _store(ptr, rows, tokens, stride_t, stride_d, values, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write what `_load` reads."""
    dims = tl.arange(0, BLOCK_D)
    inside = (rows < tokens)[:, None] & (dims < HEAD_DIM)[None, :]
    places = ptr + rows.to(tl.int64)[:, None] * stride_t + dims[None, :] * stride_d
    tl.store(places, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _exp2(x, DTYPE: tl.constexpr):
    """2^x for float32 x, at most a little above 0, as exactly as weights of DTYPE show it: in float32 nearly rounded once."""
    if DTYPE.primitive_bitwidth == 16:
        return tl.exp2(x)
    above = tl.where(x < -126.0, -126.0, x)  # NaN stays
    shifted = above + 12582912.0  # 1.5 * 2^23 leaves no bit to a fraction: the nearest integer is in the low bits
    f = above - (shifted - 12582912.0)
    p = 1.3390863314270973e-3 + f * 1.5453163359779865e-4  # (2^f - 1) / f at the Chebyshev nodes of [-1/2, 1/2]
    p = 5.5503569543361664e-2 + f * (9.618083015084267e-3 + f * p)
    p = 1.0 + f * (0.6931471824645996 + f * (0.24022650718688965 + f * p))
    power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    return tl.where(x < -126.0, 0.0, p * power)


@triton.jit
def _weights(scores, scale, highest, DTYPE: tl.constexpr):
    """e^((scores - max) / sqrt(head_dim)), with scale = log2(e) / sqrt(head_dim) and highest = scale max.

    The exponent is rounded once in every kernel: two roundings here and one there would weigh a key twice differently.
    """
    return _exp2(tl.fma(scores, scale, -highest), DTYPE)


@triton.jit
def _wide(values, DTYPE: tl.constexpr):
    """In the precision in which a row's sums are kept: float64 for float32, where terms of a gradient cancel."""
    return values.to(tl.float32) if DTYPE.primitive_bitwidth == 16 else values.to(tl.float64)


@triton.jit
def _scores(q, k, columns, KEYS: tl.constexpr, BLOCK_N: tl.constexpr):
    """q k^T; -inf where there is no key."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if KEYS % BLOCK_N != 0:
        scores = tl.where((columns < KEYS)[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, out_b, out_h, out_t, out_d,
    heads, queries, scale,
    KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # Blocks of one head run side by side and share its keys and values in the L2 cache.
    blocks = tl.cdiv(queries, BLOCK_M)
    index = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    k_ptr = _head(k_ptr, index, heads, k_b, k_h)
    v_ptr = _head(v_ptr, index, heads, v_b, v_h)
    q = _load(_head(q_ptr, index, heads, q_b, q_h), rows, queries, q_t, q_d, HEAD_DIM, BLOCK_D)

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, KEYS, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = _load(k_ptr, columns, KEYS, k_t, k_d, HEAD_DIM, BLOCK_D)
        scores = _scores(q, k, columns, KEYS, BLOCK_N)
        highest = tl.maximum(row_max, tl.max(scores, axis=1))
        weights = _weights(scores, scale, (highest * scale)[:, None], q.dtype)
        shrink = _weights(row_max, scale, highest * scale, q.dtype)
        row_max = highest
        row_sum = row_sum * shrink + tl.sum(weights, axis=1)
        v = _load(v_ptr, columns, KEYS, v_t, v_d, HEAD_DIM, BLOCK_D)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
    out = out * tl.div_rn(1.0, row_sum)[:, None]
    _store(_head(out_ptr, index, heads, out_b, out_h), rows, queries, out_t, out_d, out, HEAD_DIM, BLOCK_D)


@triton.jit
def _attention_queries_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, highest_ptr, share_ptr, along_ptr,
    grad_b, grad_h, grad_t, grad_d, q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, out_b, out_h, out_t, out_d,
    heads, queries, scale, root,
    KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Each row's highest score, 1 / its softmax sum and its <grad, output>, kept for the keys' kernel; then grad_q."""
    blocks = tl.cdiv(queries, BLOCK_M)
    index = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    k_ptr = _head(k_ptr, index, heads, k_b, k_h)
    v_ptr = _head(v_ptr, index, heads, v_b, v_h)
    q = _load(_head(q_ptr, index, heads, q_b, q_h), rows, queries, q_t, q_d, HEAD_DIM, BLOCK_D)
    grad = _load(_head(grad_ptr, index, heads, grad_b, grad_h), rows, queries, grad_t, grad_d, HEAD_DIM, BLOCK_D)

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = _wide(tl.zeros([BLOCK_M], tl.float32), q.dtype)
    along = _wide(tl.zeros([BLOCK_M], tl.float32), q.dtype)
    for start in range(0, KEYS, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = _load(k_ptr, columns, KEYS, k_t, k_d, HEAD_DIM, BLOCK_D)
        v = _load(v_ptr, columns, KEYS, v_t, v_d, HEAD_DIM, BLOCK_D)
        scores = _scores(q, k, columns, KEYS, BLOCK_N)
        towards = tl.dot(grad, tl.trans(v), input_precision="ieee")
        highest = tl.maximum(row_max, tl.max(scores, axis=1))
        weights = _weights(scores, scale, (highest * scale)[:, None], q.dtype)
        shrink = _weights(row_max, scale, highest * scale, q.dtype)
        row_max = highest
        weights, shrink = _wide(weights, q.dtype), _wide(shrink, q.dtype)
        row_sum = row_sum * shrink + tl.sum(weights, axis=1)
        along = along * shrink + tl.sum(weights * towards, axis=1)
    highest = row_max * scale
    share = tl.div_rn(1.0, row_sum) if q.dtype.primitive_bitwidth == 16 else 1.0 / row_sum  # in float64 that is rounded once
    along = along * share
    places = index.to(tl.int64) * queries + rows
    tl.store(highest_ptr + places, highest, mask=rows < queries)
    tl.store(share_ptr + places, share, mask=rows < queries)
    tl.store(along_ptr + places, along, mask=rows < queries)

    q = _load(_head(q_ptr, index, heads, q_b, q_h), rows, queries, q_t, q_d, HEAD_DIM, BLOCK_D)
    grad = _load(_head(grad_ptr, index, heads, grad_b, grad_h), rows, queries, grad_t, grad_d, HEAD_DIM, BLOCK_D)
    grad_q = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, KEYS, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k = _load(k_ptr, columns, KEYS, k_t, k_d, HEAD_DIM, BLOCK_D)
        v = _load(v_ptr, columns, KEYS, v_t, v_d, HEAD_DIM, BLOCK_D)
        weights = _weights(_scores(q, k, columns, KEYS, BLOCK_N), scale, highest[:, None], q.dtype)
        towards = tl.dot(grad, tl.trans(v), input_precision="ieee")
        grad_scores = _wide(weights, q.dtype) * (towards - along[:, None])
        grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision="ieee")
    grad_q = grad_q * (share * root)[:, None]
    _store(_head(out_ptr, index, heads, out_b, out_h), rows, queries, out_t, out_d, grad_q, HEAD_DIM, BLOCK_D)


@triton.jit
def _attention_keys_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, highest_ptr, share_ptr, along_ptr, out_ptr, grad_v_ptr,
    grad_b, grad_h, grad_t, grad_d, q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, out_b, out_h, out_t, out_d,
    heads, keys, scale, root,
    QUERIES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """grad_k and grad_v of a block of keys. Everything is transposed: its rows are keys, its columns queries."""
    blocks = tl.cdiv(keys, BLOCK_M)
    index = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = _head(q_ptr, index, heads, q_b, q_h)
    grad_ptr = _head(grad_ptr, index, heads, grad_b, grad_h)
    k = _load(_head(k_ptr, index, heads, k_b, k_h), rows, keys, k_t, k_d, HEAD_DIM, BLOCK_D)
    v = _load(_head(v_ptr, index, heads, v_b, v_h), rows, keys, v_t, v_d, HEAD_DIM, BLOCK_D)

    grad_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, QUERIES, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        q = _load(q_ptr, columns, QUERIES, q_t, q_d, HEAD_DIM, BLOCK_D)
        grad = _load(grad_ptr, columns, QUERIES, grad_t, grad_d, HEAD_DIM, BLOCK_D)
        places = index.to(tl.int64) * QUERIES + columns
        highest = tl.load(highest_ptr + places, mask=columns < QUERIES, other=0.0)
        share = tl.load(share_ptr + places, mask=columns < QUERIES, other=0.0)  # where there is no query the weights are 0
        along = tl.load(along_ptr + places, mask=columns < QUERIES, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        weights = _wide(_weights(scores, scale, highest[None, :], q.dtype), q.dtype) * share[None, :]
        grad_v = tl.dot(weights.to(grad.dtype), grad, grad_v, input_precision="ieee")
        towards = tl.dot(v, tl.trans(grad), input_precision="ieee")
        grad_scores = weights * (towards - along[None, :])
        grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision="ieee")
    _store(_head(out_ptr, index, heads, out_b, out_h), rows, keys, out_t, out_d, grad_k * root, HEAD_DIM, BLOCK_D)
    _store(_head(grad_v_ptr, index, heads, out_b, out_h), rows, keys, out_t, out_d, grad_v, HEAD_DIM, BLOCK_D)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`reference.layers.attention`: [B, heads, tokens, head_dim] with any strides. For `PRECISIONS`, and heads up to 256."""
    batch, heads, queries, head_dim = q.shape
    # stored [B, tokens, heads, head_dim]: what follows reads it as channels_last images, without a copy
    out = _outputs.empty((batch, queries, heads, head_dim), q.dtype, q.device).transpose(1, 2)
    if out.numel():
        _forward(q, k, v, out, capability(q)).run()
    return out


def attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.layers.attention_backward`, for what `attention` takes: (grad_q, grad_k, grad_v), contiguous."""
    grads = [_outputs.empty(tensor.shape, q.dtype, q.device) for tensor in (q, k, v)]
    if grads[0].numel():
        for launch in _backward(grad_out.to(q.dtype), q, k, v, grads, capability(q)):
            launch.run()
    elif grads[1].numel():  # no queries
        grads[1].zero_(), grads[2].zero_()
    return grads[0], grads[1], grads[2]


def declines(q: Tensor, k: Tensor) -> str | None:
    """Why a call is not for these kernels; None if it is."""
    if q.dtype not in PRECISIONS:
        return f"they compute on {', '.join(str(dtype).removeprefix('torch.') for dtype in PRECISIONS)}"
    if not 1 <= q.shape[3] <= LARGEST_HEAD:
        return f"a head has 1 to {LARGEST_HEAD} numbers there"
    return None if k.shape[2] else "there are no keys"


def _forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, capability: tuple[int, int]) -> Launch:
    batch, heads, queries, head_dim = q.shape
    tile = _tiles.attention(batch * heads, queries, k.shape[2], head_dim, q.element_size(), capability)
    arguments = _problem(tile, out=out, q=q, k=k, v=v) | {"queries": queries, "KEYS": k.shape[2]}
    return Launch(_attention_kernel, _programs(q, tile), arguments, tile.num_warps, tile.num_stages)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, grads: list[Tensor], capability: tuple[int, int]
) -> tuple[Launch, Launch]:
    batch, heads, queries, head_dim = q.shape
    grad_q, grad_k, grad_v = grads
    tile = _tiles.attention_backward(head_dim, q.element_size(), capability)
    wide = torch.float64 if q.dtype == torch.float32 else torch.float32
    highest, share, along = (_outputs.empty((batch, heads, queries), kept, q.device) for kept in (torch.float32, wide, wide))
    both = {"highest_ptr": highest, "share_ptr": share, "along_ptr": along, "root": 1 / math.sqrt(head_dim)}
    of_queries = _problem(tile, out=grad_q, q=q, k=k, v=v, grad=grad) | both | {"queries": queries, "KEYS": k.shape[2]}
    of_keys = _problem(tile, out=grad_k, q=q, k=k, v=v, grad=grad) | both | {"keys": k.shape[2], "QUERIES": queries}
    of_keys["grad_v_ptr"] = grad_v
    return (
        Launch(_attention_queries_kernel, _programs(q, tile), of_queries, tile.num_warps, tile.num_stages),
        Launch(_attention_keys_kernel, _programs(k, tile), of_keys, tile.num_warps, tile.num_stages),
    )


def _problem(tile: _tiles.AttentionTile, **tensors: Tensor) -> dict[str, Any]:
    """The arguments that every kernel here has: each tensor with its strides, and the sizes."""
    strides = {f"{name}_{of}": tensor.stride(place) for name, tensor in tensors.items() for place, of in enumerate("bhtd")}
    heads, head_dim = tensors["q"].shape[1], tensors["q"].shape[3]
    sizes = {"heads": heads, "scale": LOG2_E / math.sqrt(head_dim), "HEAD_DIM": head_dim}
    blocks = {"BLOCK_D": _tiles.block(head_dim), "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    return {f"{name}_ptr": tensor for name, tensor in tensors.items()} | strides | sizes | blocks


def _programs(rows: Tensor, tile: _tiles.AttentionTile) -> tuple[int]:
    batch, heads, tokens, _ = rows.shape
    return (batch * heads * _tiles.cdiv(tokens, tile.block_m),)


# (heads of the batch, tokens, head_dim) of DDPM on CIFAR-10 at batch 64 and 1, and of ADM at 256x256.
_NETWORKS = ((64, 256, 256), (8, 1024, 64), (1, 256, 256), (128, 256, 64), (16, 64, 64))


def variants() -> list[Variant]:
    """What is compiled ahead of time: the published networks in bfloat16, two in NCHW and float32 too; both directions."""
    inputs = [
        torch.empty(heads, tokens, 3, head_dim, dtype=torch.bfloat16, device="meta").movedim(2, 0)
        for heads, tokens, head_dim in _NETWORKS
    ]
    for x in inputs[:2]:
        inputs += [x.transpose(2, 3).contiguous().transpose(2, 3), x.float()]
    found = [launch.variant("attention") for x in inputs for launch in _both(*x.unsqueeze(3).transpose(2, 3))]
    return list({str(variant): variant for variant in found}.values())


def _both(q: Tensor, k: Tensor, v: Tensor) -> list[Launch]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return [_forward(q, k, v, out, capability(q)), *_backward(out, q, k, v, [out, out, out], capability(q))]
