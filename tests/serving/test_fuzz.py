"""Mutated requests and images never get a 5xx; `benchmarks/serving_fuzz.py` sends more of them."""

from pathlib import Path

from http_server import HttpServer, photo

from benchmarks.serving_fuzz import fuzz


def test_mutated_requests_are_answered_with_a_sentence(bundle: Path, tmp_path: Path) -> None:
    with HttpServer(tmp_path, f"model={bundle}") as server:
        assert server.ask("/predict", photo(1)).status == 200
        statuses = fuzz(server.url, 200)
        assert {200, 400, 415} <= set(statuses)
        assert server.ask("/predict", photo(1)).status == 200
