"""The stages from Python, as in a notebook: ``graftline.train``, ``graftline.compare`` and ``graftline.load``."""

import json
import warnings
from collections.abc import Collection, Mapping
from numbers import Real
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graftline.pipeline.cli.by_class import is_by_class
from graftline.pipeline.cli.hydra_conf import config_loader, expand_home, session
from graftline.pipeline.cli.parse import in_quotes
from graftline.pipeline.cli.validate import data_option

if TYPE_CHECKING:  # these take seconds to import
    from graftline.bundle.ensemble import AnyPredictor
    from graftline.pipeline.compare import CompareResult
    from graftline.pipeline.training.result import TrainResult


def train(
    data: str | PathLike[str] | None = None,
    *,
    backbone: str | None = None,
    freeze: str | None = None,
    **overrides: Any,
) -> "TrainResult":
    """Train, test, track and register a model, as ``make train`` does, in this process.

    Args:
        data: a folder of images with a sub-folder per class, a table (CSV, TSV or Parquet), a zip or tar archive, or
            the name of an option of ``data``; None: the one of conf/train.yaml.
        backbone: any name of timm's, or an option of ``backbone``.
        freeze: the rule that decides what is frozen, an option of ``freeze``.
        overrides: every other key of the configuration, with a Python value: ``max_epochs=5``, ``patience=None``. A
            bare key is enough where only one ends so; a dotted one is given as ``**{"optim.lr": 0.01}``. A group, such
            as ``trainer="cpu"``, is left as configured by None.

    Returns:
        The model with its scores, its figures and a predictor; a notebook shows it as a table.

    Raises:
        UserError: mistakes in what was given, all of them at once; or what cannot be trained.

    Examples:
        >>> import graftline
        >>> model = graftline.train("digits", backbone="lenet5", debug="fast")  # doctest: +ELLIPSIS
        Reading digits from digits
        ...
        >>> model.scores["accuracy"].low <= model.scores["accuracy"].value
        True
        >>> sorted(model.figures)[:2]
        ['confidences', 'confident_mistakes']
        >>> predictor = graftline.load(model.run_id)
        >>> predictor.class_names
        ('one', 'three', 'zero')
        >>> predictor.predict(["digits/zero/0.png", "digits/one/1.png"]).shape
        (2, 3)
    """
    from graftline.pipeline.cli import compose

    # of a notebook without tqdm's bars: ours are lines
    warnings.filterwarnings("ignore", message="IProgress not found")

    with session("train"):
        groups, data_options = config_loader().list_groups(""), config_loader().get_group_options("data")
    given = {**_choose(data, data_options), "backbone": backbone, "freeze": freeze, **overrides}
    texts = [override(key, value) for key, value in given.items() if value is not None or key not in groups]
    return cast("TrainResult", compose("train", texts).run())


def compare(*runs: str | PathLike[str], **overrides: Any) -> "CompareResult":
    """Compare models by what they gave for the same test images, as ``make compare`` does.

    Args:
        runs: ids, output directories, ``models:/NAME@ALIAS``, ``latest`` or ``best:N``, the first being what the others
            are compared with; none: the newest model and the champion.
        overrides: every other key of the configuration: ``metric="auroc"``, ``resamples=2000``.

    Returns:
        The comparison; its ``comparison.rows`` have differences with intervals, p-values and verdicts.

    Raises:
        UserError: mistakes in what was given; or there is nothing to compare.
    """
    from graftline.pipeline.cli import compose

    given = {"runs": [fspath(one) for one in runs] or None, **overrides}
    return cast("CompareResult", compose("compare", [override(key, value) for key, value in given.items()]).run())


def load(reference: str | PathLike[str], *, tracking_uri: str | None = None) -> "AnyPredictor":
    """Load a trained model.

    Args:
        reference: a bundle's directory, a run's output directory or id, ``models:/NAME@ALIAS`` or
            ``models:/NAME/VERSION``.
        tracking_uri: where MLflow keeps runs and models; None: ``mlflow.db`` in the working directory.

    Returns:
        What classifies images: ``load(...).predict(["a.jpg", "b.png"])``.

    Raises:
        UserError: there is no such model, or it is not what was saved.
    """
    from graftline.execution import Execution
    from graftline.pipeline.bundles.source import open_bundle
    from graftline.tracking.tracking import Tracking

    tracking = Tracking() if tracking_uri is None else Tracking(uri=expand_home(tracking_uri))
    predictor, _ = open_bundle(fspath(reference), tracking, "onnx", Execution())
    return predictor


def override(key: str, value: Any) -> str:
    r"""Return ``key=value`` as the command line takes it, so that it means this value and nothing else.

    >>> override("name", "a, b's"), override("train.patience", None), override("freeze.frozen", ["stem.*", "2"])
    ("name='a, b\\'s'", 'train.patience=null', "freeze.frozen=['stem.*','2']")
    """
    if isinstance(value, Mapping) and is_by_class(key):
        return f"{key}={in_quotes(json.dumps(value, ensure_ascii=False, default=_plain))}"
    return f"{key}={_text(value)}"


def _plain(value: Any) -> dict[Any, Any] | float:
    """Return what JSON takes of another mapping, or of a number of numpy's."""
    return dict(value) if isinstance(value, Mapping) else float(value)


def _text(value: Any) -> str:
    """Return a value in Hydra's grammar; text is always quoted, or a comma would ask for several runs."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Real():  # numpy's numbers too
            return str(value)
        case Mapping():
            return "{" + ",".join(f"{name}:{_text(one)}" for name, one in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_text, value)) + "]"
        case _:
            return in_quotes(str(value))


def _choose(data: str | PathLike[str] | None, options: Collection[str]) -> dict[str, str | None]:
    """Return the choice of ``data`` that reads a folder, a table or an archive, with its path."""
    if data is None or (isinstance(data, str) and (data in options or not Path(data).expanduser().exists())):
        return {"data": data}  # an unknown one is answered with the nearest right name
    path = Path(data).expanduser()
    return {"data": data_option(path), "data.path": str(path)}
