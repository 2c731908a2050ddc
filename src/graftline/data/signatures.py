"""Name what is in a file that is no image that we read, by its first bytes, and the way out.

Needs nothing but Python, as the predictor imports it in a small container.
"""

import re
from typing import Literal, NamedTuple

HEAD_BYTES = 4096  # what `describe` wants to see: DICOM's mark is behind 128 bytes, a drawing's behind an XML header

_CONVERT = "convert it to JPEG or PNG"
_UNPACK = "unpack it, or remove it"
_REMOVE = "put the file itself in its place"
_FRAMES = "take images from it, as with ffmpeg"
_DEVELOP = "develop it to JPEG, PNG or TIFF"


class _Signature(NamedTuple):
    """Where a kind of file has which bytes, what it is called and what to do with it."""

    pattern: bytes  # a regular expression, matched at the start
    name: str
    way_out: str


_AT_4 = rb".{4}"
_BOX = _AT_4 + rb"ftyp"  # ISO base media files say what they are in a box of this name
_TEXT = rb"(?i:(?:\xef\xbb\xbf)?\s*"  # an optional byte order mark and blanks, small and capital letters

_IMAGE = rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0\0\0\0|RIFF.{4}WEBP|.{4}jP  "  # of formats that we read

# The first that fits counts.
_SIGNATURES = (
    _Signature(_BOX + rb"(?:avif|avis)", "AVIF", "update Pillow, or " + _CONVERT),
    _Signature(_BOX + rb"(?:hei[cfmsx]|hev[cmsx]|mif[12]|msf1)", "HEIC", _CONVERT),
    _Signature(_BOX + rb"crx ", "camera raw (CR3)", _DEVELOP),
    _Signature(_AT_4 + rb"(?:ftyp|moov|mdat|wide)", "an MP4 or QuickTime video", _FRAMES),
    _Signature(rb"RIFF.{4}AVI ", "an AVI video", _FRAMES),
    _Signature(rb"\x1aE\xdf\xa3", "a Matroska or WebM video", _FRAMES),
    _Signature(rb".{128}DICM|\x08\x00.\x00[A-Z][A-Z]", "DICOM", _CONVERT),
    _Signature(rb"(?:\xff\x0a|\x00\x00\x00\x0cJXL )", "JPEG XL", _CONVERT),
    _Signature(rb"DDS |icns|qoif|BPG\xfb|FLIF", "an image format that few programs read", _CONVERT),
    _Signature(rb"8BPS", "a Photoshop document", _CONVERT),
    _Signature(rb"gimp xcf", "a GIMP document", _CONVERT),
    _Signature(rb"v/1\x01", "OpenEXR", _CONVERT),
    _Signature(rb"#\?R", "Radiance HDR", _CONVERT),
    _Signature(rb"\x00\x00[\x01\x02]\x00[^\x00]\x00", "a Windows icon", _CONVERT),
    _Signature(rb".\x00[\x02\x03\x0a\x0b]\x00{5}|.\x01[\x01\x09]\x00\x00", "TGA", _CONVERT),
    _Signature(rb"II\*\x00.{4}CR", "camera raw (CR2)", _DEVELOP),
    _Signature(rb"II(?:U\x00|RO|RS)|MMOR|FUJIFILMCCD-RAW|FOVb|\x00MRM", "camera raw", _DEVELOP),
    _Signature(rb"II[*+]\x00|MM\x00[*+]", "TIFF of a kind that we do not read, perhaps camera raw", _DEVELOP),
    _Signature(rb".{344}n[+i]1\x00|\x5c\x01\x00\x00", "NIfTI", "save its slices as PNG"),
    _Signature(rb"SIMPLE  =", "FITS", _CONVERT),
    _Signature(rb"\x93NUMPY", "a NumPy array", "save it as PNG or TIFF"),
    _Signature(rb"\x89HDF\r\n\x1a\n", "HDF5", "save its images as PNG or TIFF"),
    _Signature(rb"MATLAB", "a MATLAB file", "save its images as PNG or TIFF"),
    _Signature(rb"SQLite format 3", "a database", "remove it"),
    _Signature(rb"PAR1", "a Parquet table", "give it to Table(), or remove it"),
    _Signature(rb"version https://git-lfs", "a pointer of Git LFS in place of the file", "run `git lfs pull`"),
    _Signature(rb"/annex/objects/|(?:\.\./)*\.git/annex/objects/", "a pointer of git-annex", "run `git annex get`"),
    _Signature(_TEXT + rb"(?:<\?[^>]*>\s*|<!--.*?-->\s*)*(?:<svg|<!doctype svg))", "SVG", _CONVERT),
    _Signature(_TEXT + rb"(?:<!doctype html|<html|<head|<body))", "HTML, a web page", _REMOVE),
    _Signature(_TEXT + rb"<\?xml)", "XML", "remove it"),
    _Signature(_TEXT + rb"[{\[]\s*[\"'{\[\d\]}])", "JSON", _REMOVE),
    _Signature(rb"%PDF-", "PDF", "save its pages or pictures as PNG"),
    _Signature(rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", _CONVERT),
    _Signature(rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF", "a Windows metafile", _CONVERT),
    _Signature(rb"AT&TFORM", "DjVu", _CONVERT),
    _Signature(rb"PK(?:\x03\x04|\x05\x06)", "a ZIP archive or an Office document", _UNPACK),
    _Signature(rb"7z\xbc\xaf\x27\x1c|Rar!", "a 7z or RAR archive", _UNPACK),
    _Signature(rb"\x1f\x8b|BZh\d|\xfd7zXZ|.{257}ustar", "an archive or compressed", _UNPACK),
    _Signature(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document or a thumbnail cache", "remove it"),
    _Signature(rb"\x00\x05\x16[\x00\x07]", "a companion file of macOS without content", "remove it"),
    _Signature(rb"\x00+\Z", "nothing but zeros, perhaps an incomplete copy", "copy it again"),
)


def name_content(head: bytes) -> tuple[str, str] | None:
    """Name what starts with these bytes, and what to do with it; None for what has no known signature.

    >>> name_content(b"%PDF-1.7")
    ('PDF', 'save its pages or pictures as PNG')
    """
    for signature in _SIGNATURES:
        if re.match(signature.pattern, head, re.DOTALL):
            return signature.name, signature.way_out
    return ("text", _REMOVE) if _is_text(head) else None


def describe(head: bytes) -> tuple[Literal["broken", "unreadable"], str]:
    """Say why a file that starts with these bytes, and that no decoder knows, is no image; and the way out.

    Args:
        head: its first `HEAD_BYTES`.
    """
    if re.match(_IMAGE, head, re.DOTALL):
        return "broken", "the image is damaged, or ends in its header"
    if (found := name_content(head)) is None:
        return "unreadable", "the content is no image format that we read"
    return "unreadable", f"it is {found[0]}; {found[1]}"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter is cut in two where the head ends
            return False
        text = head[: error.start].decode("utf-8-sig")
    return bool(text) and all(sign.isprintable() or sign in "\t\r\n\f" for sign in text)
