"""Write a trained network as a bundle: files that timm, ONNX Runtime and people can read. No pickle.

Letters: B batch, C channels, H, W height and width in px, K classes.
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from graftline.augment.preprocess import Preprocessing
from graftline.backbones.onnx import export_onnx
from graftline.bundle.calibration import Calibration
from graftline.bundle.decision import Decision
from graftline.bundle.engines import Engine, onnx_engine
from graftline.bundle.golden import write_golden
from graftline.bundle.layout import (
    CARD_FILE,
    CONFIG_FILE,
    DRIFT_FILE,
    EMBEDDING,
    FEATURES,
    FORMAT,
    LOGITS,
    NEIGHBORS_FILE,
    ONNX_FILE,
    REFERENCES_FILE,
    WEIGHTS_FILE,
    bundle_digest,
    hash_files,
)
from graftline.bundle.neighbors import Neighbors
from graftline.bundle.outputs import TIMM_TOLERANCE, WithParts, class_weights, find_outputs
from graftline.bundle.reference import Reference
from graftline.bundle.refusal import Refusal
from graftline.data.decoding import PLAIN, Decoding
from graftline.errors import UserError, first_line, no_room
from graftline.execution import Execution
from graftline.files import atomic_directory, sha256_file, write_json

# Largest difference that the file's logits may have from the network's, absolute, or relative where they exceed 1: it
# runs the same operations in another order.
ONNX_TOLERANCE = 1e-4
CHECKED_BATCH_SIZES = (1, 3)  # neither is the size that the export traces with


def save_bundle(
    directory: Path,
    network: nn.Module,
    *,
    timm_name: str,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    card: Mapping[str, Any],
    golden: Sequence[Path] = (),
    decoding: Decoding = PLAIN,
) -> Path:
    """Write a bundle, check that what it holds computes what the network does, and only then make it visible.

    Args:
        directory: where it appears; a bundle that is there is replaced.
        network: a timm network with K outputs, on any device and in any mode; it is left as it is.
        timm_name: what the network is called in timm, with or without a tag, or `Backbone.network_name`.
        class_names: K names, in the order of the outputs.
        preprocessing: what was done to the images that it was trained on.
        card: what is to be known of the training (freeze plan, dataset digest, metrics, library versions): JSON.
        golden: real images to keep for ``verify_bundle``, beside the made-up ones; see ``choose_golden``.
        decoding: how the files that it was trained on became pixels, and others are to.

    Returns:
        ``directory``, with ``model.safetensors`` and ``config.json`` (timm's layout), ``model.onnx``, ``bundle.json``
        and ``golden``.

    Raises:
        ExportError: ONNX cannot express the network. Its weights are kept, in a folder beside ``directory``.
        UserError: the network's outputs are not finite, a file computes something else, or a golden image cannot be
            read.
    """
    with atomic_directory(directory) as folder, torch.random.fork_rng(devices=[]), torch.no_grad():
        network = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format).eval()
        batches = _make_batches(preprocessing)
        expected = find_outputs(network, batches, timm_name, len(class_names))
        _write_timm(folder, network, class_names, preprocessing)
        _check_timm(folder, timm_name, batches, expected[LOGITS])
        exported = WithParts(network, tuple(expected)).eval() if EMBEDDING in expected else network
        with _weights_kept(folder, directory, timm_name):
            run = _write_onnx(folder, exported, timm_name, class_names, preprocessing, batches, expected)
        write_golden(folder, golden, preprocessing, lambda images: run(images, [LOGITS])[0], decoding)
        content: dict[str, Any] = {
            "format": FORMAT,
            "timm_name": timm_name,
            "class_names": list(class_names),
            "decoding": decoding.to_dict(),
            "preprocessing": preprocessing.to_dict(),
            "calibration": None,
            "decision": None,
            "refusal": None,
            "embedding_size": expected[EMBEDDING][0].shape[1] if EMBEDDING in expected else None,
            "class_weights": class_weights(network) if FEATURES in expected else None,
            "files": hash_files(folder),
            "card": dict(card),
        }
        write_json(folder / CARD_FILE, {"digest": bundle_digest(content, content["files"]), **content})
    return directory


def check_savable(timm_name: str, network: nn.Module, preprocessing: Preprocessing) -> None:
    """Make sure that a network can be saved as a bundle, before it is trained; it takes as long as saving does.

    Args:
        timm_name: as in ``save_bundle``.
        network: as in ``save_bundle``, with any weights.
        preprocessing: as in ``save_bundle``.

    Raises:
        UserError: as ``save_bundle`` does.
    """
    class_names = [str(number) for number in range(network.num_classes)]  # type: ignore[arg-type]  # a timm network
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_bundle(
                Path(folder) / "bundle",
                network,
                timm_name=timm_name,
                class_names=class_names,
                preprocessing=preprocessing,
                card={},
            )
        except ExportError as error:
            raise UserError(error.reason) from error


class ExportError(UserError):
    """ONNX cannot express a network.

    Args:
        reason: a sentence.
        kept: where the weights are kept.
    """

    def __init__(self, reason: str, kept: Path) -> None:
        super().__init__(f"{reason} Its weights are kept in {kept}, as timm lays them out.")
        self.reason = reason


@contextmanager
def _weights_kept(folder: Path, directory: Path, timm_name: str) -> Iterator[None]:
    """Keep the weights in ``folder`` beside the bundle that was to be ``directory``, where the block fails.

    Raises:
        ExportError: it does.
    """
    try:
        yield
    except Exception as error:  # the exporter's and ONNX Runtime's own, and whatever tracing a network's code may raise
        if no_room(error) is not None:  # no fault of the network
            raise
        reason = f"'{timm_name}' cannot be written as ONNX ({first_line(error)}): take another backbone."
        kept = directory.with_name(f"{directory.name}-without-onnx")
        with atomic_directory(kept) as target:
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                shutil.copy2(folder / name, target / name)
        raise ExportError(str(error) if isinstance(error, UserError) else reason, kept) from error


def add_to_card(directory: Path, **entries: Any) -> None:
    """Add entries to the card of a bundle, such as the metrics that could be measured only once it was there."""
    content = json.loads((directory / CARD_FILE).read_text(encoding="utf-8"))
    content["card"].update(entries)
    write_json(directory / CARD_FILE, content)


def change_answers(
    directory: Path,
    calibration: Calibration | None = None,
    decision: Decision | None = None,
    refusal: Refusal | None = None,
) -> str:
    """Change what all predictors of a bundle make of what the network gives.

    Args:
        directory: the bundle.
        calibration: of the logits; None: as it is.
        decision: which class is answered; None: as it is.
        refusal: which images are none of the classes; None: as it is.

    Returns:
        The bundle's new digest.
    """
    content = json.loads((directory / CARD_FILE).read_text(encoding="utf-8"))
    if calibration is not None:
        content["calibration"] = calibration.to_dict()
    if decision is not None:
        content["decision"] = decision.to_dict()
    if refusal is not None:
        content["refusal"] = refusal.save(directory / REFERENCES_FILE)
        content["files"][REFERENCES_FILE] = sha256_file(directory / REFERENCES_FILE)
    content["digest"] = bundle_digest(content, content["files"])
    write_json(directory / CARD_FILE, content)
    digest: str = content["digest"]
    return digest


def keep_reference(directory: Path, reference: Reference) -> None:
    """Put what later images are compared with into a bundle; what the bundle computes stays, and so does its digest."""
    content = json.loads((directory / CARD_FILE).read_text(encoding="utf-8"))
    content["reference"] = reference.save(directory / DRIFT_FILE)
    content["files"][DRIFT_FILE] = sha256_file(directory / DRIFT_FILE)
    write_json(directory / CARD_FILE, content)


def keep_neighbors(directory: Path, neighbors: Neighbors) -> None:
    """Put training images in small into a bundle; its digest stays."""
    content = json.loads((directory / CARD_FILE).read_text(encoding="utf-8"))
    content["neighbors"] = neighbors.save(directory / NEIGHBORS_FILE)
    content["files"][NEIGHBORS_FILE] = sha256_file(directory / NEIGHBORS_FILE)
    write_json(directory / CARD_FILE, content)


def _make_batches(preprocessing: Preprocessing) -> list[Tensor]:
    """Return noise of the spread that normalized images have, (B, C, H, W) each."""
    generator = torch.Generator().manual_seed(0)
    shape = (preprocessing.channels, *preprocessing.image_size)
    return [torch.randn(size, *shape, generator=generator) for size in CHECKED_BATCH_SIZES]


def _write_timm(folder: Path, network: nn.Module, class_names: Sequence[str], preprocessing: Preprocessing) -> None:
    fields = preprocessing.to_dict()
    input_size = (fields.pop("channels"), *fields.pop("image_size"))
    hook = network.register_state_dict_post_hook(_separate)  # type: ignore[no-untyped-call]  # torch's has no types
    save_for_hf(
        network,
        str(folder),
        model_config={"label_names": list(class_names)},
        safe_serialization=True,
        data_config={"input_size": input_size, **fields},  # else the source weights' preprocessing stays in config.json
    )
    hook.remove()
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it private; a server runs as another user


def _separate(_network: nn.Module, state: dict[str, Tensor], _prefix: str, _metadata: dict[str, Any]) -> None:
    """Give a layer that a network uses in several places (CoaT) its tensors for each: safetensors shares none."""
    state.update({key: tensor.clone() for key, tensor in state.items()})


def _check_timm(folder: Path, timm_name: str, batches: Sequence[Tensor], expected: Sequence[np.ndarray]) -> None:
    reloaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for batch, logits in zip(batches, expected, strict=True):
        _check_difference(WEIGHTS_FILE, timm_name, reloaded(batch).numpy(), logits, TIMM_TOLERANCE)


def _write_onnx(
    folder: Path,
    network: nn.Module,
    timm_name: str,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    batches: Sequence[Tensor],
    expected: Mapping[str, Sequence[np.ndarray]],
) -> Engine:
    """Write ``model.onnx`` and return what runs it; its outputs are those that are expected of the batches."""
    metadata = {"class_names": list(class_names), "preprocessing": preprocessing.to_dict()}
    engines: list[Engine] = []  # of the files that were written; the last one is good

    def check(file: Path) -> None:
        run = onnx_engine(file.parent, Execution())
        engines.append(run)
        for number, batch in enumerate(batches):
            for name, actual in zip(expected, run(batch.numpy(), list(expected)), strict=True):
                _check_difference(ONNX_FILE, timm_name, actual, expected[name][number], ONNX_TOLERANCE)

    export_onnx(
        network,
        folder / ONNX_FILE,
        preprocessing.image_size,
        preprocessing.channels,
        outputs=list(expected),
        metadata={key: json.dumps(value) for key, value in metadata.items()},
        check=check,
    )
    return engines[-1]


def _check_difference(file: str, timm_name: str, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    difference = np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())
    if not difference <= tolerance:  # also catches NaN
        raise UserError(
            f"{file} of '{timm_name}' computes something else than the network "
            f"(difference {difference:.1e}, allowed {tolerance:.0e}): take another backbone."
        )
