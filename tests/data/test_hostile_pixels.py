"""Images that are built to fail, to take the memory or to hang: each gives its pixels, or one line that says why not."""

import io
import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from purify_engine.data import ItemError, pixels
from purify_engine.data.pixels import decode, quiet
from tests.data.tiffs import DEFLATE, tiff

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*chunks, before=b"IDAT"):
    png = saved(Image.fromarray(GREY), "PNG")
    at = png.index(before) - 4
    return png[:at] + b"".join(chunks) + png[at:]


def refusal(content, channels=3):
    with pytest.raises(ItemError) as caught:
        decode(content, channels)
    said = str(caught.value)
    assert "\n" not in said and "object at 0x" not in said and len(said) < 200
    return said


BROKEN_EXIF = b"II*\0" + b"\xff" * 60
LARGE = 3 * 2**20  # more than Pillow lets a text or a profile have

METADATA = {
    "large text": [chunk(b"tEXt", b"k\0" + b"a" * LARGE)],
    "large compressed text": [chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(LARGE)))],
    "large international text": [chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(LARGE)))],
    "a large profile": [chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(LARGE)))],
    "a broken profile": [chunk(b"iCCP", b"")],
    "EXIF with a broken directory": [chunk(b"eXIf", BROKEN_EXIF)],
    "EXIF that is none": [chunk(b"eXIf", b"nonsense")],
    "EXIF with a wrong checksum": [chunk(b"eXIf", BROKEN_EXIF)[:-1] + b"!"],
    "text with a wrong checksum": [chunk(b"tEXt", b"k\0v")[:-1] + b"!"],
    "an animation's chunks": [chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), chunk(b"fcTL", bytes(26))],
}


@pytest.mark.parametrize("broken", METADATA)
def test_a_png_is_read_whatever_is_beside_its_pixels(broken, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 2**20)  # of all texts together
    with quiet():
        for before in (b"IDAT", b"IEND"):
            assert np.array_equal(decode(with_chunks(*METADATA[broken], before=before), 1)[0], GREY)


def turned(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(GREY), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "AVIF", "TIFF"])
def test_exif_turns_images_of_every_format(kind):
    assert decode(turned(kind, 6), 1).shape == (1, 4, 3)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("number", [0, 0xFFFF])
def test_broken_exif_leaves_the_image_as_it_lies(kind, number):
    whole = turned(kind, 6)
    entry = next(entry for entry in (struct.pack(order + "HHI", 0x0112, 3, 1) for order in "<>") if entry in whole)
    broken = whole.replace(entry, entry[:2] + struct.pack(">H", number) + entry[4:])  # a type that there is not
    assert decode(broken, 1).shape == (1, 3, 4)


@pytest.mark.parametrize("orientation", range(9))
def test_every_orientation_turns_as_pillow_does(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(GREY), "PNG", exif=exif)
    with Image.open(io.BytesIO(content)) as picture:
        assert np.array_equal(decode(content, 1)[0], np.asarray(ImageOps.exif_transpose(picture)))


SAMPLES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8", "c8"]
NOT_TAKEN = {
    "u4": "pixels of 32 bits have no agreed range; convert the image to 8 or 16 bits",
    "u8": "pixels of 64 bits have no agreed range; convert the image to 8 or 16 bits",
    **{f"i{n}": f"signed pixels have no agreed range; convert the image to 8 or 16 bits, unsigned: they have {8 * n} bits"
       for n in (1, 2, 4)},
    **{f"f{n}": f"floating-point pixels have no agreed range; convert the image to 8 or 16 bits: they have {8 * n} bits"
       for n in (2, 4, 8)},
    "c8": "complex pixels have no agreed range; convert the image to 8 or 16 bits",
}  # fmt: skip


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("layout", [(5, 7), (5, 7, 3), (5, 7, 3, "planes")], ids=str)
def test_a_tiff_of_any_sample_is_read_rightly_or_refused_by_its_name(kind, layout):
    planar, dtype = 2 if "planes" in layout else 1, np.dtype(kind)
    most = min(2**31, np.iinfo(dtype).max) if dtype.kind in "ui" else 255
    samples = np.random.default_rng(0).integers(0, most, layout[:3], endpoint=True).astype(dtype)
    for order in "<>":
        for compression in (1, DEFLATE):
            content = tiff(samples, order=order, planar=planar, compression=compression)
            if kind in NOT_TAKEN:
                assert refusal(content) == NOT_TAKEN[kind]
            elif kind == "u2" and planar == 2:
                assert "in separate planes: not read; convert it to PNG" in refusal(content)
            else:
                read = decode(content, 3)
                got = read if read.dtype == np.float32 else read / 255
                exact = (samples / np.iinfo(dtype).max).reshape(5, 7, -1).transpose(2, 0, 1)
                # Of 16-bit colours the upper 8 bits are read: at most a level too dark.
                assert np.abs(got - exact).max() <= (1 / 255 if kind == "u2" and len(layout) > 2 else 1e-6)


def test_deep_grey_is_scaled_by_its_own_white_and_turned_where_white_is_zero():
    deep = np.array([[0, 1, 40000, 65535]], np.uint16)
    assert np.allclose(decode(tiff(deep, photometric=0), 3), 1 - deep / 65535)
    assert np.allclose(decode(tiff(deep, big=True), 1), deep / 65535)
    twelve = tiff(np.frombuffer(b"\xff\xf0\x00\x80\x08\x00", np.uint8).reshape(1, 6), bits=12)  # 4095, 0, 2048, 2048
    patched = twelve.replace(struct.pack("<HHII", 256, 4, 1, 6), struct.pack("<HHII", 256, 4, 1, 4))
    assert np.allclose(decode(patched, 1)[0, 0], np.array([4095, 0, 2048, 2048]) / 4095)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]
COMPRESSED = [
    *((mode, how) for mode in MODES for how in (None, "tiff_lzw", "packbits")),
    ("L", "jpeg"),
    ("RGB", "jpeg"),
    ("CMYK", "jpeg"),
]


@pytest.mark.parametrize(("mode", "compression"), COMPRESSED)
def test_tiffs_of_every_mode_and_compression_give_what_pillow_sees(mode, compression):
    picture = noise(40, 30).convert("RGB").convert(mode if mode != "I;16" else "L").convert(mode)
    content = saved(picture, "TIFF", **({"compression": compression} if compression else {}))
    read = decode(content, 3)
    with Image.open(io.BytesIO(content)) as there:
        deep = np.asarray(there, np.float32) / 65535
        expected = deep if mode == "I;16" else np.asarray(there.convert("RGB")).transpose(2, 0, 1)
    assert np.allclose(read, expected) and read.min() >= 0 and read.max() <= (1 if mode == "I;16" else 255)


def bomb(side):
    """A PNG of side x side pixels, black, in a few hundred kilobytes."""
    packer = zlib.compressobj(9)
    data = packer.compress(bytes(side * side // 8 + side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_144_megapixel_png_is_refused_in_under_50_ms(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(12_000))
    took = []
    for _ in range(3):
        started = time.perf_counter()
        assert refusal(tmp_path / "bomb.png") == "12000x12000 pixels exceed the cap of 50000000"
        took.append(time.perf_counter() - started)
    assert min(took) < 0.05


def oversized(kind):
    """A small file whose header says 65000x65000, as far as the format has room for it, or so much work inside."""
    small = saved(Image.new("L", (64, 64)), kind)
    if kind == "GIF":  # the screen and the frame
        return small.replace(struct.pack("<HH", 64, 64), struct.pack("<HH", 65000, 65000))
    if kind == "JPEG":
        return small.replace(b"\x08" + struct.pack(">HH", 64, 64), b"\x08" + struct.pack(">HH", 65000, 65000))
    if kind == "BMP":
        return small.replace(struct.pack("<ii", 64, 64), struct.pack("<ii", 65000, 65000))
    if kind == "PPM":
        return small.replace(b"64 64", b"65000 65000")
    if kind == "JPEG2000":
        return small.replace(struct.pack(">II", 64, 64), struct.pack(">II", 65000, 65000))
    assert kind == "TIFF"
    width = struct.pack("<HHI", 256, 4, 1)
    return tiff(np.zeros((64, 64), np.uint8)).replace(width + struct.pack("<I", 64), width + struct.pack("<I", 10**6))


@pytest.mark.parametrize("kind", ["GIF", "JPEG", "BMP", "PPM", "JPEG2000", "TIFF"])
def test_every_format_is_measured_before_it_is_decoded(kind, recwarn):
    content = oversized(kind)
    started = time.perf_counter()
    assert "pixels exceed the cap of 50000000" in refusal(content)
    assert time.perf_counter() - started < 0.5
    assert not recwarn.list


def jpeg2000(**changes):
    """A JPEG 2000 image of 7000x7000 black pixels, whose way of coding was changed: its code blocks, precincts or layers."""
    content = bytearray(saved(Image.new("L", (64, 64)), "JPEG2000", no_jp2=True))
    content[8:16] = content[24:32] = struct.pack(">II", 7000, 7000)
    at = content.index(b"\xff\x52")
    for place, value in changes.items():
        content[at + int(place[1:]) : at + int(place[1:]) + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"_10": b"\0\0"},  # code blocks of 4x4 pixels
        {"_6": b"\xff\xff", "_9": b"\x20"},  # 65535 layers of 33 resolutions, in four tiles
    ],
    ids=["blocks", "layers"],
)
def test_a_jpeg_2000_in_crumbs_is_refused(changes):
    content = jpeg2000(**changes)
    if "_6" in changes:
        content = content[:24] + struct.pack(">II", 500, 500) + content[32:]
    assert "so many small blocks or layers" in refusal(content)


def test_a_jpeg_2000_that_would_take_long_is_refused_before_it_does():
    small = jpeg2000()
    assert "a JPEG 2000 image that takes about 9 s to decode, 4 at most: convert it to PNG" in refusal(small + bytes(55_000_000))


def test_tiles_and_strips_of_a_tiff_are_measured_too():
    one = tiff(np.zeros((2, 2), np.uint8))
    strips = one.replace(struct.pack("<HHI", 273, 4, 1), struct.pack("<HHI", 273, 4, 5_000_000))
    assert refusal(strips) == "5000000 strips or tiles, more than 262144: they would take too much memory"
    tiled = one.replace(struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 322, 4, 1, 20000))
    tiled = tiled.replace(struct.pack("<HHII", 278, 4, 1, 2), struct.pack("<HHII", 323, 4, 1, 20000))
    assert refusal(tiled) == "tiles of 20000x20000 pixels exceed the cap of 50000000"


SLOW = {"plain": b"P3 7000 7000 255\n" + b"7 " * 100_000, "another maximum": b"P6 700 700 254\n" + b"7" * 3 * 700 * 700}


@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW)
def test_what_is_decoded_slowly_ends_when_patience_does(content, monkeypatch):
    monkeypatch.setattr(pixels, "PATIENCE", 0.02)
    started = time.perf_counter()
    assert refusal(content) == "takes longer than 0.02 s to decode"
    assert time.perf_counter() - started < 1


def test_thousands_of_scans_of_a_progressive_jpeg_end_when_patience_does(monkeypatch):
    one = saved(Image.new("L", (500, 500)), "JPEG", progressive=True)
    last = one[one.rindex(b"\xff\xda") : -2]
    monkeypatch.setattr(pixels, "PATIENCE", 0.1)
    assert decode(one, 1).shape == (1, 500, 500)
    assert refusal(one[:-2] + last * 5000 + one[-2:]) == "takes longer than 0.1 s to decode"


def test_heic_is_refused_by_its_name():
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"):
        assert "pillow-heif" in refusal(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(50))


def test_text_and_nothing_are_told_apart():
    assert refusal(b"") == "cannot read the image: the file is empty"
    said = "cannot read the image: begins with b'<!DOCTYP', as none of PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM, AVIF, JPEG2000 does"
    assert refusal(b"<!DOCTYPE html>") == said


def fifo(path):
    os.mkfifo(path)
    return "is a FIFO (named pipe), not a file"


def folder(path):
    path.mkdir()
    return "is a folder, not a file"


def loop(path):
    path.symlink_to(path)
    return "cannot read the image: Too many levels of symbolic links"


def nowhere(path):
    path.symlink_to("gone")
    return "cannot read the image: No such file or directory"


def device(path):
    path.symlink_to("/dev/zero")
    return "is a device, not a file"


def of_the_kernel(path):
    path.symlink_to("/proc/kmsg")
    return "cannot read the image: the file is empty"


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)
    return f"the file holds {2**40} bytes, more than {2**29}"


@pytest.mark.parametrize("make", [fifo, folder, loop, nowhere, device, of_the_kernel, sparse])
def test_what_is_no_file_is_never_opened(make, tmp_path, monkeypatch):
    said = make(tmp_path / "a.png")
    opened = []
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path))
    assert refusal(tmp_path / "a.png") == said and opened == []


def test_what_comes_in_the_place_of_a_file_is_not_read(tmp_path, monkeypatch):
    """Between the look at it and the opening: a FIFO is opened without waiting, and left alone."""
    (tmp_path / "a.png").write_bytes(with_chunks())
    opened = os.open

    def swapped(path, *rest):
        path.unlink()
        os.mkfifo(path)
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", swapped)
    assert refusal(tmp_path / "a.png") == "is a FIFO (named pipe), not a file"


@pytest.mark.parametrize("number", ["EACCES", "EIO"])
def test_a_file_that_cannot_be_read_fails_alone_and_a_lack_of_descriptors_is_not_its_fault(number, tmp_path, monkeypatch):
    import errno

    (tmp_path / "a.png").write_bytes(with_chunks())

    def fails(code):
        def fail(*args):
            raise OSError(code, os.strerror(code))

        return fail

    monkeypatch.setattr(os, "open", fails(getattr(errno, number)))
    assert refusal(tmp_path / "a.png") == f"cannot read the image: {os.strerror(getattr(errno, number))}"
    monkeypatch.setattr(os, "open", fails(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        decode(tmp_path / "a.png", 1)


def test_no_library_writes_to_standard_error_while_images_are_decoded(capfd):
    whole = saved(noise(40, 30), "TIFF", compression="tiff_lzw")
    damaged = whole[:12] + b"\xff" * 40 + whole[52:]
    samples = tiff(GREY).replace(struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 277, 4, 1, 99_999))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        refusal(damaged)
        loud = capfd.readouterr().err
        with quiet():
            refusal(damaged)
            refusal(samples)
            warnings.warn_explicit("Corrupt EXIF data", UserWarning, TiffImagePlugin.__file__, 1, module="PIL.TiffImagePlugin")
            assert capfd.readouterr().err == ""
        refusal(damaged)
    assert capfd.readouterr().err == loud != ""


def test_other_warnings_are_let_through():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit("of ours", UserWarning, "a.py", 1, module="purify_engine.data")
    assert [str(one.message) for one in caught] == ["of ours"]


def test_large_images_are_converted_strip_by_strip_to_the_same_pixels(monkeypatch):
    picture = noise(37, 29).convert("RGBA")
    picture.putalpha(noise(37, 29, 1))
    deep = tiff(np.random.default_rng(0).integers(0, 65536, (29, 37)).astype(np.uint16))
    contents = [saved(picture, "PNG"), saved(picture.convert("P"), "GIF"), deep]
    whole = [decode(content, channels) for content in contents for channels in (1, 3)]
    monkeypatch.setattr(pixels, "STRIP", 100)
    assert all(map(np.array_equal, whole, [decode(content, channels) for content in contents for channels in (1, 3)]))
