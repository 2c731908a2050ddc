"""What was measured is known: the same data, network and settings are not tried again where the head alone was enough."""

import functools
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from graftline.files import write_json
from graftline.freezing.rule import FreezeDecision, FreezeRule
from graftline.training.setup import TrainingSetup


class KnownDepth:
    """The answer of a freeze rule that tries boundaries, kept beside the activations.

    Only that the head alone is enough is kept: it costs a second to train again, and finding it out costs a minute. The
    weights that a deeper answer goes on from are not.

    Args:
        setup: of the training.
        rule: that decided.
    """

    def __init__(self, setup: TrainingSetup, rule: FreezeRule) -> None:
        depends_on: dict[str, Any] = {
            "version": setup.version.digest,
            "weights": asdict(setup.graft.weights),
            "arguments": dict(setup.graft.arguments),
            "architecture": setup.graft.network.pretrained_cfg["architecture"],  # type: ignore[index]  # a timm model has it
            "preprocessing": setup.graft.preprocessing.to_dict(),
            "recipe": asdict(replace(setup.recipe, resume=None)),
            "rule": repr(rule),
            "fit": [_settings(part) for part in (setup.optimizer, setup.schedule, setup.make_trainer)],
            "features": [setup.features.cache, setup.features.views, setup.features.precision],
            "seed": setup.seed,
        }
        key = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=repr).encode()).hexdigest()[:16]
        self._file = Path(setup.features.directory).parent / "depths" / f"{key}.json"

    def read(self) -> FreezeDecision | None:
        """Return the decision; None if it is not known."""
        if not self._file.exists():
            return None
        decision = FreezeDecision.from_json(json.loads(self._file.read_text(encoding="utf-8")))
        return replace(decision, tried=())  # what was trained then is another run's

    def write(self, decision: FreezeDecision) -> None:
        """Keep the decision if the head alone was found to be enough."""
        if decision.measurement is not None and decision.plans[-1].only_head:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, decision.to_json())


def _settings(part: Any) -> Any:
    """Return what a part of the setup was made with, as far as its training depends on it."""
    return part.keywords if isinstance(part, functools.partial) else repr(part)
