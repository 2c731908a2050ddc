"""Optimizers by name, timm's and torch's, and what settings they take where AdamW's are known.

The freeze rules recommend AdamW's learning rate. What another optimizer makes of the same number differs by orders of
magnitude: a step of AdamW is as long as the rate whatever the gradient, one of SGD is the gradient's length times the
rate. `SETTINGS` holds the factor for each family, measured by ``benchmarks/optimizers.py`` and, where papers give one,
compared with theirs.
"""

import importlib.util
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm.optim
import torch
from torch.optim import Optimizer

from graftline.execution import Execution

ADAMW_DECAY = 0.05  # of conf/optim/adamw.yaml
L2_DECAY = 1e-4  # of conf/optim/sgd.yaml, for all that add the decay to the gradient (He et al. 2016, section 3.4)
MOMENTUM = 0.9  # what timm's create_optimizer_v2 gives an optimizer whose own default is none
REFUSED = {  # names, or the first letters of them, and why a fit cannot have them
    "adahessian": "it needs second derivatives, which no fit computes",
    "kron": "it compiles its step for each shape of weights, which takes minutes before the first one",
    "lbfgs": "it wants to go back along its way, and one rate for all weights",
    "rprop": "it is for gradients of all images at once, not for those of batches",
    "sparseadam": "it is for sparse gradients, which no network here has",
}


class Settings(NamedTuple):
    """How an optimizer is set to go as fast as AdamW.

    Attributes:
        rate: factor on AdamW's learning rate; of one with momentum, at a momentum of 0.9.
        decoupled: whether it takes weight decay off the weights, as AdamW does, and not as part of the gradient.
        follows_momentum: whether a step grows with momentum, so that without it the rate is ten times as high.
    """

    rate: float
    decoupled: bool = False
    follows_momentum: bool = False


SETTINGS: dict[type[Optimizer], Settings] = {
    # a step of about the rate for each weight, as AdamW's
    torch.optim.AdamW: Settings(1, decoupled=True),
    torch.optim.Adam: Settings(1),
    torch.optim.Adamax: Settings(2),  # as Kingma and Ba 2015 (algorithm 2) have it: 0.002 where Adam has 0.001
    torch.optim.NAdam: Settings(1),
    torch.optim.RAdam: Settings(3),  # its first steps are short: those are many of a short fit
    timm.optim.AdamWLegacy: Settings(1, decoupled=True),
    timm.optim.AdamP: Settings(1, decoupled=True),
    timm.optim.Adopt: Settings(1),
    timm.optim.AdaBelief: Settings(1, decoupled=True),
    timm.optim.NAdamLegacy: Settings(1),
    timm.optim.NAdamW: Settings(1, decoupled=True),
    timm.optim.RAdamLegacy: Settings(3),
    timm.optim.LaProp: Settings(1, decoupled=True),
    timm.optim.Adafactor: Settings(1, decoupled=True),  # timm's takes a rate as it is, without the weights' size
    timm.optim.AdafactorBigVision: Settings(1, decoupled=True),
    timm.optim.Adan: Settings(1, decoupled=True),  # Xie et al. 2022 take 5 to 10, for batches of thousands
    timm.optim.MADGRAD: Settings(1),
    timm.optim.Mars: Settings(1, decoupled=True),
    torch.optim.RMSprop: Settings(0.1, follows_momentum=True),
    timm.optim.RMSpropTF: Settings(0.3, follows_momentum=True),
    # its orthogonal step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, section 2.2)
    timm.optim.Muon: Settings(1, decoupled=True),
    # its step is the rate itself for each weight: 3 to 10 times smaller (Chen et al. 2023, arXiv 2302.06675, section 5)
    timm.optim.Lion: Settings(0.2, decoupled=True),
    # a step in proportion to the gradient: 0.05 for a new head, 0.01 for pretrained layers, near what is usual
    torch.optim.SGD: Settings(10, follows_momentum=True),
    torch.optim.ASGD: Settings(100),
    timm.optim.SGDW: Settings(10, decoupled=True, follows_momentum=True),
    timm.optim.SGDP: Settings(10, follows_momentum=True),  # its decay is divided by 1 - momentum: as SGD's
    # a step in proportion to a layer's weights, or to what was seen so far
    timm.optim.Lamb: Settings(3),
    timm.optim.Lars: Settings(3000, follows_momentum=True),  # its own factor is 0.001
    timm.optim.NvNovoGrad: Settings(2),
    torch.optim.Adagrad: Settings(5),
    torch.optim.Adadelta: Settings(500),
}


class NamedOptimizer(NamedTuple):
    """What a name stands for.

    Attributes:
        target: the dotted path of the class.
        arguments: its settings beside the learning rate.
    """

    target: str
    arguments: dict[str, Any]


def names() -> list[str]:
    """Return all names, sorted: timm's, and torch's where timm has none of the name.

    >>> {"lion", "muon", "adamw", "asgd"} <= set(names())
    True
    """
    return sorted({*timm.optim.list_optimizers(), *_torchs()})


def refusal(name: str) -> str | None:
    """Return why a fit cannot have the optimizer of a name, in a part of a sentence; None if it can.

    >>> refusal("adahessian"), refusal("lion")
    ('it needs second derivatives, which no fit computes', None)
    """
    for start, reason in REFUSED.items():
        if name.startswith(start):
            return reason
    made = None if name in _torchs() else timm.optim.get_optimizer_info(name).opt_class
    if isinstance(made, str):  # of a package that timm does not depend on
        package = made.partition(".")[0]
        if importlib.util.find_spec(package) is None or not Execution.local().is_cuda:
            return f"it needs an NVIDIA GPU and the package {package}"
    return None


def find(name: str) -> NamedOptimizer:
    """Return what one of `names` stands for, with settings that go with AdamW's.

    >>> find("lion")
    NamedOptimizer(target='timm.optim.Lion', arguments={'weight_decay': 0.25})
    >>> find("momentum").arguments
    {'nesterov': False, 'momentum': 0.9, 'weight_decay': 0.0001}
    """
    made: Any = _torchs().get(name) or timm.optim.get_optimizer_class(name)
    arguments = dict(made.keywords) if isinstance(made, partial) else {}
    made = made.func if isinstance(made, partial) else made
    parameter = inspect.signature(made).parameters.get("momentum")
    if parameter is not None and parameter.default == 0:
        arguments["momentum"] = MOMENTUM
    settings = settings_of(partial(made, **arguments)) or Settings(1)
    is_told = any(arguments.get(key) for key in ("decoupled", "decoupled_decay", "decoupled_weight_decay"))
    decay = ADAMW_DECAY / settings.rate if settings.decoupled or is_told else L2_DECAY
    package = ".".join(made.__module__.split(".")[:2])  # torch.optim or timm.optim, which have them all
    return NamedOptimizer(f"{package}.{made.__name__}", {**arguments, "weight_decay": float(f"{decay:.2g}")})


def settings_of(optimizer: Callable[..., Optimizer]) -> Settings | None:
    """Return how an optimizer is set to go as fast as AdamW; None if nobody has matched it.

    Args:
        optimizer: a class, or a ``functools.partial`` of one with settings.

    >>> settings_of(partial(torch.optim.SGD, momentum=0.9)).rate, round(settings_of(torch.optim.SGD).rate)
    (10.0, 100)
    >>> settings_of(torch.optim.Rprop)
    """
    made = optimizer_class(optimizer)
    found = next((SETTINGS[one] for one in getattr(made, "__mro__", ()) if one in SETTINGS), None)
    if found is None or not found.follows_momentum:
        return found
    momentum = inspect.signature(optimizer).parameters.get("momentum")
    if momentum is None:  # a class of one's own that takes none
        return found
    return found._replace(rate=found.rate * (1 - momentum.default) / (1 - MOMENTUM))


def optimizer_class(optimizer: Callable[..., Optimizer]) -> Any:
    """Return the class behind its settings."""
    return optimizer_class(optimizer.func) if isinstance(optimizer, partial) else optimizer


def wants_head_apart(optimizer: Callable[..., Optimizer]) -> bool:
    """Tell whether an optimizer is to take ordinary steps on the head: Muon, as its author has it (Jordan et al. 2024).

    >>> wants_head_apart(timm.optim.Muon), wants_head_apart(torch.optim.AdamW)
    (True, False)
    """
    made = optimizer_class(optimizer)
    return inspect.isclass(made) and issubclass(made, timm.optim.Muon)


def takes_recommendation(optimizer: Callable[..., Optimizer]) -> bool:
    """Tell whether an optimizer has ``lr=None``: the rate that goes with the recommended one."""
    return isinstance(optimizer, partial) and optimizer.keywords.get("lr", 0) is None


def with_learning_rate(optimizer: Callable[..., Optimizer], learning_rate: float) -> Callable[..., Optimizer]:
    """Return the optimizer with the learning rate that goes with one of AdamW's, where it has none of its own.

    >>> adamw, sgd = partial(torch.optim.AdamW, lr=None), partial(torch.optim.SGD, lr=None, momentum=0.9)
    >>> with_learning_rate(adamw, 0.5).keywords, with_learning_rate(partial(adamw, lr=0.1), 0.5).keywords
    ({'lr': 0.5}, {'lr': 0.1})
    >>> with_learning_rate(sgd, 0.001).keywords
    {'lr': 0.01, 'momentum': 0.9}
    """
    if not takes_recommendation(optimizer):
        return optimizer
    settings = settings_of(optimizer) or Settings(1)
    return partial(optimizer, lr=learning_rate * settings.rate)


def _torchs() -> dict[str, type[Optimizer]]:
    """Return torch's own optimizers that timm has no name for."""
    classes = [made for made in vars(torch.optim).values() if inspect.isclass(made) and issubclass(made, Optimizer)]
    known = set(timm.optim.list_optimizers())
    return {made.__name__.lower(): made for made in classes if made.__name__.lower() not in {*known, "optimizer"}}
