"""Why a model answered as it did: where in an image it found its class, and which training images are like it.

Letters: K classes, D channels of the network's last map.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from graftline.bundle.heat import GRAD_CAM, OCCLUSION, Method, class_activation_map, occlusion, read_tensor
from graftline.bundle.images import read_pixels
from graftline.bundle.layout import EMBEDDING, FEATURES, LOGITS, NEIGHBORS_FILE, WEIGHTS_FILE
from graftline.bundle.neighbors import Neighbors, nearest
from graftline.bundle.predictor import Predictor, softmax
from graftline.data.decode import DecodeError

SHOWN = 5  # training images
QUALITY = 85  # of 100, of the picture of what the network sees: 224 px take 10 kB
NO_NEIGHBORS = "Trained with bundle.neighbors=1000, a model shows the nearest of 1,000 training images here."


@dataclass(frozen=True, eq=False)
class Explainer:
    """Explains what a predictor answers.

    Attributes:
        predictor: the predictor.
        weights: (K, D) of its classifier; None where the logits are not the mean of a map times weights.
        neighbors: training images; None where the bundle keeps none.
    """

    predictor: Predictor
    weights: np.ndarray | None
    neighbors: Neighbors | None

    @classmethod
    def load(cls, predictor: Predictor, bundle: Path, description: Mapping[str, Any]) -> Self:
        """Return one for a bundle whose files are what was saved.

        Args:
            predictor: of the bundle.
            bundle: its folder.
            description: content of ``bundle.json``.

        Raises:
            UserError: its training images cannot be read.
        """
        name = description.get("class_weights")
        return cls(
            predictor,
            None if name is None else read_tensor(bundle / WEIGHTS_FILE, name),
            Neighbors.load(bundle / NEIGHBORS_FILE, description.get("neighbors")),
        )

    def explain(self, image: bytes) -> dict[str, Any]:
        """Return what there is to say of the answer to an image file, as JSON.

        Raises:
            ValueError: it cannot be read.
        """
        predictor = self.predictor
        try:
            view = predictor.preprocessing.frame(read_pixels(image, predictor.decoding))
        except DecodeError as error:
            raise ValueError(error.reason) from error
        images = predictor.preprocessing.normalize(view)[None]
        known = {LOGITS: True, FEATURES: self.weights is not None, EMBEDDING: self.neighbors is not None}
        asked = [name for name, is_there in known.items() if is_there]
        found = dict(zip(asked, predictor.engine(images, asked), strict=True))
        probabilities = softmax(predictor.calibration.apply(found[LOGITS]))
        (answer,) = predictor.decision.answer(probabilities)
        heat, method = self._heat(images, int(answer), found)
        return {
            "class": predictor.class_names[answer],
            "probability": float(probabilities[0, answer]),
            "view": _picture(view),
            "heat": {"method": method, "map": heat.round(3).tolist()},
            "neighbors": None if self.neighbors is None else self._near(self.neighbors, found[EMBEDDING]),
            "note": NO_NEIGHBORS if self.neighbors is None else None,
        }

    def _heat(self, images: np.ndarray, number: int, found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Method]:
        if self.weights is not None:
            return class_activation_map(found[FEATURES][0], self.weights[number]), GRAD_CAM
        return occlusion(self._logits, images, [number])[0], OCCLUSION

    def _logits(self, images: np.ndarray) -> np.ndarray:
        return self.predictor.calibration.apply(self.predictor.engine(images, [LOGITS])[0])

    def _near(self, neighbors: Neighbors, embedding: np.ndarray) -> list[dict[str, Any]]:
        rows, distances = nearest(neighbors.embeddings, embedding, SHOWN)
        return [
            {
                "class": self.predictor.class_names[neighbors.labels[row]],
                "distance": round(distance, 4),
                "image": neighbors.pictures[row],
            }
            for row, distance in zip(rows[0].tolist(), distances[0].tolist(), strict=True)
        ]


def _picture(view: np.ndarray) -> str:
    """Return pixels (H, W, C), C 1 or 3, as a data URI."""
    content = io.BytesIO()
    Image.fromarray(view[:, :, 0] if view.shape[2] == 1 else view).save(content, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
