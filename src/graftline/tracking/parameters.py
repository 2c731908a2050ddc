"""Flatten a nested configuration to MLflow's parameters."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from graftline.data.file_names import to_text
from graftline.tracking.names import key
from graftline.tracking.uri import without_password

OF_THE_CODE = ("_target_", "_partial_")  # keys that say which class is built: the artifact has them
MAX_LENGTH = 6000  # of a value, in characters (mlflow.utils.validation.MAX_PARAM_VAL_LENGTH)


def flatten(config: Mapping[str, Any], *, whole: str) -> dict[str, str]:
    """Return dotted keys and values as text, without passwords.

    MLflow would cut a long value; a note replaces it. Bytes of a path that are not UTF-8 are escaped. What a node is
    built with is left out, so that those are few that one compares.

    Args:
        config: nested mappings of anything that has a JSON form.
        whole: name of the artifact that has the long values, for the note.

    >>> config = {"optim": {"_target_": "torch.optim.SGD", "lr": 0.1, "betas": [0.9, 0.99]}, "seed": 0, "resume": None}
    >>> flatten(config, whole="config.yaml")
    {'optim.lr': '0.1', 'optim.betas': '[0.9, 0.99]', 'seed': '0', 'resume': 'null'}
    """
    params = {}
    for name, value in _leaves(config, ""):
        text = without_password(value if isinstance(value, str) else json.dumps(value, default=str))
        if len(text) > MAX_LENGTH:
            text = f"({len(text):,} characters: see the artifact {whole})"
        params[key(name)] = to_text(text)
    return params


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name in OF_THE_CODE:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
