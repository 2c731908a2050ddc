"""What was measured is known: the same data, network and settings are not tried again where the head was enough."""

from dataclasses import asdict, replace
from typing import Any

import torch

from graftline.features.key import view_key
from graftline.freezing.rule import FreezeDecision, FreezeRule
from graftline.training.kept_answer import KeptAnswer
from graftline.training.setup import TrainingSetup, identify

FORMAT = 9  # raise it when the rule that decides, or what is kept of a decision, changes


class KnownDepth:
    """The answer of a freeze rule that tries boundaries, kept beside the activations.

    The weights that a deeper answer goes on from are not kept. So a training takes its own answer only where the head
    alone is enough: it costs a second to train again, and finding it out costs a minute.

    Args:
        setup: of the training.
        rule: that decided.
    """

    def __init__(self, setup: TrainingSetup, rule: FreezeRule) -> None:
        depends_on: dict[str, Any] = {
            "version": setup.version.digest,
            "weights": asdict(setup.graft.weights),
            "arguments": dict(setup.graft.arguments),
            "drop_rates": dict(setup.graft.drop_rates),
            "architecture": setup.graft.network.pretrained_cfg["architecture"],  # type: ignore[index]  # a timm model has it
            "preprocessing": setup.graft.preprocessing.to_dict(),
            "recipe": asdict(replace(setup.recipe, resume=None, depth_seed=None)),
            "rule": repr(rule),
            "fit": [identify(part) for part in (setup.optimizer, setup.schedule, setup.make_trainer)],
            "features": [setup.features.cache, setup.features.views, setup.features.precision],
            "augmentation": view_key(setup.policy, setup.seed, view=0),
            "execution": [setup.execution.device, setup.execution.world_size],
            "seed": setup.seed,
            "format": FORMAT,
            "torch": torch.__version__,
        }
        self._kept = KeptAnswer(setup.features, "depths", depends_on)

    def read(self) -> FreezeDecision | None:
        """Return the decision for the head alone; None if it is not known to be enough."""
        decision = self.read_any()
        if decision is None or not decision.plans[-1].only_head:
            return None
        return replace(decision, tried=())  # what was trained then is another run's

    def read_any(self) -> FreezeDecision | None:
        """Return the decision, whose trials are not there; None if it is not known."""
        try:
            return FreezeDecision.from_json(self._kept.read())
        except (ValueError, TypeError, KeyError):  # it is not there, or not whole
            return None

    def write(self, decision: FreezeDecision) -> None:
        """Keep the decision if something was tried."""
        if decision.measurement is not None:
            self._kept.write(decision.to_json())
