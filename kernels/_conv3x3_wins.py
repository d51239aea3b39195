"""Written by `python -m bench tune-conv3x3 --write` from bench/results: cold weights, launches of a CUDA graph."""

# (pixels of the result, channels, out_channels, compute capability) -> the fields of `_tiles.ConvTile`
WINS: dict[tuple[int, int, int, tuple[int, int]], tuple[int, int, int, int, bool, int, int]] = {
}
