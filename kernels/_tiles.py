"""Which block sizes run, as plain functions of the problem: nothing is tried out at run time."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ._conv3x3_wins import WINS

PROCESSORS = 128  # multiprocessors of a large GPU, to the next power of two: fewer programs leave some idle


class NoiseTile(NamedTuple):
    """Counters that a program draws from, four elements each."""

    quads: int
    num_warps: int


def noise() -> NoiseTile:
    """One counter a thread, which is 16 bytes of float32: an image of CIFAR-10 is spread over six processors."""
    return NoiseTile(quads=128, num_warps=4)


class FlatTile(NamedTuple):
    """Elements that a program reads and writes one by one."""

    block: int
    num_warps: int


def elementwise() -> FlatTile:
    """Eight elements a thread: two accesses of 16 bytes in float32, one in 16 bits."""
    return FlatTile(block=1024, num_warps=4)


REGISTERS = 65536  # bytes of a tile that a program of 16 warps keeps in registers: a quarter of all there are
SMALL_GROUP = 64  # elements of a group: smaller than any in a published network
MOST_CHUNKS = 32  # programs that share a group: pooling what they computed reads as much as that


class NormTile(NamedTuple):
    """[groups * padded, pixels]: the channels of some groups, each group padded to a power of two, by pixels."""

    padded: int
    groups: int
    pixels: int
    blocks: int  # tiles that a program goes through, which are its chunk of the groups
    wide: bool  # elements are computed in float64
    num_warps: int


def group_norm(channels: int, pixels: int, num_groups: int, itemsize: int, channels_last: bool, tensors: int) -> NormTile:
    """Groups whole where they fit, else chunks of them by tiles half as large; 64 bytes a channels_last pixel, or what fits.

    A program holds `tensors` such tiles at a time. The batch has no say: it must not change an image's bits.
    """
    width = channels // num_groups
    padded, across, room = power_of_two(width), power_of_two(pixels), REGISTERS // max(itemsize, 4) // tensors
    groups, blocks = 1, 1
    while channels_last and groups < num_groups and groups * width * itemsize < 64:
        groups *= 2
    if padded * across <= room:
        while groups * padded * across > room:
            groups //= 2
    else:
        across = max(room // 2 // (groups * padded), 1)
        blocks = power_of_two(-(-pixels // (across * MOST_CHUNKS)))
    warps = groups * padded * across * tensors // 512
    wide = itemsize == 8 or itemsize == 4 and width * pixels < SMALL_GROUP
    return NormTile(padded, groups, across, blocks, wide, num_warps=min(max(warps, 1), 16))


class SlabTile(NamedTuple):
    """[rows pixels, first + second channels] of a program: its groups whole, or `cut` into chunks of `blocks` such tiles.

    Whole groups in several tiles are read twice, by one program.

    Both numbers of channels are powers of two; `second` is 0 where the groups of a program make one.
    """

    first: int
    second: int
    rows: int
    blocks: int
    num_warps: int
    cut: bool

    def chunks(self, pixels: int) -> int:
        """Programs that share an image's pixels."""
        return cdiv(pixels, self.rows * self.blocks)


MOST_IN_SLAB = 32768  # elements that a program keeps: 64 a thread of 16 warps
MANY_CHUNKS = 128  # programs that share an image's pixels: what each pools is small beside what it reads

# (channels, pixels, num_groups) -> the fastest tile. Filled by measurement alone (`python -m bench tune-norm`), on an H200.
SLABS: dict[tuple[int, int, int], SlabTile] = {
    (256, 1024, 32): SlabTile(first=32, second=0, rows=1024, blocks=1, num_warps=16, cut=False),
}


def slab(channels: int, own: int, pixels: int, num_groups: int) -> SlabTile | None:
    """The measured tile, else the first of `slabs`; None where there is none. `own` of the channels are x's, the rest a skip's.

    The batch has no say: it must not change an image's bits.
    """
    possible = slabs(channels, own, pixels, num_groups)
    known = SLABS.get((channels, pixels, num_groups))
    return known if known in possible else next(iter(possible), None)


@cache  # of every layer, in every step
def slabs(channels: int, own: int, pixels: int, num_groups: int) -> tuple[SlabTile, ...]:
    """Tiles to choose from, the likely one first: 64 bytes of a pixel and 2048 elements where a program can hold them.

    Groups are cut into chunks where not even one of them fits, or where all that fit share sectors of 32 bytes with others: such
    reach a third of a copy's rate.
    """
    width = channels // num_groups
    found = [tile for groups in range(1, num_groups + 1) if num_groups % groups == 0 for tile in _whole(groups * width, pixels)]
    found = [tile for tile in found if own % (tile.first + tile.second) in (0, tile.first)]
    # Two tiles are for groups that are no power of two: what is kept for their groups has as many places as the second has units.
    unit = width & -width
    found = [tile for tile in found if not tile.second or (tile.first + tile.second) // width == tile.second // unit]

    def likely(tile: SlabTile) -> tuple[int, bool, bool, int, bool]:
        size = tile.first + tile.second
        elements = size * tile.rows
        misses = (elements > MOST_IN_SLAB // 2) + (elements < 2048) + (size < 32) + (size % 16 > 0)
        return misses, size < 16, elements > MOST_IN_SLAB // 2, size, elements != 32 * tile.num_warps * _each(elements)

    whole, chunks = sorted(found, key=likely), _chunks(channels, own, pixels, unit)
    share = channels % 16 == 0 and pixels >= 256 and all((tile.first + tile.second) % 16 for tile in whole)
    twice = _twice(channels, own, pixels, width)
    return (*chunks, *whole, *twice) if share else (*whole, *chunks, *twice)


def _each(elements: int) -> int:
    """Elements a thread: few where there are few."""
    return 16 if elements <= 4096 else 32 if elements <= 16384 else 64


def _whole(size: int, pixels: int) -> list[SlabTile]:
    """Tiles of `size` channels by all pixels, with different numbers of threads; none if that is too much, or no two tiles."""
    first, rows = 1 << (size.bit_length() - 1), power_of_two(pixels)
    second = size - first
    if second & (second - 1) or size * rows > MOST_IN_SLAB:
        return []
    warps = {max(1, min(16, power_of_two(size * rows // (32 * each)))) for each in (16, 32, 64)}
    return [SlabTile(first, second, rows, 1, number, False) for number in sorted(warps)]


def _twice(channels: int, own: int, pixels: int, width: int) -> list[SlabTile]:
    """Slabs of 64 to 256 bytes a pixel that are read twice, where a few thousand elements of them are a tile."""
    found = []
    for size, elements in ((32, 4096), (64, 4096), (32, 8192), (64, 8192), (128, 8192)):
        rows = elements // size
        if size % width == channels % size == own % size == 0 and rows * 2 <= pixels <= rows * 32:
            found.append(SlabTile(size, 0, rows, cdiv(pixels, rows), 8, False))
    return found


def _chunks(channels: int, own: int, pixels: int, unit: int) -> list[SlabTile]:
    """Tiles of 128 bytes a pixel where the channels have a power of two as large, and 32 elements a thread; then others."""
    found = []
    ways = ((64, 8192, 64), (128, 8192, 64), (64, 16384, 64), (64, 8192, 128), (32, 8192, 64), (8, 4096, 64))
    for size, elements, most in ways:
        common = channels | own | size
        first = max(common & -common, unit)
        if channels % first == 0 and own % first == 0:
            rows = min(max(1, elements // first), power_of_two(pixels))
            blocks = power_of_two(cdiv(pixels, rows * most))
            found.append(SlabTile(first, 0, rows, blocks, max(1, min(16, first * rows // 1024)), True))
    return list(dict.fromkeys(found))


def power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`."""
    return 1 << (size - 1).bit_length()


class SumTile(NamedTuple):
    """Images that a program adds up at a time, and the channels it does so for."""

    images: int
    channels: int
    num_warps: int


def over_images() -> SumTile:
    """A cache line of float32 channels: there are few, so they are spread out."""
    return SumTile(images=16, channels=32, num_warps=4)


class AttentionTile(NamedTuple):
    """Rows that a program owns, and how many of the others it meets at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def block(size: int) -> int:
    """The smallest power of two that holds `size` and is wide enough for the matrix units, which take 16 at a time."""
    return max(16, 1 << (size - 1).bit_length())


def shared_memory(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that a program may have on GPUs of this compute capability."""
    return {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}.get(capability, 99) * 1024


FEW = PROCESSORS // 4  # programs, below which a smaller tile's processors gain more than its matrix products lose

# (heads of all images, queries, keys, head_dim, compute capability) -> the fastest tile in 16 bits. Filled by measurement alone
# (`python -m bench tune-attention`).
ATTENTION: dict[tuple[int, int, int, int, tuple[int, int]], AttentionTile] = {}


def attention(heads: int, queries: int, keys: int, head_dim: int, itemsize: int, capability: tuple[int, int]) -> AttentionTile:
    """The measured tile, else by the number of queries: 128 a program where that still gives every processor one, else 64.

    A warpgroup multiplies no fewer at full rate; 32 or 16 where few programs are left, as for a single image. `heads` counts
    those of all images. Before Hopper both operands sit in registers, which heads of 256 then fill with 64 rows.
    """
    if itemsize == 4:
        return AttentionTile(32, 16, 4 if head_dim <= 128 else 8, 1)  # no matrix unit: the operands sit in registers
    known = ATTENTION.get((heads, queries, keys, head_dim, capability))
    if known is not None:
        return known
    many = heads * queries >= 128 * PROCESSORS and (head_dim <= 128 or capability >= (9, 0))
    rows = min(block(queries), 128 if many else 64)
    while rows > 16 and heads * cdiv(queries, rows) < FEW:
        rows //= 2
    return attention_by(rows, keys, head_dim, capability)[0]


def attention_by(rows: int, keys: int, head_dim: int, capability: tuple[int, int]) -> list[AttentionTile]:
    """Tiles of this many queries in 16 bits that fit into shared memory, the likely one first."""
    width = block(head_dim)
    return [
        AttentionTile(rows, min(columns, block(keys)), 8 if rows * width >= 128 * 128 else 4, stages)
        for columns, stages in ((64, 3), (64, 2), (32, 2), (16, 2))
        if columns <= max(32, width) and 2 * (rows + 2 * stages * columns) * width <= shared_memory(capability)
    ]


def attention_backward(head_dim: int, itemsize: int, capability: tuple[int, int]) -> AttentionTile:
    """A program holds two tiles of its own side and two of the other's, twice, and accumulates two of its own in float32."""
    width = block(head_dim)
    if itemsize == 4:
        return AttentionTile(32 if width <= 64 else 16, 16, 4 if width <= 128 else 8, 1)
    room = max(16, (8192 if capability >= (9, 0) else 2048) // width)  # columns for which there are registers
    fits = (
        AttentionTile(rows, columns, 4 if width <= 64 else 8, 2)
        for rows, columns in ((64, 64), (64, 32), (32, 32), (32, 16))
        if columns <= room
        and rows <= 2 * room
        and 2 * (rows + 2 * columns) * width * itemsize + 1024 <= shared_memory(capability)
    )
    return next(fits)


class ConvTile(NamedTuple):
    """[block_m pixels, block_n channels] of a result, block_c terms at a time; `splits` programs share the terms of one tile."""

    block_m: int
    block_n: int
    block_c: int
    splits: int
    takes_norm: bool  # apply the norm while gathering, where a tile's pixels belong to one image
    num_warps: int
    num_stages: int


# (pixels of the result, channels, output channels, compute capability) -> the tile with which our convolution is faster than
# cuDNN's. Filled by measurement alone (`python -m bench tune-conv3x3 --write`); cuDNN runs the others.
MOST_IMAGES = 4  # the most that were measured
CONV3X3_WINS: dict[tuple[int, int, int, tuple[int, int]], ConvTile] = {problem: ConvTile(*tile) for problem, tile in WINS.items()}


def conv3x3(pixels: int, channels: int, out_channels: int, capability: tuple[int, int]) -> ConvTile:
    """The measured tile, else a guess: the largest that gives every processor one, or the smallest, its terms split.

    A wider tile must not compute more channels that are not there. At least eight steps are left to a program, since the sum of
    the parts is a launch more. Up to 128 x 128, two programs fit a processor. Norms are left to their own kernel below 256
    channels a tile.
    """
    known = CONV3X3_WINS.get((pixels, channels, out_channels, capability))
    return known or _conv3x3_guess(pixels, channels, out_channels, capability)


@cache  # of every convolution, in every step
def _conv3x3_guess(pixels: int, channels: int, out_channels: int, capability: tuple[int, int]) -> ConvTile:
    hopper = capability >= (9, 0)  # its matrix units read shared memory; before, registers hold the operands too
    block_c = next((size for size in (64, 32) if channels % size == 0), min(64, block(channels)))
    narrow = min(64, block(out_channels))
    for rows, columns in ((128, 256), (128, 128), (64, 128), (64, narrow)):
        columns = min(columns, block(out_channels))
        stage, programs = 2 * (rows + columns) * block_c, cdiv(pixels, rows) * cdiv(out_channels, columns)
        tight = cdiv(out_channels, columns) * columns <= cdiv(out_channels, narrow) * narrow
        fits = 3 * stage <= shared_memory(capability) and (hopper or columns <= 128)
        if programs >= PROCESSORS and tight and fits:
            break
    splits = 1 << (max(1, min(cdiv(PROCESSORS, programs), 9 * cdiv(channels, block_c) // 8)).bit_length() - 1)
    stages = max(3, min(4, shared_memory(capability) // 2 // stage))
    warps = 8 if rows * columns > 128 * (128 if hopper else 64) or channels % 8 else 4  # unaligned channels take an address each
    return ConvTile(rows, columns, block_c, splits, columns >= 256, warps, stages)


def sum_of_parts(out_channels: int) -> tuple[int, int]:
    """(pixels, channels) that a program adds up: four a thread, 16 bytes of each part."""
    columns = min(64, power_of_two(out_channels))
    return 512 // columns, columns


class MomentsTile(NamedTuple):
    """An image in `chunks`, each read in `steps` of `pixels`, by some of its channels."""

    chunks: int
    steps: int
    pixels: int
    channels: int


def moments(channels: int, pixels: int) -> MomentsTile:
    """At most 64 chunks, which one program can pool; 32 elements a thread; 128 bytes of a pixel."""
    chunks = min(64, power_of_two(cdiv(pixels, 64)))
    return MomentsTile(chunks, cdiv(pixels, 64 * chunks), pixels=64, channels=min(64, power_of_two(channels)))


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
