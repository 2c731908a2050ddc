"""A registered model runs where graftline is not installed, and answers over HTTP."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from http_server import CLASS_NAMES, photo, text
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from graftline.bundle.predictor import Predictor
from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.pipeline.verify import VerifyResult
from graftline.serving.answers import classify
from graftline.serving.check import ServerCheck
from graftline.serving.modules import imported_modules
from graftline.serving.package import save_model

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="session")
def model(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    save_model(bundle, path, photo(0, "PNG"))
    return path


def test_the_answer_is_the_predictors(predictor: Predictor) -> None:
    photos = [photo(seed) for seed in range(5)]
    answer = classify(predictor, [text(content) for content in photos])
    probabilities = predictor.predict(photos)
    assert list(answer.columns) == ["class", "probability", *(f"probability/{name}" for name in CLASS_NAMES)]
    np.testing.assert_array_equal(answer.iloc[:, 2:].to_numpy(np.float32), probabilities)
    np.testing.assert_array_equal(answer["probability"].to_numpy(np.float32), probabilities.max(axis=1))
    assert answer["class"].tolist() == [CLASS_NAMES[index] for index in probabilities.argmax(axis=1)]


def test_base64_as_tools_write_it(predictor: Predictor) -> None:
    plain = classify(predictor, [text(photo(1))])
    wrapped = base64.encodebytes(photo(1)).decode()
    assert "\n" in wrapped
    for variant in (wrapped, "data:image/jpeg;base64," + text(photo(1))):
        pd.testing.assert_frame_equal(classify(predictor, [variant]), plain)


def test_each_flaw_is_named(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"^image 1: not base64: .*; image 2: not base64"):
        classify(predictor, [text(photo(1)), "%%%", "ß"])
    with pytest.raises(ValueError, match=r"^image 0: it is text; .*; image 2: "):
        classify(predictor, [text(b"hello"), text(photo(1)), text(photo(1)[:300])])
    with pytest.raises(ValueError, match="holds no images"):
        classify(predictor, [])


def test_what_lies_in_the_model(model: Path, bundle: Path, predictor: Predictor) -> None:
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert not [name for name in files if re.search(r"\.(pkl|pickle|pt|pth|pyc)$", name)]
    for file in filter(Path.is_file, bundle.rglob("*")):
        copy = model / "artifacts" / "bundle" / file.relative_to(bundle)
        assert copy.read_bytes() == file.read_bytes()
    code = {name.removeprefix("code/") for name in files if name.startswith("code/")}
    assert {"graftline/__init__.py", "graftline/serving/answers.py", "graftline/bundle/predictor.py"} <= code
    assert len(code) < 35
    assert not [
        name for name in code if re.search(r"training|freezing|features|tracking|backbones|report|ray_cluster", name)
    ]
    for name in code:
        assert (model / "code" / name).read_bytes() == (SOURCE / name).read_bytes()
    description = (model / "MLmodel").read_text()
    assert str(SOURCE.parent) not in description
    assert str(bundle.parent) not in description
    example = json.loads((model / "input_example.json").read_text())
    assert example["columns"] == ["image"]
    ((image,),) = example["data"]
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (140, 100)
    answer = classify(predictor, [image])
    signature = yaml.safe_load(description)["signature"]
    (column,) = json.loads(signature["inputs"])
    assert (column["name"], column["type"]) == ("image", "string")
    columns = [(column["name"], column["type"]) for column in json.loads(signature["outputs"])]
    assert columns == [("class", "string"), *((name, "double") for name in answer.columns[1:])]


_LOAD_ELSEWHERE = """
import importlib.abc, sys
from pathlib import Path

model, hidden = sys.argv[1:3]
sys.path = [path for path in sys.path if not Path(path, "graftline").is_dir()]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]

class NotInstalled(importlib.abc.MetaPathFinder):
    names = set(hidden.split(","))

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed here")
        return None

sys.meta_path.insert(0, NotInstalled())
try:
    import graftline
except ModuleNotFoundError:
    pass
else:
    sys.exit(f"graftline is installed: {graftline.__file__}")

import mlflow.pyfunc, pandas as pd
loaded = mlflow.pyfunc.load_model(model)
answer = loaded.predict(pd.DataFrame({"image": sys.argv[3:]}))
import graftline
modules = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "graftline"]
assert all(file.startswith(model) for file in modules), modules
print("\\n".join(modules))
print(answer.to_json(orient="records"))
"""


def all_libraries() -> set[str]:
    """Return the names by which all that is installed here is imported."""
    return set(packages_distributions())


def needed_libraries(model: Path) -> set[str]:
    """Return the names by which the model's requirements, and theirs, are imported."""
    unread = [re.split(r"[=<>]", line)[0] for line in (model / "requirements.txt").read_text().splitlines()]
    needed = {"setuptools"}  # no distribution asks for it, as each Python had it once
    while unread:
        name = canonicalize_name(unread.pop())
        if name in needed:
            continue
        needed.add(name)
        with suppress(PackageNotFoundError):  # one that is for another system
            unread += [
                requirement.name
                for requirement in map(Requirement, distribution(name).requires or ())
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ]
    modules = packages_distributions().items()
    return {module for module, names in modules if needed & {canonicalize_name(name) for name in names}}


def test_it_loads_where_graftline_is_not_installed(model: Path, predictor: Predictor, tmp_path: Path) -> None:
    """Where no library is but those that the model asks for; all of the code that lies in the model is needed."""
    photos = [photo(1), photo(2, "PNG")]
    hidden = ",".join(sorted(all_libraries() - needed_libraries(model)))
    command = [sys.executable, "-c", _LOAD_ELSEWHERE, str(model), hidden, *map(text, photos)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *modules, answer = done.stdout.splitlines()
    assert sorted(map(Path, modules)) == sorted((model / "code").rglob("*.py"))
    rows = json.loads(answer)
    probabilities = predictor.predict(photos)
    assert [row["class"] for row in rows] == [CLASS_NAMES[index] for index in probabilities.argmax(axis=1)]
    np.testing.assert_allclose([row["probability"] for row in rows], probabilities.max(axis=1), rtol=1e-6)


def test_imports_of_functions_and_of_type_checkers_are_left_out(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json\n"
        "from typing import TYPE_CHECKING\n"
        "try:\n"
        "    import graftline.data.decode\n"
        "except ImportError:\n"
        "    pass\n"
        "from graftline import errors\n"
        "if TYPE_CHECKING:\n"
        "    from graftline.training import fit\n"
        "class Lazy:\n"
        "    def load(self):\n"
        "        import graftline.backbones.zoo\n"
    )
    found = [file.as_posix() for file in imported_modules(script)]
    decoding = [
        f"data/{name}.py"
        for name in (
            *("__init__", "decode", "decoding", "file_names", "image_bytes", "metadata", "readers", "references"),
            "signatures",
        )
    ]
    assert found == ["__init__.py", *decoding, "errors.py"]


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` on the model; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "server.log"
    # MLflow starts uvicorn by its bare name, which an environment that is not activated has not on its path
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, *images: object) -> tuple[int, Any]:
    """Send a request and return status and answer."""
    body = json.dumps({"dataframe_records": [{"image": image} for image in images]}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.long
def test_it_answers_over_http(server: str, predictor: Predictor) -> None:
    photos = [photo(3), photo(4)]
    status, answer = ask(server, *map(text, photos))
    assert status == 200
    probabilities = predictor.predict(photos)
    for row, expected in zip(answer["predictions"], probabilities, strict=True):
        assert row["class"] == CLASS_NAMES[expected.argmax()]
        np.testing.assert_allclose([row[f"probability/{name}"] for name in CLASS_NAMES], expected, rtol=1e-5)
        assert row["probability"] == max(row[f"probability/{name}"] for name in CLASS_NAMES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("%%%", "image 1: not base64: send the image file's bytes, base64-encoded"),
        (text(b"hello"), "image 1: it is text; put the file itself in its place"),
        (text(photo(1)[:300]), "image 1: "),
        ("", "image 1: the file has no content"),
        (7, "image 1: not base64"),
        (None, "image 1: not base64"),
    ],
)
def test_a_bad_request_gets_a_clear_answer(server: str, image: object, sentence: str) -> None:
    status, answer = ask(server, text(photo(1)), image)
    assert 400 <= status < 500
    assert sentence in answer["message"]
    assert "Traceback" not in json.dumps(answer)


@pytest.mark.long
@pytest.mark.parametrize("shape", ["records", "row", "column", "csv"])
def test_what_mlflow_takes_for_a_table(server: str, predictor: Predictor, shape: str) -> None:
    """So does the server of ours: `test_server.py` asks it for the same."""
    image = text(photo(3))
    inputs = {"records": [{"image": image}], "row": {"image": image}, "column": {"image": [image]}}
    body, kind = json.dumps({"inputs": inputs.get(shape)}).encode(), "application/json"
    if shape == "csv":
        body, kind = f"image\n{image}\n".encode("utf-8-sig"), "text/csv"
    request = urllib.request.Request(server, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as response:
        (row,) = json.load(response)["predictions"]
    assert row["class"] == CLASS_NAMES[predictor.predict([photo(3)])[0].argmax()]


@pytest.mark.long
def test_a_request_of_another_shape(server: str) -> None:
    request = urllib.request.Request(
        server, b'{"dataframe_records": [{"photo": "a"}]}', {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400
    assert "image" in json.load(caught.value)["message"]


@pytest.mark.long
def test_verify_compares_the_answers_of_mlflows_server(
    server: str, bundle: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells nothing of its steps, nor which bundle it serves."""
    monkeypatch.chdir(tmp_path)
    address = server.removesuffix("/invocations")
    found = compose("verify", [f"bundle={address}", f"against={bundle}"]).run()
    assert isinstance(found, VerifyResult)
    assert isinstance(found.verification, ServerCheck)
    assert found.verification.num_differing == {"answer": 0}
    assert found.verification.num_images > 30
    with pytest.raises(UserError, match="does not tell which bundle of this machine it serves"):
        compose("verify", [address]).run()
    with pytest.raises(UserError, match=rf"^{address} changes a probability by 0\.0\d, .* from the step 'answer' on"):
        compose("verify", [f"bundle={address}", f"against={calibrated}"]).run()
