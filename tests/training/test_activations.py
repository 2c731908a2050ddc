"""Who computes the activations on a Ray cluster whose node has a GPU."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from ray_nodes import start_nodes

from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features.cut import cut
from graftline.freezing.plan import plan_from_depth
from graftline.ray_cluster import RayCluster
from graftline.training.activations import engine_maker, open_activations
from graftline.training.setup import TrainingSetup


@pytest.mark.extras
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is missing: make test-extras installs it")
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_gpu_that_torch_does_not_see_is_told(make_setup: Callable[..., TrainingSetup]) -> None:
    with start_nodes() as nodes:
        nodes.add(1, num_gpus=1)
        setup = make_setup(cluster=RayCluster(nodes.address))
        plan = plan_from_depth(setup.graft.network, 6, "test")
        plan.apply(setup.graft.network)
        parts = cut(setup.graft.network, plan.trainable, (32, 32), 3)
        with pytest.raises(
            UserError, match=r"Ray says that node \S+ has a GPU, but torch sees none there: .*=cpu, with"
        ):
            open_activations(setup, plan, parts)
        without = replace(setup, execution=Execution.local("cpu"))
        engine = engine_maker(without, plan, parts)(torch.zeros(1, 3, 32, 32))
        assert engine.runs_on == "ONNX Runtime, spread over 1 workers of Ray"
