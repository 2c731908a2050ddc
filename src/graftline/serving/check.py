"""Replay a bundle's golden images on a server, and tell at which step it differs from the bundle's writer.

Letters: M golden images, K classes.
"""

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from graftline.bundle.calibration import Calibration
from graftline.bundle.ensemble import is_ensemble, read_ensemble, read_replay
from graftline.bundle.golden import HASHED_STEPS, read_golden
from graftline.bundle.layout import read_description
from graftline.bundle.predictor import softmax
from graftline.bundle.verify import MAX_PROBABILITY_CHANGE
from graftline.errors import UserError, first_line
from graftline.serving.answers import columns
from graftline.serving.login import PASSWORD, is_loopback

TIMEOUT_SECONDS = 60
STEPS = (*HASHED_STEPS, "network", "answer")
_AT_ONCE = 8  # images of a request

Content = dict[str, Any]


@dataclass(frozen=True)
class ServerCheck:
    """What a replay on a server gave.

    Attributes:
        address: of the server.
        served: what it says of its model; empty if it does not tell, as MLflow's own does not.
        num_images: M.
        num_differing: how many golden images differ at each step from the bundle's writer; the steps that the server
            does not tell are left out.
        largest_probability_change: of any class of any image.
        unreadable: why a golden image was refused, by its file name.
        digest: of the bundle that was compared with.
    """

    address: str
    served: Mapping[str, Any]
    num_images: int
    num_differing: Mapping[str, int]
    largest_probability_change: float
    unreadable: Mapping[str, str]
    digest: str

    @property
    def problem(self) -> str | None:
        """What is wrong, as one sentence; None if the server gives the probabilities of the bundle's writer."""
        if self.served.get("digest", self.digest) != self.digest:
            return (
                f"{self.address} serves another bundle ({self.served['digest']}) than the one that it was compared "
                f"with ({self.digest}): give the one that it should serve, or restart the server."
            )
        if self.unreadable:
            name, reason = next(iter(self.unreadable.items()))
            return (
                f"{self.address} cannot read {len(self.unreadable)} of {self.num_images} golden images (first: {name}, "
                f"{reason}): install there what the bundle was saved with."
            )
        if not self.largest_probability_change <= MAX_PROBABILITY_CHANGE:
            first = next((step for step in STEPS if self.num_differing.get(step)), "answer")
            return (
                f"{self.address} changes a probability by {self.largest_probability_change:.1g}, more than "
                f"{MAX_PROBABILITY_CHANGE:g}, and differs from the step '{first}' on: install there what the bundle "
                "was saved with, or serve it again."
            )
        return None


def describe_server(address: str) -> Content:
    """Return what a server says of its model; empty if it does not tell.

    Raises:
        UserError: nothing answers there.
    """
    status, content = _ask(f"{address}/model", None)
    return content if status == 200 and isinstance(content, dict) else {}


def check_server(address: str, served: Content, bundle: Path) -> ServerCheck:
    """Send a bundle's golden images to a server and compare its answers with those of the bundle's writer.

    Args:
        address: such as ``http://127.0.0.1:5001``, or of one of several models below it.
        served: what `describe_server` returned.
        bundle: the folder of the bundle that it should serve.

    Raises:
        UserError: the bundle has no golden images, or the server does not answer.
    """
    names, expected = _expected(bundle)  # (M, K)
    files = _files(bundle)
    actual, flaws = _probabilities(address, files, names)
    changes = np.abs(np.nan_to_num(actual, nan=np.inf) - expected).max(axis=1)  # (M,)
    readable = [number for number in range(len(files)) if number not in flaws]
    differing = {"answer": int((changes[readable] > MAX_PROBABILITY_CHANGE).sum())}
    if served and not is_ensemble(bundle):
        differing = {**_steps(address, bundle, readable), **differing}
    content = read_ensemble(bundle) if is_ensemble(bundle) else read_description(bundle)
    return ServerCheck(
        address=address,
        served=served,
        num_images=len(files),
        num_differing=differing,
        largest_probability_change=float(changes[readable].max(initial=0.0)),
        unreadable={files[number].name: reason for number, reason in flaws.items()},
        digest=content["digest"],
    )


def _files(bundle: Path) -> list[Path]:
    return read_replay(bundle)[0] if is_ensemble(bundle) else read_golden(bundle)[0]


def _expected(bundle: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of the classes, and the writer's probabilities (M, K)."""
    if is_ensemble(bundle):
        return list(read_ensemble(bundle)["class_names"]), softmax(read_replay(bundle)[1])
    content = read_description(bundle)
    logits = read_golden(bundle)[1].logits
    return content["class_names"], softmax(Calibration.from_dict(content.get("calibration")).apply(logits))


def _probabilities(address: str, files: Sequence[Path], names: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Return the server's probabilities (M, K), with a row of NaN where it cannot read an image, and why."""
    found = np.full((len(files), len(names)), np.nan)
    flaws: dict[int, str] = {}
    for start in range(0, len(files), _AT_ONCE):
        numbers = list(range(start, min(start + _AT_ONCE, len(files))))
        status, rows = _classify(address, [files[number] for number in numbers])
        if status != 200:  # for one of them, or for all together: each is sent alone
            for number in numbers:
                status, row = _classify(address, [files[number]])
                if status != 200:
                    flaws[number] = str(row)
                else:
                    found[number] = _row(address, row[0], names)
            continue
        found[numbers] = [_row(address, row, names) for row in rows]
    return found, flaws


def _classify(address: str, files: Sequence[Path]) -> tuple[int, Any]:
    """Ask as MLflow's clients do, which each server of these models understands.

    Returns:
        200 and the rows of its table; or 400, of several images also 413, which says no to their size, and its reason.
    """
    records = [{"image": base64.b64encode(file.read_bytes()).decode("ascii")} for file in files]
    body = json.dumps({"dataframe_records": records}).encode()
    status, content = _ask(f"{address}/invocations", body, "application/json")
    reason = _reason(content)
    if status == 400 or (status == 413 and len(files) > 1):
        return status, "no reason given" if reason is None else reason
    if status != 200 and reason is not None:
        raise UserError(f"{address} does not classify golden images (HTTP {status}: {reason}).")
    rows = content.get("predictions") if isinstance(content, dict) else None
    if status != 200 or not isinstance(rows, list) or len(rows) != len(files):
        raise UserError(f"{address} does not answer as a server of a graftline model does (HTTP {status}).")
    return status, rows


def _row(address: str, row: Content, names: list[str]) -> list[float]:
    try:
        return [float(row[column]) for column in columns(names)[2:]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{address} serves other classes than {', '.join(names[:6])}: give its own bundle.") from error


def _steps(address: str, bundle: Path, numbers: Sequence[int]) -> dict[str, int]:
    """Return how many golden images differ at each step; empty if the server does not tell."""
    files, expected, _ = read_golden(bundle)
    differing = dict.fromkeys((*HASHED_STEPS, "network"), 0)
    for number in numbers:
        status, content = _ask(f"{address}/replay", files[number].read_bytes(), "application/octet-stream")
        if status != 200 or not isinstance(content, dict) or not content.get("steps"):
            return {}
        steps = content["steps"]
        for step in HASHED_STEPS:
            differing[step] += steps[step] != expected.hashes[number][step]
        differing["network"] += not np.array_equal(np.float32(steps["logits"]), expected.logits[number])
    return differing


def _ask(url: str, body: bytes | None, kind: str = "") -> tuple[int, Any]:
    """Return status and content of an answer; text where it is no JSON."""
    request = urllib.request.Request(url, body, {"Content-Type": kind} if body is not None else {})  # noqa: S310 - http
    password = os.environ.get(PASSWORD)
    if password:  # the server's, and not that of another one that it redirects to
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(f':{password}'.encode()).decode()}")
    try:
        try:
            with _opener(url).open(request, timeout=TIMEOUT_SECONDS) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
    except (OSError, ValueError, HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = getattr(cause, "strerror", None) or first_line(cause if isinstance(cause, Exception) else error)
        raise UserError(f"{url} does not answer ({reason}): start the server, or check the address.") from error
    if status == 401:
        wanted = "does not take the password in" if password else "wants its password: set"
        raise UserError(f"{url} {wanted} {PASSWORD}.")
    try:
        told = json.loads(content)
    except ValueError:
        told = content.decode("utf-8", "replace")
    if status == 403:
        raise UserError(f"{url} refuses to answer ({_reason(told)}).")
    return status, told


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return what opens an address: without a proxy where it is this machine's, which a proxy takes for its own."""
    is_here = is_loopback(urlsplit(url).hostname or "")
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_here else []))


def _reason(content: Any) -> str | None:
    """Return the sentence with which a server says no."""
    reason = content.get("message") if isinstance(content, dict) else None
    return None if reason is None else str(reason).removesuffix(".")
