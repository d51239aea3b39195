"""Every format, mode and policy of `decode`, with the pixels that it must give."""

import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import encoded
from purify_engine.data.items import ItemError
from purify_engine.data.pixels import SUFFIXES, encode, to_levels
from tests.data.access import decode

JPEG2000 = dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000")
NETPBM = dict.fromkeys((".ppm", ".pgm", ".pnm"), "PPM")
LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", **NETPBM, **JPEG2000}
LOSSY = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}
ONE_BIT, FLOATING, NOT_READ = {".pbm"}, {".pfm"}, {".heic", ".heif"}
LEVELS = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


def test_these_are_all_suffixes():
    assert set(LOSSLESS) | set(LOSSY) | ONE_BIT | FLOATING | NOT_READ == SUFFIXES


@pytest.mark.parametrize("suffix", sorted({**LOSSLESS, **LOSSY}))
def test_every_suffix_is_read(suffix, tmp_path):
    path = tmp_path / f"a{suffix.upper()}"
    level = LEVELS if suffix in LOSSLESS else np.full((2, 3), 40, np.uint8)
    Image.fromarray(level).save(path, format={**LOSSLESS, **LOSSY}[suffix])
    read = decode(path, 1)
    assert read.dtype == torch.float32 and read.shape == (1, 2, 3)
    assert np.abs(read[0].numpy() * 255 - level).max() < (0.01 if suffix in LOSSLESS else 2.5)  # a JPEG may be a level off or two


RED_GREEN_BLUE = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA"])
def test_colours_come_through_every_mode(mode, tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(RED_GREEN_BLUE).convert(mode, **({"palette": Image.Palette.ADAPTIVE} if mode == "P" else {})).save(path)
    read = decode(path, 3).permute(1, 2, 0).numpy() * 255
    assert np.abs(read - RED_GREEN_BLUE).max() < 1e-3


def test_black_and_white_is_read_as_zero_and_one(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "1"
    assert decode(tmp_path / "a.png", 3).tolist() == [[[1.0, 0.0]]] * 3


def test_colour_becomes_grey_by_luma(tmp_path):
    Image.fromarray(RED_GREEN_BLUE[:1]).save(tmp_path / "a.png")
    read = decode(tmp_path / "a.png", 1)
    assert (read * 255).flatten().tolist() == pytest.approx([0.299 * 255, 0.587 * 255], abs=1)  # ITU-R 601, to a level


def test_grey_fills_every_channel(tmp_path):
    Image.fromarray(LEVELS).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 3) * 255).numpy() == pytest.approx(np.stack([LEVELS] * 3), abs=1e-3)


def test_sixteen_bit_grey_fills_every_channel_at_full_depth(tmp_path):
    deep = np.array([[0, 1], [257, 65535], [40000, 3]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    read = decode(tmp_path / "a.png", 3)
    assert read.dtype == torch.float32
    assert (read * 65535).numpy() == pytest.approx(np.stack([deep] * 3).astype(float), abs=0.01)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGBA", (1, 1), (255, 0, 0, 102)), [255, 153, 153]),  # 40 % red over white
        (Image.new("LA", (1, 1), (0, 51)), [204, 204, 204]),  # 20 % black over white
        (Image.new("RGBA", (1, 1), (9, 9, 9, 255)), [9, 9, 9]),
    ],
    ids=["red", "grey", "opaque"],
)
def test_transparency_is_mixed_with_white(picture, expected, tmp_path):
    picture.save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 3) * 255).flatten().tolist() == pytest.approx(expected, abs=1)


def test_a_transparent_palette_colour_is_white(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png", transparency=0)
    assert decode(tmp_path / "a.png", 3).permute(1, 2, 0).tolist() == [[[1, 1, 1], [0, 0, 1]]]


@pytest.mark.parametrize(("orientation", "turned"), [(3, np.rot90(LEVELS, 2)), (6, np.rot90(LEVELS, -1)), (8, np.rot90(LEVELS))])
def test_exif_turns_the_pixels_the_right_way(orientation, turned, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(LEVELS).save(tmp_path / "a.png", exif=exif)
    assert (decode(tmp_path / "a.png", 1)[0] * 255).numpy() == pytest.approx(turned, abs=1e-3)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (2, 2), level) for level in (50, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert Image.open(tmp_path / "a.gif").n_frames == 2
    assert (decode(tmp_path / "a.gif", 1) * 255).unique().tolist() == pytest.approx([50])


def test_the_cap_itself_is_allowed_and_one_pixel_more_is_not(tmp_path, monkeypatch):
    Image.new("L", (2, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(encoded, "MAX_PIXELS", 16)
    assert decode(tmp_path / "a.png", 1).shape == (1, 8, 2)
    monkeypatch.setattr(encoded, "MAX_PIXELS", 15)
    with pytest.raises(ItemError, match="^2x8 pixels exceed the cap of 15$"):
        decode(tmp_path / "a.png", 1)


def test_floats_are_refused_in_words_of_their_own(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ItemError, match="^floating-point pixels"):
        decode(tmp_path / "a.tiff", 1)


def test_a_failure_without_words_still_says_something(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(ItemError, match="^cannot read the image: RuntimeError$"):
        decode(tmp_path / "a.png", 1)


def test_a_file_that_is_gone_is_told_without_its_folder(tmp_path):
    with pytest.raises(ItemError, match="^cannot read the image: No such file or directory$"):
        decode(tmp_path / "a.png", 1)


def test_levels_are_the_nearest_ones():
    exact = np.arange(256)
    for offset in (-0.4, 0.0, 0.4):
        levels = to_levels(np.clip((exact + offset) / 255, 0, 1))
        assert levels.dtype == np.uint8 and np.array_equal(levels, exact)


def test_colour_survives_the_round_trip(tmp_path):
    image = torch.arange(3 * 2 * 5, dtype=torch.float32).reshape(3, 2, 5) / 255
    (tmp_path / "a.png").write_bytes(encode(image.numpy()))
    assert torch.equal(decode(tmp_path / "a.png", 3), image)
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_grey_is_written_as_grey(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(np.zeros((1, 2, 3), np.float32)))
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.mode, picture.size) == ("L", (3, 2))
