"""Every depth and colour mode of image files equals its 8-bit twin, or is refused by name."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from snows_core.errors import SnowsError
from snows_core.zoo.data import load_data
from snows_core.zoo.image_modes import mode_of, read_image

RNG = np.random.RandomState(0)
GREY = RNG.randint(0, 256, (9, 8), dtype=np.uint8)
GREY[0, :2] = 0, 255
COLOUR = RNG.randint(0, 256, (9, 8, 3), dtype=np.uint8)
DEEP = GREY.astype(np.uint16) * 257 - (GREY > 0) * RNG.randint(0, 128, GREY.shape).astype(np.uint16)
RGB = Image.fromarray(COLOUR)


def png(values, kind, *chunks):
    """Write a PNG of 16 bits a channel, which Pillow writes for grey alone; kinds: 0 grey, 2 RGB, 4 LA, 6 RGBA."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def transparent(mode):
    alpha = Image.fromarray(np.where(GREY > 100, 255, GREY).astype(np.uint8))
    image = RGB.convert(mode[:-1] if mode.endswith("A") else mode)
    image.putalpha(alpha)
    return image


def palette(transparency):
    def save(path):
        image = RGB.quantize(16)
        image.save(path, transparency=transparency)
        return image.convert("RGB")

    return save


def grey_twin(save):
    def saves(path):
        save(path)
        return Image.fromarray(GREY)

    return saves


def tiff(mode, byte_order):
    return grey_twin(lambda path: Image.frombytes(mode, (8, 9), DEEP.astype(byte_order).tobytes()).save(path))


def converted(image):
    def save(path):
        image.save(path)
        return image.convert("RGB")

    return save


def sixteen(kind, channels):
    def save(path):
        values = (COLOUR if kind in (2, 6) else GREY[..., None]).astype(np.uint16) * 257
        if channels in (2, 4):
            values = np.concatenate([values, np.full_like(values[..., :1], 77)], 2)
        path.write_bytes(png(values, kind))
        return RGB if kind in (2, 6) else Image.fromarray(GREY)

    return save


LAB = ImageCms.applyTransform(
    RGB,
    ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
)
KINDS = {
    "8-bit grey.png": grey_twin(lambda path: Image.fromarray(GREY).save(path)),
    "8-bit colour.png": converted(RGB),
    "1-bit.png": converted(Image.fromarray(GREY > 127)),
    "1-bit.tif": converted(Image.fromarray(GREY > 127)),
    "16-bit grey.png": grey_twin(lambda path: Image.fromarray(DEEP).save(path)),
    "16-bit grey with a transparent value.png": grey_twin(
        lambda path: path.write_bytes(png(DEEP, 0, (b"tRNS", b"\0\0")))
    ),
    "16-bit grey little-endian.tif": tiff("I;16", "<u2"),
    "16-bit grey big-endian.tif": tiff("I;16B", ">u2"),
    "16-bit grey.pgm": grey_twin(lambda path: path.write_bytes(b"P5 8 9 65535\n" + DEEP.astype(">u2").tobytes())),
    "12-bit grey.pgm": grey_twin(
        lambda path: path.write_bytes(b"P5 8 9 4095\n" + (GREY.astype(int) * 4095 // 255).astype(">u2").tobytes())
    ),
    "16-bit colour.png": sixteen(2, 3),
    "16-bit grey and alpha.png": sixteen(4, 2),
    "16-bit colour and alpha.png": sixteen(6, 4),
    "16-bit colour.ppm": lambda path: (
        path.write_bytes(b"P6 8 9 65535\n" + (COLOUR.astype(np.uint16) * 257).astype(">u2").tobytes()) and RGB
    ),
    "palette.png": palette(None),
    "palette with a transparent colour.png": palette(3),
    "palette with transparencies.png": palette(bytes(range(0, 160, 10))),
    "grey and alpha.png": converted(transparent("LA")),
    "colour and alpha.png": converted(transparent("RGBA")),
    "colour and alpha.webp": lambda path: transparent("RGBA").save(path, lossless=True, exact=True) or RGB,
    "CMYK.tif": converted(RGB.convert("CMYK")),
    "CMYK.jpg": lambda path: RGB.convert("CMYK").save(path) or Image.open(path).convert("RGB"),
    "YCbCr.tif": converted(RGB.convert("YCbCr")),
    "LAB.tif": converted(LAB),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_equals_its_8_bit_twin(kind, tmp_path):
    path = tmp_path / kind
    twin = KINDS[kind](path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("RGB", "L"):
            found, wanted = np.asarray(read_image(path, mode)).astype(int), np.asarray(twin.convert(mode)).astype(int)
            assert found.shape == wanted.shape and np.abs(found - wanted).max() <= 1
    assert np.ptp(found) > 100, "a picture, not all white or black"


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_and_shallow_files_in_a_folder_give_the_same_tensors(tmp_path, channels):
    shallow, deep = tmp_path / "shallow", tmp_path / "deep"
    for folder, image in ((shallow, Image.fromarray(GREY)), (deep, Image.fromarray(DEEP))):
        for name in ("a", "b"):
            (folder / name).mkdir(parents=True)
            RGB.save(folder / name / "1.png")  # the first image is the only one to test on: colour
            image.save(folder / name / "2.png")
    images = [
        load_data(f"folder:{folder}", mean=(0,) * channels, std=(1,) * channels, image_size=8).train.tensors()[0]
        for folder in (shallow, deep)
    ]
    assert images[0].shape == (3, channels, 8, 8)
    assert torch.allclose(*images, atol=1.01 / 255)


def in_memory(array, tags=None):
    return lambda path: Image.fromarray(array).save(path, **({"tiffinfo": tags} if tags else {}))


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("integers.tif", in_memory(DEEP.astype(np.int32)), "of mode I; "),
        ("floats.tif", in_memory(GREY.astype(np.float32) / 255), "of mode F; "),
        ("floats to 255.tif", in_memory(GREY.astype(np.float32)), "of mode F; "),
        ("white is zero.tif", in_memory(DEEP, {262: 0}), "of mode I;16, in which 0 is white; "),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_numbers_without_a_known_scale_are_refused(tmp_path, name, save, message, mode):
    save(tmp_path / name)
    with pytest.raises(
        SnowsError, match=f"data: got .*{name} {message}expected 8- or 16-bit .*Convert the file to 8-bit"
    ):
        read_image(tmp_path / name, mode)


def test_twelve_bits_of_a_tiff_are_scaled_by_their_number(tmp_path):
    values = (GREY.astype(int) * 4095 // 255).astype(np.uint16)
    even = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([even[:, 0] >> 4, (even[:, 0] & 15) << 4 | even[:, 1] >> 8, even[:, 1] & 255], 1).astype(np.uint8)
    entries = [
        (256, 4, 8),
        (257, 4, 9),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 122),
        (277, 3, 1),
        (278, 4, 9),
    ]
    entries.append((279, 4, packed.size))
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    header = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"
    (tmp_path / "x.tif").write_bytes(header + packed.tobytes())
    found = np.asarray(read_image(tmp_path / "x.tif", "L")).astype(int)
    assert np.abs(found - GREY).max() <= 1


@pytest.mark.parametrize("content", [b"", b"not an image", png(DEEP, 0)[:60], b"II*\0\x08\0\0\0"])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(SnowsError, match=r"data: .*broken.png cannot be read as an image \(.*\)\. Remove or replace"):
        read_image(tmp_path / "broken.png", "RGB")
    if not content.startswith(b"\x89PNG"):
        with pytest.raises(SnowsError, match="cannot be read as an image"):
            mode_of(tmp_path / "broken.png")


def test_16_bit_grey_files_are_grey(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.frombytes("I;16B", (8, 9), DEEP.astype(">u2").tobytes()).save(tmp_path / name / f"{i}.tif")
    with pytest.raises(SnowsError, match="got grey images"):
        load_data(f"folder:{tmp_path}", image_size=8)


def test_orientation_is_left_as_in_the_loaders_of_torchvision(tmp_path):
    from torchvision.datasets.folder import pil_loader

    exif = Image.Exif()
    exif[274] = 6
    RGB.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png", "RGB"), pil_loader(tmp_path / "turned.png"))
