"""Export: a model for others to run, as one ONNX file, an MLflow model or the folder of a server's image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graftline.bundle.ensemble import AnyPredictor, is_ensemble, read_replay
from graftline.bundle.golden import read_golden
from graftline.bundle.predictor import Predictor
from graftline.console import print_facts
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.files import atomic_directory, check_folder, check_replaceable
from graftline.pipeline.bundles.source import OpenModel, open_model
from graftline.pipeline.dataset_versions.trained_on import trained_on
from graftline.pipeline.health.packages import LOCK
from graftline.pipeline.stage import StageResult
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # it loads what quantizes
    from graftline.bundle.compact import CompactFormat

ExportFormat = Literal["onnx", "onnx-int8", "openvino", "mlflow", "docker"]
ENDINGS: dict[ExportFormat, str] = {  # of what is written
    "onnx": ".onnx",
    "onnx-int8": "-int8.onnx",
    "openvino": "-openvino",
    "mlflow": "-mlflow",
    "docker": "-docker",
}


@dataclass(frozen=True, kw_only=True)
class ExportResult(StageResult):
    """What the stage ``export`` wrote: a file, or a folder."""

    exported: Path


@dataclass(frozen=True)
class Export:
    """The stage ``export`` (Hydra target of conf/export.yaml).

    Attributes:
        tracking: where models are registered.
        model: name of a registered model, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run's id, its directory
            or a bundle.
        format: ``onnx``, one file that takes decoded pixels; ``onnx-int8``, the same in whole numbers of 8 bits, and
            ``openvino``, two files for it, if these are faster here and no worse, else ``onnx``; ``mlflow``, MLflow's
            layout; ``docker``, a folder with a Dockerfile.
        max_loss: of accuracy on validation images, which those two surely do not exceed.
        directory: with the dataset version that the model was trained on, which those two need.
        out: folder that gets the model, named as it and its format; an earlier export of the same name is replaced.
    """

    tracking: Tracking
    model: str
    format: ExportFormat = "onnx"
    out: str = "exports"
    max_loss: float = 0.02
    directory: str = "data"

    def __post_init__(self) -> None:
        if not 0 < self.max_loss < 1:
            raise UserError(f"Export.max_loss is {self.max_loss}, it must be above 0 and below 1.")

    def run(self, directory: Path) -> ExportResult:  # noqa: ARG002 - a stage's signature; what is written lies in ``out``
        """Write the model, and check that it gives what the bundle gives.

        Raises:
            UserError: there is no such model, it cannot be exported so, or it gives something else.
        """
        folder = Path(self.out).expanduser()
        check_folder(folder, "Export.out")
        model = open_model(self.model, self.tracking, "onnx", Execution())
        names = model.predictor.class_names
        classes = f"{len(names)}: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
        print_facts(
            "export",
            [("model", f"{model.origin.uri}, digest {model.predictor.digest}"), ("classes", classes)],
        )
        out = folder / model.name
        target = out.with_name(f"{out.name}{ENDINGS[self.format]}")
        check_replaceable(target, "Export.out", is_folder=self.format not in ("onnx", "onnx-int8"))
        if self.format in ("onnx-int8", "openvino"):
            exported, rows = self._write_compact(self.format, model, target)
        else:
            write = {"onnx": _write_onnx, "mlflow": _write_mlflow, "docker": _write_docker}[self.format]
            exported, rows = write(model, target)
        written = self.format if exported == target else "onnx"
        if written in ("onnx", "onnx-int8", "openvino") and (left_out := _left_out(model.predictor)):
            rows.append(("left out", left_out))
        return ExportResult(
            facts={
                "model": model.origin.uri,
                "model_uri": model.origin.model_uri,
                "bundle_digest": model.predictor.digest,
                "format": written,
                "exported": str(exported),
            },
            table=[*rows, ("written to", str(exported))],
            exported=exported,
        )

    def _write_compact(
        self,
        kind: "CompactFormat",
        model: OpenModel,
        target: Path,
    ) -> tuple[Path, list[tuple[str, str]]]:
        from graftline.bundle.compact import require_network
        from graftline.pipeline.bundles.export_compact import export_compact

        require_network(model.directory)
        assert isinstance(model.predictor, Predictor)
        reference = model.origin.uri if model.origin.version is not None else self.model
        argument = "Export.directory"
        version = trained_on(model.predictor.card, reference, self.tracking, Path(self.directory), argument)
        plain = target.with_name(f"{model.name}{ENDINGS['onnx']}")
        return export_compact(model.predictor, model.directory, version, kind, target, plain, self.max_loss)


def _left_out(predictor: AnyPredictor) -> str:
    """Return what a bundle tells of an image that a file of its network does not tell."""
    refuses = isinstance(predictor, Predictor) and predictor.refusal is not None
    told = {"whether an image is none of the classes": refuses}
    told["sets of classes"] = predictor.decision.set_threshold is not None
    return " and ".join(what for what, is_told in told.items() if is_told)


def _write_onnx(model: OpenModel, out: Path) -> tuple[Path, list[tuple[str, str]]]:
    from graftline.bundle.export import ANSWER, PIXELS, PROBABILITIES, TOLERANCE, export_onnx

    export = export_onnx(model.directory, out)
    return export.file, [
        ("input", f"{PIXELS}: uint8 RGB [batch, height, width, 3], of any size"),
        ("outputs", f"{PROBABILITIES}: float32 [batch, {len(model.predictor.class_names)}]; {ANSWER}: int64 [batch]"),
        ("checked", f"{export.num_images} images: a probability differs by {export.largest_difference:.1g} at most"),
        ("tolerance", f"{TOLERANCE:g}"),
    ]


def _write_mlflow(model: OpenModel, out: Path) -> tuple[Path, list[tuple[str, str]]]:
    from graftline.serving.package import save_model
    from graftline.tracking import client  # noqa: F401 - keeps MLflow's progress bars to itself

    read = read_replay if is_ensemble(model.directory) else read_golden
    example = read(model.directory)[0][0].read_bytes()
    with atomic_directory(out) as temporary:
        temporary.rmdir()  # MLflow wants to make it
        save_model(model.directory, temporary, example)
    return out, [("load it", f'mlflow.pyfunc.load_model("{out}")')]


def _write_docker(model: OpenModel, out: Path) -> tuple[Path, list[tuple[str, str]]]:
    from graftline.serving.image_folder import write_image_folder

    write_image_folder(model.directory, model.name, model.predictor.decoding, out, LOCK)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return out, [
        ("size", f"{size / 1e6:,.0f} MB, and no torch"),
        ("build it", f"docker build --tag graftline-server {out}"),
        (
            "run it",
            "docker run --env GRAFTLINE_SERVE_PASSWORD --rm --init --publish 127.0.0.1:5001:5001 graftline-server",
        ),
        ("password", "12 characters or more in GRAFTLINE_SERVE_PASSWORD, which requests must send"),
    ]
