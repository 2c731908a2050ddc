"""A content that is no image that we read is named, with the way out."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from graftline.data.decode import DecodeError, decode_rgb
from graftline.data.signatures import HEAD_BYTES, describe


def image(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, form)
    return file.getvalue()


def heif(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1"


def packed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"x")
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((4, 4)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (heif(b"heic"), "HEIC"),
        (heif(b"heix"), "HEIC"),
        (heif(b"mif1"), "HEIC"),
        (heif(b"isom"), "an MP4 or QuickTime video"),
        (heif(b"crx "), "camera raw (CR3)"),
        (bytes(128) + b"DICM\x02\0", "DICOM"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC "x" "y">\n<svg/>', "SVG"),
        (b"  <!doctype HTML><html><body><svg/></body></html>", "HTML, a web page"),
        (b'<?xml version="1.0"?><annotation/>', "XML"),
        (b'{"message": "not found"}', "JSON"),
        (b"%PDF-1.7\n", "PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "a pointer of Git LFS"),
        (b"/annex/objects/SHA256E-s1--0.png\n", "a pointer of git-annex"),
        (packed(), "a ZIP archive"),
        (gzip.compress(b"x", mtime=0), "an archive"),
        (b"Rar!\x1a\x07\x01\0", "a 7z or RAR archive"),
        (image("TGA"), "TGA"),
        (image("ICO"), "a Windows icon"),
        (array(), "a NumPy array"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera raw (CR2)"),
        (b"8BPS\0\1", "a Photoshop document"),
        (bytes(5000), "nothing but zeros"),
        ("not found: caf\u00e9\n".encode(), "text"),
        (("x" * 4095 + "\u00e9 and more").encode(), "text"),  # a letter is cut where the head ends
    ],
)
def test_contents_are_named(content: bytes, name: str) -> None:
    flaw, reason = describe(content[:HEAD_BYTES])
    assert flaw == "unreadable"
    assert reason.startswith(f"it is {name}")
    assert "; " in reason  # the way out


def test_the_decoder_names_a_content() -> None:
    with pytest.raises(DecodeError, match="it is PDF; save its pages") as raised:
        decode_rgb(b"%PDF-1.7")
    assert raised.value.flaw == "unreadable"


def test_what_has_no_signature_has_no_name() -> None:
    with pytest.raises(DecodeError, match="no image format that we read"):
        decode_rgb(b"\x80\x81\x82")


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP"])
def test_an_image_that_ends_in_its_header_is_broken(start: bytes) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_rgb(start)
    assert raised.value.flaw == "broken"
