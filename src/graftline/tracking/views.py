"""Ready-made views of an experiment in MLflow's user interface, with the columns and the order to compare runs by.

MLflow keeps a view that somebody shares as a tag of the experiment, and a link names it by its key. These are the state
of the interface of MLflow 3.17 (``experimentPageUIState`` and ``experimentPageSearchFacets`` in its source); a later
one leaves out what it does not know.
"""

import json
from collections.abc import Mapping
from typing import Any

from graftline.tracking.names import VALIDATION_LOSS

TABLE, PARALLEL = "graftline-table", "graftline-parallel"  # keys of the views
ACCURACY = "test/accuracy"
METRICS = (ACCURACY, "test/auroc", "test/log_loss", VALIDATION_LOSS, "cost/gmacs")
PARAMETERS = ("network", "trained", "image_size", "epochs", "seed")  # see pipeline/training/run_log.py

_VIEW = "mlflow.sharedViewState."
_KIND = "mlflow.experimentKind"  # else MLflow's pages are those for language models until a first run is there
_NAME_WIDTH, _WIDTH = 290, 112  # px, of the column with the run's name and of the others


def view_tags() -> dict[str, str]:
    """Return the tags that an experiment needs for the links of `view_links`, and to be shown as one of models."""
    views = {TABLE: _table(), PARALLEL: {**_table(), **_parallel_coordinates()}}
    return {_KIND: "custom_model_development", **{_VIEW + key: json.dumps(view) for key, view in views.items()}}


def missing_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return those of `view_tags` that an experiment with ``tags`` does not have yet."""
    return {key: value for key, value in view_tags().items() if tags.get(key) != value}


def view_links(address: str, experiment_id: str) -> dict[str, str]:
    """Return the links to the views of an experiment.

    Args:
        address: of the user interface.
        experiment_id: MLflow's id.

    >>> view_links("http://127.0.0.1:5000", "1")["table"]
    'http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=graftline-table'
    """
    runs = f"{address}/#/experiments/{experiment_id}/runs?viewStateShareKey="
    return {"table": runs + TABLE, "parallel coordinates": f"{runs}{PARALLEL}&compareRunsMode=CHART"}


def _table() -> dict[str, Any]:
    """Return the table of runs, the highest test accuracy first."""
    columns = [f"metrics.`{name}`" for name in METRICS] + [f"params.`{name}`" for name in PARAMETERS]
    name = "attributes.`Run Name`"
    return {
        "orderByKey": columns[0],
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [name, *columns],
        "columnWidths": {name: _NAME_WIDTH, **dict.fromkeys(columns, _WIDTH)},
    }


def _parallel_coordinates() -> dict[str, Any]:
    """Return the charts: a line for each run through what was chosen and what came of it."""
    section = "graftline"
    return {
        "searchFilter": f"metrics.`{ACCURACY}` >= 0",
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # else MLflow sorts the sections, and puts this one last
        "compareRunCharts": [
            {
                "uuid": PARALLEL,
                "type": "PARALLEL",
                "runsCountToCompare": 10,
                "metricSectionId": section,
                "deleted": False,
                "isGenerated": False,
                "displayName": "What was chosen, and what came of it",
                "selectedParams": list(PARAMETERS),
                "selectedMetrics": [VALIDATION_LOSS, ACCURACY],
                "showAllRuns": False,
            }
        ],
        "compareRunSections": [
            {
                "uuid": section,
                "name": "Runs",
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
                "columns": 1,
                "cardHeight": 460,
            }
        ],
    }
