"""Take the images out of a request: JSON with base64, parts of a form, one raw file, or a table as MLflow sends it."""

import asyncio
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from graftline.serving.answers import decode_base64
from graftline.serving.limits import MARKS_PER_IMAGE, MEGABYTE, Limits, RefusedRequest, Share

PARSED_IN_PLACE = 100_000  # bytes; what is longer is parsed in a thread, so that others are answered meanwhile

_RAW = re.compile(r"image/[\w.+-]+|application/octet-stream|application/dicom")
_FORMS = "an image (image/jpeg, application/octet-stream), multipart/form-data or application/json"
_TABLES = 'a table with a column "image": {"dataframe_records": [{"image": "BASE64"}]}'

Parse = Callable[[str, bytes, Limits], list[bytes]]


async def read_images(request: Request, limits: Limits, share: Share, parse: Parse) -> list[bytes]:
    """Return the image files of a request.

    Args:
        request: whose body is still to come.
        limits: of its size, time and number of images.
        share: of the bytes that all requests may take together.
        parse: takes content type and body apart.

    Raises:
        RefusedRequest: it is too large, too slow, or not what it says.
    """
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise RefusedRequest(415, f"Content-Encoding is {_short(coding)}: send the request as it is, uncompressed.")
    body = await _read(request, limits, share)
    kind = request.headers.get("content-type", "")
    if len(body) <= PARSED_IN_PLACE:
        images = parse(kind, body, limits)
    else:
        images = await asyncio.to_thread(parse, kind, body, limits)
    if not images:
        raise RefusedRequest(400, "The request holds no images: send one at least.")
    if len(images) > limits.images:
        raise too_many(limits)
    return images


def too_many(limits: Limits) -> RefusedRequest:
    """Return the answer to a request of too many images."""
    return RefusedRequest(413, f"The request holds more than {limits.images} images: send them in several requests.")


async def _read(request: Request, limits: Limits, share: Share) -> bytes:
    most = limits.request_mb * MEGABYTE
    too_large = RefusedRequest(
        413, f"The request is larger than {limits.request_mb} MB: send the images in several requests, or smaller ones."
    )
    length = request.headers.get("content-length", "0")
    announced = int(length) if length.isascii() and length.isdigit() else 0
    if announced > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.request_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > most:
                    raise too_large
                share.take(len(chunk))
                body += chunk
    except TimeoutError as error:
        seconds = f"{limits.request_seconds:g}"
        raise RefusedRequest(
            408, f"The request has not arrived within {seconds} s: send smaller ones.", Connection="close"
        ) from error
    except ClientDisconnect as error:
        raise RefusedRequest(400, "The connection was broken before the request had arrived.") from error
    return bytes(body)


def parse_images(kind: str, body: bytes, limits: Limits) -> list[bytes]:
    """Take the body of a request to ``/predict`` apart.

    Raises:
        RefusedRequest: it is not what it says, or of a type that is not taken.
    """
    media, options = parse_options_header(kind)
    media = media.lower()
    if media == "multipart/form-data":
        return _parts(options.get("boundary", ""), body, limits)
    if media == "application/json":
        return _of_json(_json(body, limits))
    if media == "" or _RAW.fullmatch(media):
        if not body:
            raise RefusedRequest(400, "The request is empty: send the bytes of an image file.")
        return [body]
    raise RefusedRequest(415, f"Content-Type is {_short(media)}, but this address takes {_FORMS}.")


def parse_table(kind: str, body: bytes, limits: Limits) -> list[bytes]:
    """Take the body of a request to ``/invocations`` apart, as MLflow's clients write it.

    Raises:
        RefusedRequest: it is not what it says, or of a type that is not taken.
    """
    media = parse_options_header(kind)[0].lower()
    if media == "text/csv":
        return _decoded(_of_csv(body, limits))
    if media in ("application/json", ""):
        return _decoded(_of_table(_json(body, limits)))
    raise RefusedRequest(415, f"Content-Type is {_short(media)}, but this address takes application/json and text/csv.")


def _parts(boundary: str, body: bytes, limits: Limits) -> list[bytes]:
    if not boundary:
        raise RefusedRequest(400, "The Content-Type multipart/form-data names no boundary: let the client write it.")
    broken = RefusedRequest(400, "The request is no whole multipart/form-data: let the client write it.")
    try:
        decoder = MultipartDecoder(boundary.encode("latin-1"), max_parts=limits.images)
        decoder.receive_data(body)
        decoder.receive_data(None)
        images: list[bytearray] = []
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, NeedData):
                raise broken
            if isinstance(event, Field | File):
                images.append(bytearray())
            elif isinstance(event, Data):
                images[-1] += event.data
    except RequestEntityTooLarge as error:
        raise too_many(limits) from error
    except (ValueError, LookupError) as error:  # a boundary or headers of a part that are none
        raise broken from error
    return [bytes(image) for image in images]


def _json(body: bytes, limits: Limits) -> Any:
    values = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if values > MARKS_PER_IMAGE * limits.images:  # before it becomes objects, which may be large and deep
        raise too_many(limits)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedRequest(400, f"The request is no JSON ({_short(str(error))}): check what is sent.") from error


def _of_json(content: Any) -> list[bytes]:
    shape = 'The request must look like {"images": ["BASE64", ...]}, with the files\' bytes in base64.'
    if not isinstance(content, dict) or set(content) - {"images", "image"}:
        raise RefusedRequest(400, shape)
    images = content.get("images", [])
    if not isinstance(images, list):
        raise RefusedRequest(400, shape)
    return _decoded([*images, *([content["image"]] if "image" in content else [])])


def _of_table(content: Any) -> list[object]:
    """Return a column of what MLflow's clients send; see mlflow.org/docs, "Accepted Inputs for Inference"."""
    wrong = RefusedRequest(400, f"The request must hold {_TABLES}.")
    if not isinstance(content, dict):
        raise wrong
    for key in ("dataframe_records", "instances", "inputs"):
        if key in content:
            return _of_records(content[key], wrong)
    split = content.get("dataframe_split")
    if isinstance(split, dict):
        names, rows = split.get("columns"), split.get("data")
        if not (isinstance(names, list) and "image" in names and isinstance(rows, list)):
            raise wrong
        if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
            raise wrong
        return [row[names.index("image")] for row in rows]
    raise wrong


def _of_records(records: Any, wrong: RefusedRequest) -> list[object]:
    """Return the images of rows, of a column, or of one row."""
    if isinstance(records, dict):
        records = records.get("image")
        records = [records] if isinstance(records, str) else records
    if not isinstance(records, list) or any(isinstance(one, dict) and "image" not in one for one in records):
        raise wrong
    return [one["image"] if isinstance(one, dict) else one for one in records]


def _of_csv(body: bytes, limits: Limits) -> list[object]:
    wrong = RefusedRequest(400, 'The request must be a CSV with a column "image" of base64.')
    if sum(body.count(mark) for mark in (b",", b"\n", b"\r")) > MARKS_PER_IMAGE * limits.images:
        raise too_many(limits)
    csv.field_size_limit(limits.request_mb * MEGABYTE)
    try:
        rows = list(csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline="")))
    except (ValueError, csv.Error) as error:
        raise wrong from error
    if not all("image" in row for row in rows):
        raise wrong
    return [row["image"] for row in rows]


def _decoded(images: Sequence[object]) -> list[bytes]:
    files: list[bytes] = []
    flaws: dict[int, str] = {}
    for number, text in enumerate(images):
        try:
            files.append(decode_base64(text))
        except ValueError as error:
            flaws[number] = str(error)
    if flaws:
        raise flawed(flaws)
    return files


def flawed(flaws: dict[int, str]) -> RefusedRequest:
    """Return the answer to a request with images that cannot be read, each named by its number, from 0."""
    first = [f"image {number}: {flaw}" for number, flaw in list(flaws.items())[:5]]
    more = f"; and {len(flaws) - len(first)} more" if len(flaws) > len(first) else ""
    return RefusedRequest(400, "; ".join(first) + more)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"
