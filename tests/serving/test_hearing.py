"""Requests that are refused before they are read."""

import gzip
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import HttpServer, photo


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with HttpServer(tmp_path_factory.mktemp("place"), f"model={bundle}", "limits.request_mb=2") as server:
        yield server


def test_who_sends_all_before_it_reads_gets_the_refusal(server: HttpServer) -> None:
    """As Python's urllib, with which the connection ends after the answer."""
    large = b"\0" * 6_000_000
    assert server.ask("/nowhere", large).status == 404
    assert server.ask("/predict", large).status == 413
    assert server.ask("/predict", large, Host="example.org").status == 403
    in_pieces = urllib.request.Request(f"{server.url}/predict", iter([large]), {"Content-Type": "image/jpeg"})
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(in_pieces)


def test_a_compressed_request_is_told(server: HttpServer) -> None:
    answer = server.ask("/predict", gzip.compress(photo(1)), **{"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert answer.content["message"] == "Content-Encoding is gzip: send the request as it is, uncompressed."
