"""Philox 4x32-10 (Salmon et al. 2011) and Box-Muller, as device functions. Specification: purify_engine/reference/philox.py.

A counter's four words serve four neighbouring elements, so everything is computed by blocks of four: [QUADS] counters in,
[4 * QUADS] elements out, a thread holding whole blocks. The logarithm in float32 is that of csrc/draw.h, because a GPU's own is
good to 2**-22 only, where the radius is small; sine and cosine are polynomials: an angle reduced in integers needs no more.

In float32 every operation is one of csrc/draw.h's and is rounded on its own: kernels that draw are launched without fused
multiply-adds, and the noise of a seed equals that of the kernels in CUDA C++ to the bit.
"""

import triton
import triton.language as tl


@triton.jit
def words(key, id, step, block):
    """The four uint32 words of every counter (block, step, id): `key`, `id`, `step` int64 scalars, `block` integers [QUADS]."""
    c0, c1 = block.to(tl.uint32), step.to(tl.uint32)
    c2, c3 = id.to(tl.uint32), (id >> 32).to(tl.uint32)
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        # A 64-bit product is one instruction, its high and low words another two.
        product0, product1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0, (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = product1.to(tl.uint32), product0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def interleaved(e0, e1, e2, e3):
    """[QUADS] each -> [4 * QUADS]: e0[0], e1[0], e2[0], e3[0], e0[1], ..."""
    pairs = tl.join(tl.join(e0, e2), tl.join(e1, e3))
    return tl.reshape(pairs, (4 * e0.shape[0],))


@triton.jit
def normals(key, id, step, block, DTYPE: tl.constexpr):
    """Standard normals of the elements 4 * block + (0, 1, 2, 3): [4 * QUADS] in DTYPE, float32 or float64."""
    w0, w1, w2, w3 = words(key, id, step, block)
    z0, z1 = _box_muller(w0, w1, DTYPE)
    z2, z3 = _box_muller(w2, w3, DTYPE)
    return interleaved(z0, z1, z2, z3)


@triton.jit
def _box_muller(radius, angle, DTYPE: tl.constexpr):
    """r cos(theta) and r sin(theta) of two words."""
    u = radius.to(DTYPE) * 2.0**-32 + 2.0**-33
    r = tl.sqrt_rn(-2.0 * _log_unit(u)) if DTYPE.primitive_bitwidth == 32 else tl.sqrt(-2.0 * tl.log(u))
    cosine, sine = _turn(angle, DTYPE)
    return r * cosine, r * sine


@triton.jit
def _log_unit(u):
    """log(u) for float32 u in (0, 1], the polynomial of Cephes' logf: u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    p = f * 7.0376836292e-2 - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    square = f * f
    low = p * f * square - 0.5 * square - 2.12194440e-4 * e
    return f + low + 0.693359375 * e


@triton.jit
def _turn(word, DTYPE: tl.constexpr):
    """cos and sin of 2 pi word / 2^32, reduced to the nearest quarter turn in integers, hence exactly."""
    quarter = (word + 0x20000000) >> 30
    x = (word - (quarter << 30)).to(tl.int32, bitcast=True).to(DTYPE) * (6.283185307179586 * 2.0**-32)
    c, s = _cos_sin(x, x * x, DTYPE)
    odd = (quarter & 1) != 0  # sine and cosine change places
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((quarter + 1) & 2) != 0, -cosine, cosine), tl.where((quarter & 2) != 0, -sine, sine)


@triton.jit
def _cos_sin(x, square, DTYPE: tl.constexpr):
    """cos(x) and sin(x) for x in [-pi/4, pi/4]: the polynomials of Cephes' sinf and cosf, or of its sin and cos."""
    if DTYPE.primitive_bitwidth == 32:
        s = -1.6666654611e-1 + square * (8.3321608736e-3 - square * 1.9515295891e-4)
        c = 4.166664568298827e-2 + square * (-1.388731625493765e-3 + square * 2.443315711809948e-5)
    else:
        s = square * 1.58962301576546568060e-10 - 2.50507477628578072866e-8
        s = s * square + 2.75573136213857245213e-6
        s = s * square - 1.98412698295895385996e-4
        s = s * square + 8.33333333332211858878e-3
        s = s * square - 1.66666666666666307295e-1
        c = 2.08757008419747316778e-9 - square * 1.13585365213876817300e-11
        c = c * square - 2.75573141792967388112e-7
        c = c * square + 2.48015872888517045348e-5
        c = c * square - 1.38888888888730564116e-3
        c = c * square + 4.16666666666665929218e-2
    return 1.0 - 0.5 * square + square * square * c, x + x * square * s
