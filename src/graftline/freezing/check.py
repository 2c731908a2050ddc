"""The freeze check: proof, on every run, that what is frozen stays as it is, and that all the rest is trained.

It is made when the plan is applied, before the first step. ``check_gradients`` is for the first steps, ``check`` for
the end, and also for a resume, which reads the check of the first start with ``from_json``.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from graftline.backbones.layers import head_parameters
from graftline.errors import UserError
from graftline.files import digest
from graftline.freezing.batchnorm import statistics
from graftline.freezing.plan import FreezePlan, is_fully_frozen

# In how many steps each trained tensor must have had a gradient: with float16 the first few may overflow, until the
# loss is scaled down far enough, and stochastic depth may leave a layer out.
FIRST_STEPS = 10


class FreezeViolationError(UserError):
    """The freeze plan was not kept; the message names the tensor."""


@dataclass
class FreezeCheck:
    """What must hold of a network whose freeze plan is kept.

    Attributes:
        trainable: names of the parameters that are trained.
        head: those of them that are the head's.
        hashes: of each frozen parameter, and of each buffer of a frozen module, by name; of BatchNorm's statistics in
            all modules where these are frozen.
        trained_parameters: how many numbers are trained.
        frozen_parameters: how many are frozen, without buffers.
    """

    trainable: frozenset[str]
    head: frozenset[str]
    hashes: Mapping[str, str]
    trained_parameters: int
    frozen_parameters: int
    _steps: int = field(default=0, init=False, compare=False)
    _waiting: dict[str, str] = field(default_factory=dict, init=False, compare=False)  # name → what its gradient is

    @classmethod
    def of(cls, network: nn.Module, plan: FreezePlan, *, frozen_statistics: bool = False) -> "FreezeCheck":
        """Return the check of a network to which its plan has been applied.

        Args:
            network: the whole network.
            plan: which parameters are trained.
            frozen_statistics: BatchNorm's statistics are frozen in the trained layers, too.

        Raises:
            FreezeViolationError: the plan was not applied.
        """
        sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
        trained = sum(size for name, size in sizes.items() if name in plan.trainable)
        frozen = {**dict(_frozen_tensors(network)), **(statistics(network) if frozen_statistics else {})}
        hashes = {name: hash_of(tensor) for name, tensor in frozen.items()}
        head = head_parameters(network) & plan.trainable
        freeze_check = cls(plan.trainable, head, hashes, trained, sum(sizes.values()) - trained)
        freeze_check._check_names(network)
        return freeze_check

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "FreezeCheck":
        """Return the check that ``to_json`` wrote."""
        return cls(
            frozenset(content["trainable"]),
            frozenset(content["head"]),
            dict(content["hashes"]),
            content["trained_parameters"],
            content["frozen_parameters"],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the check as what JSON knows, for a later resume."""
        return {
            "trainable": sorted(self.trainable),
            "head": sorted(self.head),
            "hashes": dict(self.hashes),
            "trained_parameters": self.trained_parameters,
            "frozen_parameters": self.frozen_parameters,
        }

    def record(self) -> dict[str, Any]:
        """Return what a run records: counts of parameters and of tensors, and one digest of all that is frozen.

        Gradients were seen of no tensor where there was no step, as in a resume of what had been finished.
        """
        return {
            "trained_parameters": self.trained_parameters,
            "frozen_parameters": self.frozen_parameters,
            "trained_tensors": len(self.trainable),
            "tensors_with_gradient": len(self.trainable) - len(self._waiting) if self._steps > 0 else 0,
            "frozen_tensors": len(self.hashes),
            "frozen_digest": digest(dict(self.hashes)),
        }

    def check(self, network: nn.Module) -> None:
        """Make sure that the network still is as the plan says: after training, or when a training is resumed.

        Args:
            network: the whole network, on any device.

        Raises:
            FreezeViolationError: a frozen tensor has changed, another set of parameters is trained, or a trained one
                had no gradient in the steps that were seen.
        """
        self._check_names(network)
        now: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for name, expected in self.hashes.items():
            if name not in now:
                raise FreezeViolationError(f"The freeze check failed: {name} was frozen, and now it is not there.")
            if hash_of(now[name]) != expected:
                raise FreezeViolationError(
                    f"The freeze check failed: {name} is frozen, but not what it was when the training began. "
                    "What was trained so far cannot be trusted: train anew."
                )
        self._check_waiting()

    def check_gradients(self, network: nn.Module) -> None:
        """Look at the gradients of one of the first steps; to be called before each optimizer step, from the first on.

        Each trained tensor must have had a finite gradient within ``FIRST_STEPS`` calls, one of the head one that is
        not zero throughout. As soon as all had, a call costs nothing.

        Args:
            network: the whole network or its tail, after the backward pass.

        Raises:
            FreezeViolationError: a trained tensor had none.
        """
        names = self.trainable if self._steps == 0 else self._waiting
        if not names:
            return
        parameters = dict(network.named_parameters())
        faults = {name: self._fault(name, parameters.get(name)) for name in sorted(names)}
        self._waiting = {name: fault for name, fault in faults.items() if fault is not None}
        self._steps += 1
        if self._steps >= FIRST_STEPS:
            self._check_waiting()

    def _fault(self, name: str, parameter: nn.Parameter | None) -> str | None:
        """Return what is wrong with a gradient; None if nothing is."""
        if parameter is None:
            return "is not in the network that is trained"
        if parameter.grad is None:
            return "gets no gradient: it does not lie on the way from the images to the loss"
        gradient = _whole(parameter.grad)
        if not bool(torch.isfinite(gradient).all()):
            return "gets no finite gradient"
        if name in self.head and not bool(gradient.any()):
            return "has a gradient of zero: the loss does not depend on the head"
        return None

    def _check_waiting(self) -> None:
        for name, fault in self._waiting.items():
            raise FreezeViolationError(f"The freeze check failed: {name} is to be trained, but {fault}.")

    def _check_names(self, network: nn.Module) -> None:
        actual = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        for name in sorted(actual - self.trainable):
            raise FreezeViolationError(f"The freeze check failed: {name} is trained, but the plan freezes it.")
        for name in sorted(self.trainable - actual):
            raise FreezeViolationError(f"The freeze check failed: {name} is frozen, but the plan trains it.")


def hash_of(tensor: Tensor) -> str:
    """Return the SHA-256 of type, shape and numbers of a tensor of any shape; device and memory layout do not matter.

    >>> weight = torch.ones(1, 2, 3, 4)
    >>> hash_of(weight) == hash_of(weight.contiguous(memory_format=torch.channels_last))
    True
    >>> hash_of(weight) == hash_of(weight.flatten())
    False
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    content.update(flat.numpy().data)
    return content.hexdigest()


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor, put together where it is divided among processes: all of them look at it then."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def _frozen_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the frozen parameters and the buffers of frozen modules, each with its name."""
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter
    held = tuple(f"{name}." if name else "" for name, module in network.named_modules() if is_fully_frozen(module))
    for name, buffer in network.named_buffers():
        if name.startswith(held):
            yield name, buffer
