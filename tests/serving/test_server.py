"""The server as its clients see it: real processes, real HTTP, a real registry on sqlite."""

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
from bundles import redescribe, spoil_golden
from http_server import CLASS_NAMES, FORM, HttpServer, Load, bomb, form, photo, text
from mlflow import MlflowClient
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

from graftline.bundle.predictor import Predictor
from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.serving.check import check_server, describe_server
from graftline.tracking.client import connect
from graftline.tracking.names import DECISION

LIMITS = ("limits.images=8", "limits.waiting_images=64", "limits.request_mb=2", "limits.waiting_mb=16")
METRIC = re.compile(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [\d.e+-]+')


def register(client: MlflowClient, bundle: Path, folder: Path) -> int:
    """Register a copy of a bundle as the next version of "pets"."""
    shutil.copytree(bundle, folder / "artifacts" / "bundle")
    return int(client.create_model_version("pets", folder.as_uri()).version)


@pytest.fixture(scope="module")
def place(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    shutil.copyfile(empty_database, root / "mlflow.db")
    return root


@pytest.fixture(scope="module")
def client(place: Path, bundle: Path, calibrated: Path) -> MlflowClient:
    """A registry whose model "pets" has two versions, of which the first is champion."""
    client = connect(f"sqlite:///{place / 'mlflow.db'}")
    client.create_registered_model("pets")
    for number, one in enumerate((bundle, calibrated), 1):
        assert register(client, one, place / f"model-{number}") == number
    client.set_registered_model_alias("pets", "champion", "1")
    return client


@pytest.fixture(scope="module")
def server(place: Path, client: MlflowClient, bundle: Path) -> Iterator[HttpServer]:
    """Serves the name, and a bundle beside it."""
    request_seconds = "limits.request_seconds=1"
    with HttpServer(place, f"model=[pets,{bundle}]", "poll_seconds=0.1", request_seconds, *LIMITS) as server:
        yield server


def probabilities(answer: object) -> np.ndarray:
    assert isinstance(answer, dict)
    return np.array([list(one["probabilities"].values()) for one in answer["predictions"]])


def test_all_ways_to_ask_are_answered_as_the_predictor_answers(server: HttpServer, predictor: Predictor) -> None:
    photos = [photo(seed) for seed in range(3)]
    expected = predictor.predict(photos)
    answers = [
        server.ask("/predict", form(*photos), FORM),
        server.ask_json("/predict", {"images": [text(one) for one in photos]}),
        server.ask_json("/predict", {"images": [f"data:image/jpeg;base64,{text(one)}" for one in photos]}),
        server.ask("/models/pets/predict", form(*photos), FORM),
    ]
    for answer in answers:
        assert answer.status == 200, answer
        np.testing.assert_allclose(probabilities(answer.content), expected, rtol=1e-5)
        assert answer.content | {"predictions": None} == {
            "model": "pets",
            "version": 1,
            "uri": "models:/pets/1",
            "digest": predictor.digest,
            "predictions": None,
        }
        for one, row in zip(answer.content["predictions"], expected, strict=True):
            assert (one["class"], one["refused"]) == (CLASS_NAMES[row.argmax()], None)
            assert list(one["probabilities"]) == list(CLASS_NAMES)
    for kind in ("image/jpeg", "application/octet-stream", ""):
        answer = server.ask("/predict", photos[0], kind or "image/png")
        np.testing.assert_allclose(probabilities(answer.content), expected[:1], rtol=1e-5)


def test_mlflows_own_client_reads_it(server: HttpServer, predictor: Predictor) -> None:
    photos = [photo(1), photo(2, "PNG")]
    client: Any = ScoringServerClient(*urlsplit(server.url).netloc.split(":"))  # type: ignore[no-untyped-call]
    client.ping()
    assert client.get_version() == mlflow.__version__
    found = client.invoke(pd.DataFrame({"image": [text(one) for one in photos]})).get_predictions()
    assert list(found.columns) == ["class", "probability", *(f"probability/{name}" for name in CLASS_NAMES)]
    np.testing.assert_allclose(found.iloc[:, 2:].to_numpy(float), predictor.predict(photos), rtol=1e-5)
    images = [text(one) for one in photos]
    records = [{"image": one} for one in images]
    expected = server.ask_json("/invocations", {"instances": records}).content
    alone = server.ask_json("/invocations", {"inputs": {"image": images[0]}}).content
    assert alone["predictions"] == server.ask_json("/invocations", {"inputs": images[:1]}).content["predictions"]
    for content in ({"inputs": {"image": images}}, {"inputs": images}, {"instances": images}, {"inputs": records}):
        assert server.ask_json("/invocations", content).content == expected
    table = "image\n" + "\n".join(images) + "\n"
    assert server.ask("/invocations", table.encode(), "text/csv").content == expected
    assert server.ask("/invocations", table.encode("utf-8-sig"), "text/csv").content == expected


def test_what_it_says_of_itself(server: HttpServer, predictor: Predictor, bundle: Path) -> None:
    model = server.ask("/model").content
    assert model["class_names"] == list(CLASS_NAMES)
    assert (model["digest"], model["version"], model["calibration"], model["card"]) == (predictor.digest, 1, None, None)
    for page in ("/", "/docs", "/site/page.js"):
        policy = server.ask(page).headers["Content-Security-Policy"]
        assert "default-src 'none'; connect-src 'self'; " in policy
        assert "unsafe" not in policy
    assert model["golden_images"]["images"] > 30
    names = [one["model"] for one in server.ask("/models").content["models"]]
    assert names == ["pets", bundle.parent.name]
    assert server.ask(f"/models/{names[1]}/model").content["uri"] == str(bundle)
    assert server.ask("/health").content["status"] == "ok"
    assert server.ask("/ping").status == 200
    described = server.ask("/openapi.json").content
    sent = {path: set(described["paths"][path]["post"]["requestBody"]["content"]) for path in ("/predict", "/explain")}
    assert sent["/predict"] == sent["/explain"] > {"multipart/form-data", "application/json"}
    tables = described["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert [one["required"][0] for one in tables] == ["dataframe_records", "dataframe_split", "instances", "inputs"]
    assert "security" not in described
    for path, methods in described["paths"].items():
        for method in methods:
            status = server.ask(path, b"" if method == "post" else None, "application/json").status
            assert status == (400 if method == "post" else 200), path
    assert server.ask("/predict", photo(1)).status == 200
    assert server.ask("/models/p%7Bx%7D/model").status == 404
    lines = server.ask("/metrics").content.splitlines()
    assert [line for line in lines if not METRIC.fullmatch(line)] == []
    assert 'version="None"' not in "".join(lines)
    assert any(line.startswith('graftline_predictions_total{model="pets",class="') for line in lines)


MANY = {"images": [text(b"a")] * 10_000}


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "sentence"),
    [
        ("/predict", b"", "image/jpeg", 400, "The request is empty"),
        ("/predict", b"hello", "image/jpeg", 400, "image 0: it is text"),
        ("/explain", b"hello", "image/jpeg", 400, "image 0: it is text"),
        ("/explain", form(photo(1), photo(2)), FORM, 400, "This address takes one image."),
        ("/predict", photo(1)[:300], "image/jpeg", 400, "image 0: "),
        ("/predict", bomb(90_000), "image/png", 400, "image 0: more than 50,000,000 pixels"),
        ("/predict", b"\0" * 2_000_001, "image/jpeg", 413, "The request is larger than 2 MB"),
        ("/predict", photo(1), "text/plain", 415, "Content-Type is text/plain, but this address takes an image"),
        ("/predict", b"{", "application/json", 400, "The request is no JSON (Expecting property name"),
        ("/predict", b"[" * 100_000, "application/json", 413, "more than 8 images"),
        ("/predict", b"[" * 100, "application/json", 400, "The request is no JSON"),
        ("/predict", b"\xff\xfe{}", "application/json", 400, "The request is no JSON"),
        ("/predict", b"[]", "application/json", 400, "The request must look like"),
        ("/predict", b'{"image": 7}', "application/json", 400, "image 0: not base64"),
        ("/predict", b'{"images": "a"}', "application/json", 400, "The request must look like"),
        ("/predict", b'{"images": []}', "application/json", 400, "The request holds no images"),
        ("/predict", b'{"images": [null, "%"]}', "application/json", 400, "image 0: not base64: send the image file's"),
        ("/predict", json.dumps(MANY).encode(), "application/json", 413, "more than 8 images"),
        ("/predict", form(*[photo(1)] * 9), FORM, 413, "more than 8 images"),
        ("/predict", form(photo(1))[:-20], FORM, 400, "no whole multipart/form-data"),
        ("/predict", form(), FORM, 400, "The request holds no images"),
        ("/predict", form(photo(1)), "multipart/form-data", 400, "names no boundary"),
        ("/predict", form(photo(1), b""), FORM, 400, "image 1: the file has no content"),
        ("/invocations", b'{"dataframe_records": [{"photo": "a"}]}', "application/json", 400, 'a column "image"'),
        (
            "/invocations",
            b'{"dataframe_split": {"columns": ["image"], "data": [[]]}}',
            "application/json",
            400,
            "image",
        ),
        ("/invocations", b'{"inputs": [{"photo": "a"}]}', "application/json", 400, 'a column "image"'),
        ("/invocations", b'{"inputs": {"image": 7}}', "application/json", 400, 'a column "image"'),
        ("/invocations", b'{"instances": [7]}', "application/json", 400, "image 0: not base64"),
        ("/invocations", b"photo\na\n", "text/csv", 400, 'a CSV with a column "image"'),
        ("/invocations", b"{}", "application/x-parquet", 415, "Content-Type is application/x-parquet"),
        ("/replay", form(photo(1), photo(2)), FORM, 400, "This address takes one image."),
        ("/replay", b"hello", "image/png", 400, "image 0: it is text"),
        ("/nowhere", b"", "image/jpeg", 404, "There is no such address: /docs lists them."),
        ("/predict/", photo(1), "image/jpeg", 404, "There is no such address: /docs lists them."),
        ("/models/pets/predict/", photo(1), "image/jpeg", 404, "There is no such address: /docs lists them."),
        ("/model", b"", "image/jpeg", 405, "/model takes "),
    ],
)
def test_bad_input(server: HttpServer, path: str, body: bytes, kind: str, status: int, sentence: str) -> None:
    answer = server.ask(path, body, kind)
    assert answer.status == status, answer
    assert sentence in answer.content["message"]
    assert set(answer.content) == {"error_code", "message"}


def connect_to(server: HttpServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20)


def head(length: object = 1000, *more: str) -> bytes:
    lines = [
        "POST /predict HTTP/1.1",
        "Host: localhost",
        "Content-Type: image/jpeg",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_slow_and_broken_clients_hold_nothing(server: HttpServer) -> None:
    assert server.ask("/predict", photo(1)).status == 200
    before = server.memory
    with connect_to(server) as silent, connect_to(server) as slow, connect_to(server) as half:
        half.sendall(head()[:-2])
        slow.sendall(head() + b"\xff\xd8")
        for _ in range(20):
            with connect_to(server) as broken:
                broken.sendall(head(100_000) + b"\xff\xd8" * 1000)
        assert server.ask("/predict", photo(1)).status == 200  # meanwhile
        assert slow.recv(10_000).startswith(b"HTTP/1.1 408")
        assert silent.recv(1) == b""
        assert half.recv(1) == b""
    with connect_to(server) as large:  # 100 MB are refused before they are sent
        large.sendall(head(100_000_000))
        assert large.recv(10_000).startswith(b"HTTP/1.1 413")
    with connect_to(server) as endless:
        endless.sendall(head("0").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        for _ in range(40):  # of 65 kB, where 2 MB are allowed
            endless.sendall(b"10000\r\n" + b"\0" * 0x10000 + b"\r\n")
        assert endless.recv(10_000).startswith(b"HTTP/1.1 413")
    assert server.memory < before + 50


def test_overload_is_refused_and_memory_stays(place: Path, bundle: Path) -> None:
    few = ("limits.images=2", "limits.waiting_images=2", "limits.batch=1")
    with HttpServer(place, f"model={bundle}", *few) as server:
        body = form(photo(1), photo(2))
        server.ask("/predict", body, FORM)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: server.ask("/predict", body, FORM), range(200)))
            before = server.memory
            answers += pool.map(lambda _: server.ask("/predict", body, FORM), range(600))
        assert {answer.status for answer in answers} == {200, 503}
        refused = [answer for answer in answers if answer.status == 503]
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert refused[0].content["message"].startswith("The server has as much to do as it takes: ask again in ")
        assert server.memory < before + 30
        assert server.stop() == 0
        assert "serve: done in" in server.output


def wait_for(server: HttpServer, address: str, name: str, value: object) -> None:
    """Wait until a server's answer has a value under a name."""
    deadline = time.monotonic() + 60
    while server.ask(address).content[name] != value:
        assert time.monotonic() < deadline, server.output
        time.sleep(0.05)


def test_a_moved_alias_is_picked_up_under_load(
    server: HttpServer, client: MlflowClient, predictor: Predictor, calibrated: Path
) -> None:
    with Load(server) as load:
        for version in (2, 1, 2, 1):
            client.set_registered_model_alias("pets", "champion", str(version))
            wait_for(server, "/model", "version", version)
            time.sleep(0.2)
    expected = {
        one.digest: one.predict(load.images) for one in (predictor, Predictor.from_directory(calibrated))
    }  # of all four images, by one model
    seen = set()
    for status, content in load.answers:
        assert status == 200, content
        assert isinstance(content, dict)
        seen.add((content["version"], content["digest"]))
        np.testing.assert_allclose(probabilities(content), expected[content["digest"]], rtol=1e-5)
    assert {version for version, _ in seen} == {1, 2}
    assert len(seen) == 2
    assert "models:/pets/2 answers now, in place of models:/pets/1." in server.output


@pytest.mark.parametrize("what", ["file", "answers"])
def test_a_bad_version_does_not_take_over(
    server: HttpServer, client: MlflowClient, calibrated: Path, place: Path, what: str
) -> None:
    version = register(client, calibrated, place / f"model-{what}")
    copy = place / f"model-{what}" / "artifacts" / "bundle"
    if what == "file":
        (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes()[:-1] + b"!")
    else:  # all files are what was saved, and the golden images are answered otherwise
        spoil_golden(copy, "network")
        redescribe(copy)
    reason = "model.onnx" if what == "file" else "This machine changes a probability by"
    client.set_registered_model_alias("pets", "champion", str(version))
    wait_for(server, "/health", "status", "degraded")
    problem = server.ask("/health").content["models"][0]["problem"]
    assert problem.startswith(f"models:/pets/{version} cannot take over ({reason}")
    assert problem.endswith("models:/pets/1 goes on.")
    assert problem in server.output
    assert 'graftline_model_problem{model="pets"} 1' in server.ask("/metrics").content
    assert server.ask("/predict", photo(1)).content["version"] == 1
    client.set_registered_model_alias("pets", "champion", "1")
    wait_for(server, "/health", "status", "ok")


@pytest.mark.parametrize("step", ["decode", "resize", "normalize", "network"])
def test_verify_tells_the_step_at_which_a_server_differs(
    server: HttpServer, bundle: Path, tmp_path: Path, step: str
) -> None:
    served = describe_server(server.url)
    good = check_server(server.url, served, bundle)
    assert good.problem is None
    assert set(good.num_differing.values()) == {0}
    other = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    spoil_golden(other, step)
    problem = check_server(server.url, served, other).problem
    assert problem is not None
    assert f"and differs from the step '{step}' on" in problem


def test_verify_as_a_stage(
    server: HttpServer,
    place: Path,
    calibrated: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    result = compose("verify", [server.url]).run()
    assert result.facts["bundle"] == result.facts["model_uri"] == "models:/pets/1"
    assert re.search(r"^answer +0$", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(UserError, match="serves another bundle"):
        compose("verify", [f"bundle={server.url}", f"against={calibrated}"]).run()
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9/model does not answer \(Connection refused\)"):
        compose("verify", ["http://127.0.0.1:9"]).run()


def test_what_does_not_start(
    server: HttpServer, place: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    other = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    spoil_golden(other, "resize")
    differing = Path(shutil.copytree(other, tmp_path / "differing"))
    redescribe(differing)
    port = urlsplit(server.url).port
    for overrides, sentence in {
        (f"model={other}", "port=0"): "of this bundle is not what was saved",
        (f"model={differing}", "port=0"): "more than 0.001, and differs from the step 'resize' on",
        ("model=dogs", "port=0"): "There is no registered model 'dogs': there is pets.",
        ("model=models:/pets/9", "port=0"): "The registered model 'pets' has no version 9",
        ("model=[pets,models:/pets/1]",): "model names pets twice",
        ("model=pets", f"port={port}"): f"127.0.0.1:{port} cannot be listened on (Address already in use): choose",
        ("model=pets", "port=70000"): "port is 70000: choose one up to 65535",
    }.items():
        with pytest.raises(UserError) as caught:
            compose("serve", ["accelerator=cpu", *overrides]).run()
        assert sentence in str(caught.value)


def test_without_a_champion_the_newest_version_that_is_not_refused_answers_until_there_is_one(
    empty_database: Path, bundle: Path, calibrated: Path, tmp_path: Path
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model("pets")
    for number in (1, 2):
        register(client, bundle, tmp_path / f"model-{number}")
    client.set_model_version_tag("pets", "2", DECISION, "refused (line 1)")
    with HttpServer(tmp_path, "model=pets", "poll_seconds=0.1") as server:
        assert "'pets' has no champion: version 1, the newest that the gate has not refused, answers" in server.output
        assert server.ask("/predict", photo(1)).content["version"] == 1
        register(client, calibrated, tmp_path / "model-3")
        time.sleep(1)
        assert server.ask("/health").content["status"] == "ok"
        assert server.ask("/model").content["version"] == 1, "nobody has judged the other one"
        client.set_registered_model_alias("pets", "champion", "3")
        wait_for(server, "/model", "version", 3)
        client.set_model_version_tag("pets", "3", DECISION, "refused (line 2)")
        client.delete_registered_model_alias("pets", "champion")
        wait_for(server, "/health", "status", "degraded")
        (model,) = server.ask("/health").content["models"]
        assert model["problem"] == "'pets' has no champion any more: models:/pets/3 goes on."
        assert server.ask("/predict", photo(1)).content["version"] == 3
    (result,) = tmp_path.glob("outputs/serve/*/result.json")
    assert json.loads(result.read_text())["model_uri"] == "models:/pets/3"
