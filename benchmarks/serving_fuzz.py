"""Send mutations of valid requests and images to a server, and count what it answers: none of it may be a 5xx.

    make serve model=elpv &
    python benchmarks/serving_fuzz.py http://127.0.0.1:5001 10000

The mutations are drawn by hypothesis: bytes are flipped, cut out, doubled and put in, numbers of headers changed, JSON
made of other JSON, content types swapped.
"""

import base64
import http.client
import io
import json
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
KINDS = (
    "image/jpeg",
    "application/octet-stream",
    "application/json",
    FORM,
    "multipart/form-data; boundary=",
    "text/csv",
    "text/plain",
    "\xff;=",
    "",
)
PATHS = ("/predict", "/predict", "/invocations", "/replay")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "PPM")


def images() -> list[bytes]:
    """Return a small image in each format."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    files = []
    for name in FORMATS:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, name)
        files.append(file.getvalue())
    return files


def bodies(files: list[bytes]) -> list[bytes]:
    """Return valid bodies: files, forms, JSON and a table."""
    texts = [base64.b64encode(file).decode() for file in files]
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n'.encode()
    form = b"".join(part + file + b"\r\n" for file in files[:2]) + f"--{BOUNDARY}--\r\n".encode()
    tables = [
        {"images": texts[:2]},
        {"image": texts[0]},
        {"dataframe_records": [{"image": texts[0]}]},
        {"dataframe_split": {"columns": ["image"], "data": [[texts[1]]]}},
        {"instances": [{"image": texts[0]}]},
        {"inputs": {"image": texts[:1]}},
    ]
    return [*files, form, *(json.dumps(table).encode() for table in tables), f"image\n{texts[0]}\n".encode()]


@st.composite
def mutated(draw: st.DrawFn, valid: list[bytes]) -> bytes:
    """Draw a valid body with up to four changes of its bytes."""
    body = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, 4))):
        # many of the decisive bytes are among the first
        end = len(body) if draw(st.booleans()) else min(64, len(body))
        start = draw(st.integers(0, end))
        stop = min(len(body), start + draw(st.integers(0, 16)))
        match draw(st.sampled_from(("replace", "cut", "truncate", "double", "flip"))):
            case "replace":
                body[start:stop] = draw(st.binary(max_size=16))
            case "cut":
                del body[start:stop]
            case "truncate":
                del body[start:]
            case "double":
                body[start:start] = body[start:stop]
            case "flip":
                body[start:stop] = bytes(byte ^ draw(st.integers(1, 255)) for byte in body[start:stop])
    return bytes(body)


def other_json() -> st.SearchStrategy[bytes]:
    """Draw JSON of any kind, with the keys that are meant among others."""
    keys = st.sampled_from(("image", "images", "dataframe_records", "dataframe_split", "columns", "data", "inputs"))
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
    )
    return values.map(lambda value: json.dumps(value).encode())


def requests() -> st.SearchStrategy[tuple[str, str, bytes]]:
    """Draw address, content type and body."""
    valid = bodies(images())
    body = mutated(valid) | mutated(valid) | other_json()
    wild = st.tuples(st.sampled_from(PATHS), st.sampled_from(KINDS), body)
    file = st.tuples(st.sampled_from(("/predict", "/replay")), st.just("image/jpeg"), mutated(images()))
    form = st.tuples(st.just("/predict"), st.just(FORM), mutated(valid[len(FORMATS) : len(FORMATS) + 1]))
    table = st.tuples(st.sampled_from(PATHS), st.just("application/json"), mutated(valid[-7:-1]))
    return wild | file | form | table


def fuzz(url: str, count: int) -> Counter[int]:
    """Send requests and return how many were answered with each status.

    Raises:
        AssertionError: one was answered with 5xx, or without a sentence; hypothesis prints it.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 1000,  # a test is the same each time
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def send(request: tuple[str, str, bytes]) -> None:
        path, kind, body = request
        connection.request("POST", path, body, {"Content-Type": kind.encode("latin-1")})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        statuses[answer.status] += 1
        assert answer.status < 500, (request, content)
        assert answer.status == 200 or content["message"], (request, content)

    send()
    return statuses


def main(url: str, count: int) -> None:
    """Print how many requests were answered with which status."""
    start = time.perf_counter()
    statuses = fuzz(url, count)
    told = ", ".join(f"{status}: {number:,}" for status, number in sorted(statuses.items()))
    print(f"{statuses.total():,} requests in {time.perf_counter() - start:.0f} s; by status {told}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
