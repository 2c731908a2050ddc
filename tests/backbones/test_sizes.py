"""An image size that a network cannot take is refused with those that it can."""

from collections.abc import Callable

import pytest

from graftline.backbones.backbone import Backbone
from graftline.backbones.sizes import nearest_sizes
from graftline.errors import UserError


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("test_vit", 50, "48 or 64"),  # patches of 16 px
        ("vit_small_patch14_dinov2", 230, "224 or 238"),
        ("swin_tiny_patch4_window7_224", 225, "224 or 228"),
        ("inception_v3", 50, "75"),  # published: the least that it takes
        ("vgg16", 20, "32"),
        ("lenet5", 12, "16"),
    ],
)
def test_the_nearest_sizes_are_named(name: str, size: int, sizes: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' cannot take images of {size} px \(.*\): {sizes} px are accepted"):
        Backbone(name, weights="none", image_size=size).check()
    for other in sizes.split(" or "):
        Backbone(name, weights="none", image_size=int(other)).check()


@pytest.mark.parametrize(
    ("accepts", "expected"),
    [
        (lambda size: size % 32 == 0, [192, 224]),
        (lambda size: size >= 201, [201]),
        (lambda size: size <= 199, [199]),
        (lambda size: size % 2 == 1, []),  # no multiple of 32 is
        (lambda size: size in (64, 320), [64, 320]),
        (lambda _: False, []),
    ],
)
def test_the_search_ends(accepts: Callable[[int], bool], expected: list[int]) -> None:
    tried: list[int] = []

    def note(size: int) -> bool:
        tried.append(size)
        return accepts(size)

    assert nearest_sizes(200, note) == expected
    assert 200 not in tried
    assert min(tried) > 0
    assert len(tried) <= 26
