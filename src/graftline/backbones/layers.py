"""Group a network's layers: the stem, the stages, the head. Freezing, cutting and counting all go by these groups."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import group_parameters

from graftline.errors import UserError

HEAD, STEM, BODY = "head", "stem", "body"
NAMED_PARTS = 3  # modules that a group's name spells out


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
    which timm has none is one group. A norm that stands alone, as the last one of ConvNeXt, Swin and DenseNet, belongs
    to the group before: to train it by itself is to train next to nothing.
    """
    head = head_parameters(network)
    try:
        groups = group_parameters(network, network.group_matcher(coarse=True))
    except (AttributeError, AssertionError):  # poolformer, pit: no matcher; rdnet: none that is coarse
        groups = {0: [name for name, _ in network.named_parameters()]}
    dims = {name: parameter.ndim for name, parameter in network.named_parameters()}
    body: list[list[str]] = []
    for number in sorted(groups):
        names = [name for name in groups[number] if name not in head]
        if body and all(dims[name] < 2 for name in names):
            body[-1] += names
        else:
            body.append(names)
    return [names for names in body if names]


def group_names(network: Any) -> list[str]:
    """Return what each of ``body_groups`` is called, after the largest modules that it consists of.

    >>> import timm
    >>> group_names(timm.create_model("test_convnext"))
    ['stem', 'stages.0', 'stages.1', 'stages.2', 'stages.3 + head.norm']
    >>> group_names(timm.create_model("test_efficientnet"))[4:]
    ['blocks.3', 'blocks.4 + conv_head + bn2']
    """
    groups = body_groups(network)
    sizes = Counter(prefix for name, _ in network.named_parameters() for prefix in _prefixes(name))
    parts = [_largest_modules(group, sizes) for group in groups]
    names = [" + ".join(part[:NAMED_PARTS]) + (" + …" if len(part) > NAMED_PARTS else "") for part in parts]
    if parts and len(parts[0]) > 1:
        names[0] = STEM if len(groups) > 1 else BODY
    return names


def _largest_modules(names: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """Return the largest modules that a layer group consists of, as ``blocks.6`` and ``conv_head``.

    Args:
        names: of the group's parameters.
        sizes: the number of the network's parameters whose name begins with a prefix.
    """
    own = Counter(prefix for name in names for prefix in _prefixes(name))
    whole = (next(prefix for prefix in _prefixes(name) if own[prefix] == sizes[prefix]) for name in names)
    return list(dict.fromkeys(whole))


def _prefixes(name: str) -> list[str]:
    """Return the names of the modules that hold a parameter, the largest first, and last its own name.

    >>> _prefixes("blocks.0.conv.weight")
    ['blocks', 'blocks.0', 'blocks.0.conv', 'blocks.0.conv.weight']
    """
    words = name.split(".")
    return [".".join(words[: length + 1]) for length in range(len(words))]
