import numpy as np
import pytest
import torch
from PIL import Image

from purify_engine.data import encoded
from purify_engine.data.items import ItemError
from purify_engine.data.pixels import encode
from tests.data.access import decode

RED = (255, 0, 0)


def saved(picture, path, **options):
    picture.save(path, **options)
    return path


def test_eight_bit_png_survives_the_round_trip_bit_for_bit(tmp_path):
    levels = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16) / 255
    (tmp_path / "all.png").write_bytes(encode(levels.numpy()))
    assert torch.equal(decode(tmp_path / "all.png", 1), levels)


def test_colour_keeps_its_channel_order(tmp_path):
    image = decode(saved(Image.new("RGB", (3, 2), (255, 128, 0)), tmp_path / "a.png"), 3)
    assert image.shape == (3, 2, 3)
    assert torch.equal(image[:, 0, 0], torch.tensor([255, 128, 0]) / 255)


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (4, 2), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode(saved(picture, tmp_path / "turned.jpg", exif=exif), 3).shape == (3, 4, 2)


def test_transparency_lies_on_white(tmp_path):
    image = decode(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), tmp_path / "clear.png"), 3)
    assert torch.equal(image.flatten(), torch.ones(3))


def test_sixteen_bit_grey_is_read_at_full_depth(tmp_path):
    grey = Image.fromarray(np.array([[0, 1, 32768, 65535]], dtype=np.uint16))
    image = decode(saved(grey, tmp_path / "deep.png"), 1)
    assert torch.allclose(image.flatten(), torch.tensor([0, 1, 32768, 65535]) / 65535)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_common_mode_becomes_three_channels(mode, tmp_path):
    suffix = ".png" if mode in ("1", "L", "P") else ".jpg"
    image = decode(saved(Image.new("RGB", (8, 8), RED).convert(mode), tmp_path / f"x{suffix}"), 3)
    assert image.shape == (3, 8, 8) and image.min() >= 0 and image.max() <= 1


def test_floating_point_pixels_are_refused(tmp_path):
    with pytest.raises(ItemError, match="floating-point pixels have no agreed range"):
        decode(saved(Image.fromarray(np.ones((2, 2), np.float32)), tmp_path / "f.tiff"), 1)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "MAX_PIXELS", 15)
    with pytest.raises(ItemError, match="4x4 pixels exceed the cap of 15"):
        decode(saved(Image.new("L", (4, 4)), tmp_path / "bomb.png"), 1)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # Pillow would hand it to Ghostscript


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40), POSTSCRIPT])
def test_garbage_is_one_line_that_names_no_other_folder(content, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ItemError, match="cannot read the image") as caught:
        decode(path, 1)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_no_truncation_loses_a_pixel_unnoticed(tmp_path):
    path, cut = saved(Image.effect_noise((16, 16), 50), tmp_path / "whole.png"), tmp_path / "cut.png"
    whole, image = path.read_bytes(), decode(path, 1)
    checksums = 20  # the file's tail: Adler-32, CRC and the empty IEND chunk hold no pixel
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        if length < len(whole) - checksums:
            with pytest.raises(ItemError):
                decode(cut, 1)
        else:
            assert torch.equal(decode(cut, 1), image)
