"""Pack a bundle as an MLflow model: files only, nothing pickled, and it runs where graftline is not installed."""

import base64
import io
import json
from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import mlflow.pyfunc
import numpy as np
import onnxruntime
import pandas as pd
import PIL
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.utils import environment
from PIL import Image

from graftline.data.decode import Decoding, decode_rgb
from graftline.data.readers import EXTRAS
from graftline.report.model_card import README, shortened
from graftline.serving.answers import REFUSED, SET, columns
from graftline.serving.modules import copy_imported_modules
from graftline.tracking.names import MAX_DESCRIPTION

SCRIPT = Path(__file__).with_name("model.py")

_EXAMPLE_SIDE = 256  # pixels at most; every model holds the example twice, as text


def save_model(bundle: Path, destination: Path, input_example: bytes) -> None:
    """Write ``bundle`` as an MLflow model.

    MLflow is given signature, example and requirements, so that it has no reason to load the model and try it. Of
    graftline's code the model holds what `model.py` imports, and no more.

    Args:
        bundle: the bundle's directory.
        destination: a directory that does not exist.
        input_example: an image file's bytes.
    """
    description = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    decoding = Decoding.from_dict(description.get("decoding"))
    text, *numbers = columns(description["class_names"])
    further = []
    if "set_threshold" in (description.get("decision") or {}):
        further.append(ColSpec(DataType.string, SET))
    if description.get("refusal") is not None:
        further.append(ColSpec(DataType.boolean, REFUSED))
    # MLflow would look through all packages, for a second, to see whether what is pinned from here is here
    no_look = patch.object(environment, "warn_dependency_requirement_mismatches", lambda _pins: None, create=True)
    with TemporaryDirectory() as folder, no_look:
        mlflow.pyfunc.save_model(
            destination,
            python_model=SCRIPT,
            artifacts={"bundle": str(bundle)},
            code_paths=[str(copy_imported_modules(SCRIPT, Path(folder)))],
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.string, "image")]),
                outputs=Schema(
                    [
                        ColSpec(DataType.string, text),
                        *(ColSpec(DataType.double, number) for number in numbers),
                        *further,
                    ]
                ),
            ),
            input_example=pd.DataFrame({"image": [_example(input_example, decoding)]}),
            pip_requirements=_requirements(decoding),
        )
    # MLflow notes paths of this machine, which it does not need
    model = Model.load(destination)
    flavor = model.flavors[mlflow.pyfunc.FLAVOR_NAME]
    flavor["model_code_path"] = "model.py"
    flavor["artifacts"]["bundle"]["uri"] = flavor["artifacts"]["bundle"]["path"]
    model.save(destination / "MLmodel")


def describe(bundle: Path, run_id: str, metrics: Mapping[str, float]) -> str:
    """Return the model card of a bundle for the registry, as much of it as that takes, or a sentence if it has none."""
    if (card := bundle / README).is_file():
        return shortened(card, MAX_DESCRIPTION)
    content = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    accuracy = metrics.get("test/accuracy")
    score = f", test accuracy {accuracy:.3f}" if accuracy is not None else ""
    if "members" in content:
        names = ", ".join(f"{entry['name']} ({entry['share']:.0%})" for entry in content["members"])
        described = f"Ensemble of {names}, crops {content['crops']},"
    else:
        described = str(content["timm_name"])
    return f"{described} with {len(content['class_names'])} classes, trained by run {run_id}{score}."


def _requirements(decoding: Decoding) -> list[str]:
    """Return what a server installs: what the predictor imports, and what reads such files as the data set had."""
    modules = {"numpy": np, "onnxruntime": onnxruntime, "pandas": pd, "pillow": PIL}
    packages = sorted({package for extra in decoding.extras for package in EXTRAS[extra].values()})
    return [f"{name}=={module.__version__}" for name, module in modules.items()] + [
        f"{package}=={version_of(package)}" for package in packages
    ]


def _example(image: bytes, decoding: Decoding) -> str:
    """Return a small JPEG of ``image``, base64-encoded."""
    small = Image.fromarray(decode_rgb(image, decoding.of_our_own()))
    small.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode("ascii")
