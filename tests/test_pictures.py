"""Pictures of any depth, range and shape: the policy sees them as people do, the judge sees what the policy
sees, and no picture is larger than the bounds say.

Guards against: pictures that are all black or all white to the model, a judge that looks at another picture
than the policy did, a strip that takes more memory than --max_pixels allows or ends a run.
"""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from data import DataError, Processor, Query, as_seen, load_queries, open_picture, read_picture
from judges.server import data_url
from reward import JudgeError

GREY = np.repeat(np.array([40, 128, 220], np.uint8), 8)[None].repeat(8, 0)              # three bars, 24 x 8
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)


def file(picture: Image.Image | np.ndarray, kind: str, **more) -> bytes:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    out = io.BytesIO()
    picture.save(out, kind, **more)
    return out.getvalue()


def bars(image: bytes) -> list[int]:
    """The greys of the three bars as the model sees them, from left to right."""
    return np.asarray(read_picture(image))[4, [4, 12, 20]].mean(-1).astype(int).tolist()


def tiff(pixels: bytes, bits: int, zero_is: int = 1, sample: int = 1) -> bytes:
    """24 x 8 of one channel; `zero_is` 0: white; `sample` 1: unsigned, 2: signed, 3: float."""
    tags = [(256, 24), (257, 8), (258, bits), (259, 1), (262, zero_is), (273, 8), (277, 1), (278, 8),
            (279, len(pixels)), (339, sample)]
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    start = struct.pack("<I", 8 + len(pixels))
    return b"II*\0" + start + pixels + struct.pack("<H", len(tags)) + table + bytes(4)


def png16(pixels: np.ndarray, colour: int) -> bytes:
    """16 bits for each channel; `colour` 0 grey, 2 RGB, 4 grey + alpha, 6 RGB + alpha."""
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    body = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", 24, 8, 16, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body))
            + chunk(b"IEND", b""))


def twelve_bits(values: np.ndarray) -> bytes:
    first, second = values.ravel()[::2].astype(int), values.ravel()[1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    return packed.astype(np.uint8).tobytes()


WIDE = GREY.astype(int) * 257                                            # the same greys in 16 bits
SEEN = {
    "16 bits, PNG": png16(WIDE, 0),
    "16 bits, TIFF": tiff(WIDE.astype("<u2").tobytes(), 16),
    "16 bits, TIFF, 0 is white": tiff((65535 - WIDE).astype("<u2").tobytes(), 16, zero_is=0),
    "12 bits, TIFF": tiff(twelve_bits(GREY.astype(int) * 16), 12),
    "16 bits, PGM": b"P5 24 8 65535\n" + WIDE.astype(">u2").tobytes(),
    "12 bits, PGM": b"P5 24 8 4095\n" + (GREY.astype(int) * 4095 // 255).astype(">u2").tobytes(),
    "16 bits, PGM in letters": b"P2 24 8 65535\n" + " ".join(map(str, WIDE.ravel())).encode(),
    "16 bits, PPM": b"P6 24 8 65535\n" + np.stack([WIDE] * 3, -1).astype(">u2").tobytes(),
    "16 bits, RGB": png16(np.stack([WIDE] * 3, -1), 2),
    "16 bits, grey + alpha": png16(np.stack([WIDE, np.full_like(WIDE, 65535)], -1), 4),
    "CMYK, TIFF": file(Image.fromarray(np.stack([GREY] * 3, -1)).convert("CMYK"), "TIFF"),
    "CMYK, JPEG": file(Image.fromarray(np.stack([GREY] * 3, -1)).convert("CMYK"), "JPEG", quality=100),
    "palette": file(Image.fromarray(np.stack([GREY] * 3, -1)).quantize(8), "PNG"),
    "grey + alpha": file(Image.fromarray(GREY).convert("LA"), "PNG"),
    "palette + alpha": file(Image.fromarray(GREY).convert("PA"), "TIFF"),
}


@pytest.mark.parametrize("image", SEEN.values(), ids=SEEN)
def test_three_greys_are_three_greys_in_every_depth(image):
    assert np.abs(np.subtract(bars(image), [40, 128, 220])).max() <= 1


REFUSED = {
    "32 bits": tiff((GREY.astype("<u4") * 65537).tobytes(), 32),
    "32 bits, signed": file(Image.fromarray(GREY.astype(np.int32) * 65537), "TIFF"),
    "16 bits, signed": tiff((GREY.astype("<i2") * 100).tobytes(), 16, sample=2),
    "floats from 0 to 1": file(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
    "floats from 0 to 255": file(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "floats, PFM": b"Pf 24 8 -1.0\n" + (GREY / 255).astype("<f4").tobytes(),
    "12 bits of data in 16, PNG": png16(GREY.astype(int) * 16, 0),
    "8 bits of data in 16, PGM": b"P5 24 8 65535\n" + GREY.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("image", REFUSED.values(), ids=REFUSED)
def test_a_range_that_nobody_states_is_refused_in_one_line(image):
    with pytest.raises(DataError, match="^cannot read image of .* bytes .its range is not known, or hardly "
                                        "used: save it with 8 bits.$"):
        read_picture(image)
    with pytest.raises(JudgeError):
        data_url(image)


def test_one_bit_is_black_and_white():
    assert bars(file(Image.fromarray(GREY > 100), "PNG")) == [0, 255, 255]


def test_a_bar_that_is_transparent_is_white():
    first = file(Image.fromarray(GREY), "PNG", transparency=40)
    palette = file(Image.fromarray(np.stack([GREY] * 3, -1)).quantize(3), "PNG", transparency=0)
    assert bars(first) == [255, 128, 220] and sorted(bars(palette))[2] == 255


# -------------------------------------------------------------------------------------------------- the judge

def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


RGB = Image.fromarray(COLOUR)
CLEAR = Image.fromarray(np.dstack([COLOUR, np.where(GREY == 40, 0, 255).astype(np.uint8)]))
JUDGED = {                                   # file -> whether its very bytes are sent
    "RGB PNG": (file(RGB, "PNG"), True),
    "grey JPEG": (file(Image.fromarray(GREY), "JPEG"), True),
    "RGB JPEG": (file(RGB, "JPEG"), True),
    "WebP": (file(RGB, "WEBP"), True),
    "BMP": (file(RGB, "BMP"), True),
    "palette GIF": (file(RGB, "GIF"), True),
    "a JPEG that says it is upright": (file(RGB, "JPEG", exif=Image.Exif()), True),
    "turned by EXIF": (file(RGB, "JPEG", exif=turned()), False),
    "turned PNG": (file(RGB, "PNG", exif=turned()), False),
    "16 bits of grey": (png16(WIDE, 0), False),
    "CMYK JPEG": (file(RGB.convert("CMYK"), "JPEG"), False),
    "transparent PNG": (file(CLEAR, "PNG"), False),
    "transparent WebP": (file(CLEAR, "WEBP", lossless=True), False),
    "one colour transparent": (file(Image.fromarray(GREY), "PNG", transparency=40), False),
    "GIF of two frames": (file(RGB, "GIF", save_all=True, append_images=[ImageOps.invert(RGB)]), False),
    "PNG of two frames": (file(RGB, "PNG", save_all=True, append_images=[ImageOps.invert(RGB)]), False),
    "TIFF": (file(RGB, "TIFF"), False),
}


@pytest.mark.parametrize("image, as_it_is", JUDGED.values(), ids=JUDGED)
def test_the_judge_sees_what_the_policy_sees(image, as_it_is):
    head, _, body = data_url(image).partition(",")
    sent = base64.b64decode(body)
    assert (sent == image) is as_it_is
    with Image.open(io.BytesIO(sent)) as picture:
        assert head == f"data:image/{picture.format.lower()};base64"
        assert picture.mode in ("L", "P", "RGB") and getattr(picture, "n_frames", 1) == 1
        plainly = picture.convert("RGB")                                 # what any reader makes of it
    np.testing.assert_array_equal(np.asarray(plainly), np.asarray(read_picture(image)))


def test_half_a_picture_is_a_failed_verdict_and_no_other_error(tmp_path):
    (tmp_path / "half.png").write_bytes(png16(WIDE, 0)[:45])
    with pytest.raises(JudgeError):
        data_url(str(tmp_path / "half.png"))


# ------------------------------------------------------------------------------------------------------ sizes

@pytest.mark.parametrize("max_pixels", [64 * 64, 96 * 96, 3_000_000])
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (2, 300), (200, 1), (33, 3000), (3000, 33), (5, 7),
                                  (31, 1000), (640, 480), (2000, 10)])
def test_no_picture_leaves_the_bounds(checkpoint, picture, size, max_pixels):
    """A strip keeps one token on its short side; where that adds up to too many pixels, it is refused."""
    processor = Processor(checkpoint, max_pixels)
    try:
        shown = processor.picture(picture(*size))
    except DataError as error:
        assert f"image of {size[0]} x {size[1]} cannot be shown in {max_pixels} pixels" in str(error)
        assert max_pixels < 200 * 32 * 32 and max(size) > 3 * min(size)      # with more there is always a way
    else:
        assert 32 * 32 <= shown.width * shown.height <= max_pixels
        assert shown.width % 32 == shown.height % 32 == 0


def test_a_strip_that_no_model_takes_is_a_row_that_is_skipped(tmp_path, capsys, processor):
    Image.new("RGB", (2, 3000)).save(tmp_path / "strip.png")
    row = '{"id": "%s", "images": %s, "question": "?", "solution": "s", "answer": "a"}\n'
    (tmp_path / "data.jsonl").write_text(row % ("a", '["strip.png"]') + row % ("b", "[]"))
    assert [query.id for query in load_queries(tmp_path / "data.jsonl")] == ["b"]
    assert "image of 2 x 3000 pixels is too narrow" in capsys.readouterr().err
    with pytest.raises(DataError, match="query c: image of 2 x 3000 pixels is too narrow"):
        processor.prompt(Query("c", [str(tmp_path / "strip.png")], "?", "s", "a"))


def test_a_picture_that_would_fill_the_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)                   # more than twice that is a bomb
    with pytest.raises(DataError, match=r"cannot read image of \d+ bytes \(DecompressionBombError\)"):
        open_picture(file(GREY, "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(8, 8), (9, 17), (640, 333)])
def test_a_draft_breaks_where_the_whole_picture_breaks(picture, kind, size):
    """Only JPEG is made smaller; its colours stay."""
    with Image.open(io.BytesIO(picture(*size))) as noise:
        image = file(noise, kind)
    whole, draft = read_picture(image), read_picture(image, draft=True)
    assert whole.size == size and (draft.size == size) is (kind != "JPEG")
    with Image.open(io.BytesIO(image)) as plain:
        np.testing.assert_array_equal(np.asarray(whole), np.asarray(as_seen(plain)))
    half = image[:len(image) // 2]
    for draft in (True, False):
        with pytest.raises(DataError, match="cannot read image"):
            read_picture(half, draft)
