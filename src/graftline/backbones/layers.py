"""A network's layers as groups: the stem, the stages, the head. What is frozen, cut, costed goes by them."""

from typing import Any

from timm.models import group_parameters

from graftline.errors import UserError


def head_parameters(network: Any) -> frozenset[str]:
    """Return the names of the parameters of a timm network's classifier (or classifiers, where it has two).

    Raises:
        UserError: the network has none, as timm's image encoders.
    """
    if not hasattr(network, "get_classifier"):
        raise UserError(f"{type(network).__name__} has no classifier that could be replaced: take another backbone.")
    classifier = network.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    owned = {id(parameter) for head in heads for parameter in head.parameters()}
    return frozenset(name for name, parameter in network.named_parameters() if id(parameter) in owned)


def body_groups(network: Any) -> list[list[str]]:
    """Return the names of the parameters below the head, one list per layer group, from the input upwards.

    The groups are timm's own coarse ones (``group_matcher(coarse=True)``): the stem, then the stages. A network for
    which timm has none is one group.
    """
    head = head_parameters(network)
    try:
        groups = group_parameters(network, network.group_matcher(coarse=True))
    except (AttributeError, AssertionError):  # poolformer, pit: no matcher; rdnet: none that is coarse
        groups = {0: [name for name, _ in network.named_parameters()]}
    body = [[name for name in groups[number] if name not in head] for number in sorted(groups)]
    return [names for names in body if names]
