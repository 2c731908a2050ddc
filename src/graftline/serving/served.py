"""A loaded model that has reproduced its golden images, and what it says of itself and of images.

Letters: K classes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from graftline.bundle.answers import Watch, join_answers
from graftline.bundle.engines import Engine
from graftline.bundle.ensemble import AnyPredictor, Ensemble, class_sets, load_predictor
from graftline.bundle.golden import HASHED_STEPS, replay
from graftline.bundle.layout import CARD_FILE, LOGITS
from graftline.bundle.verify import Verification, verify_bundle
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.serving.answers import REFUSED, SET, columns
from graftline.serving.batching import Answer
from graftline.serving.explanation import Explainer
from graftline.serving.origin import Origin

_MILLION = 1_000_000


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded model.

    Attributes:
        name: in addresses.
        origin: where it comes from.
        predictor: what classifies.
        description: content of ``bundle.json``.
        verification: what the replay of its golden images gave.
        card: the model card in Markdown; None where the bundle has none.
        explainer: says why; None for an ensemble.
        watch: is shown each answer; None: nothing is.
    """

    name: str
    origin: Origin
    predictor: AnyPredictor
    description: Mapping[str, Any]
    verification: Verification
    card: str | None
    explainer: Explainer | None = None
    watch: Watch | None = None

    @classmethod
    def load(
        cls,
        name: str,
        origin: Origin,
        bundle: Path,
        execution: Execution,
        megapixels: int,
        watch: Callable[[AnyPredictor, Path], Watch | None] | None = None,
    ) -> "ServedModel":
        """Load a bundle and replay its golden images.

        Args:
            name: in addresses.
            origin: where it comes from.
            bundle: its folder.
            execution: where it runs.
            megapixels: of an image, at most.
            watch: makes what is shown each answer, from the predictor and the bundle; None: nothing is.

        Raises:
            UserError: it cannot be loaded, or does not give here what it gave where it was saved.
        """
        verification = verify_bundle(bundle, "onnx", execution)
        if verification.problem is not None:
            raise UserError(verification.problem)
        predictor = _one_at_a_time(load_predictor(bundle, "onnx", execution))
        pixels = min(predictor.decoding.max_pixels, megapixels * _MILLION)
        cards = sorted(bundle.glob("*.md"))
        predictor = replace(predictor, decoding=replace(predictor.decoding, max_pixels=pixels))
        description = json.loads((bundle / CARD_FILE).read_text(encoding="utf-8"))
        return cls(
            name,
            origin,
            predictor,
            description,
            verification,
            cards[0].read_text(encoding="utf-8") if cards else None,
            None if isinstance(predictor, Ensemble) else Explainer.load(predictor, bundle, description),
            None if watch is None else watch(predictor, bundle),
        )

    def predict(self, images: Sequence[bytes]) -> list[Answer]:
        """Classify image files."""
        watched = self.watch is not None
        answers = join_answers(list(self.predictor.stream(images, len(images), embed=watched)))
        if self.watch is not None:
            self.watch.observe(images, answers)
        refused = answers.refused
        return [
            Answer(row, None if refused is None else bool(refused[number]), answers.reasons.get(number))
            for number, row in enumerate(answers.probabilities)
        ]

    def close(self) -> None:
        """Let what was shown the answers come to its end."""
        if self.watch is not None:
            self.watch.close()

    def identity(self) -> dict[str, Any]:
        """Return what each answer says of the model; who asks may be in another folder."""
        uri = self.origin.uri if self.origin.version is not None else str(Path(self.origin.uri).absolute())
        return {
            "model": self.name,
            "version": self.origin.version,
            "uri": uri,
            "digest": self.predictor.digest,
        }

    def about(self) -> dict[str, Any]:
        """Return what there is to know of the model."""
        predictor, golden = self.predictor, self.verification
        return {
            **self.identity(),
            "class_names": list(predictor.class_names),
            "calibration": predictor.calibration.to_dict(),
            "decision": predictor.decision.to_dict(),
            "refusal": self.description.get("refusal"),
            "preprocessing": self.description.get("preprocessing"),
            "decoding": {"max_pixels": predictor.decoding.max_pixels, **predictor.decoding.identity()},
            "golden_images": {
                "images": golden.num_images,
                "largest_probability_change": golden.largest_probability_change,
            },
            "environment": dict(golden.here),
            "training": self.description.get("card"),
            "card": self.card,
        }

    def predictions(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Return a prediction for each answer of an image that could be read."""
        probabilities = np.stack([answer.probabilities for answer in answers])  # (images, K)
        names, best = self.predictor.class_names, self.predictor.decision.answer(probabilities)
        found: list[dict[str, Any]] = [
            {
                "class": names[index],
                "probability": float(row[index]),
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
                "refused": answer.refused,
            }
            for answer, row, index in zip(answers, probabilities, best, strict=True)
        ]
        if self.predictor.decision.set_threshold is not None:
            for prediction, classes in zip(found, class_sets(self.predictor, probabilities), strict=True):
                prediction["set"] = json.loads(classes)
        return found

    def rows(self, predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return predictions as the rows of the table that the same model answers behind MLflow's own server."""
        names = columns(self.predictor.class_names)
        rows = []
        for one in predictions:
            row = dict(zip(names, (one["class"], one["probability"], *one["probabilities"].values()), strict=True))
            if "set" in one:
                row[SET] = json.dumps(one["set"], ensure_ascii=False)
            if one["refused"] is not None:
                row[REFUSED] = one["refused"]
            rows.append(row)
        return rows

    def steps(self, image: bytes) -> dict[str, Any] | None:
        """Return what becomes of an image step by step, to be compared with a golden image; None of an ensemble.

        Raises:
            ValueError: it cannot be read.
        """
        if isinstance(self.predictor, Ensemble):
            return None
        engine = self.predictor.engine
        found = replay(
            [image],
            self.predictor.preprocessing,
            lambda inputs: engine(inputs, [LOGITS])[0],
            self.predictor.decoding,
            of_our_own=False,
        )
        for reason in found.unreadable.values():
            raise ValueError(reason)
        hashes = found.hashes[0]
        return {**{step: hashes[step] for step in HASHED_STEPS}, "logits": found.logits[0].tolist()}


def _one_at_a_time(predictor: AnyPredictor) -> AnyPredictor:
    """Let each network run on one batch at a time, with all threads and one batch's memory; others decode meanwhile."""
    if isinstance(predictor, Ensemble):
        members = tuple(replace(member, engine=_locked(member.engine)) for member in predictor.members)
        return replace(predictor, members=members)
    return replace(predictor, engine=_locked(predictor.engine))


def _locked(engine: Engine) -> Engine:
    lock = Lock()

    def run(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        with lock:
            return engine(images, outputs)

    return run
