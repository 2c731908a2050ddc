"""The symmetries of a square, as a transform for images that need not be one."""

from typing import Any

import albumentations as A

SQUARE = ("e", "r90", "r180", "r270", "v", "hvt", "h", "t")  # albumentations' names
OBLONG = ("e", "r180", "v", "h")  # those that keep width and height


class D4(A.D4):  # type: ignore[misc]  # albumentations ships no types
    """Mirror and turn by quarter turns, all ways equally often; where that would change the shape, by half turns only.

    albumentations' own gives an oblong image turned by a quarter another shape than the network takes.
    """

    def get_params(self) -> dict[str, str]:
        """Return nothing: what is drawn depends on the image."""
        return {}

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002  # albumentations calls it so
        """Draw for an image whose shape (H, W, C) is ``params["shape"]``."""
        height, width = params["shape"][:2]
        return {"group_element": str(self.random_generator.choice(SQUARE if height == width else OBLONG))}
