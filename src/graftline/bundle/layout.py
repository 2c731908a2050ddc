"""The files of a bundle, and the description that names them. ``model.safetensors`` and ``config.json`` are timm's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftline.data.decoding import Decoding
from graftline.errors import UserError
from graftline.files import digest, sha256_file

FORMAT = 4  # of bundle.json; raise it when a predictor of today could not read tomorrow's
READABLE_FORMATS = (
    1,
    2,
    3,
    4,
)  # 1 has no digests, no embedding and no golden images, 2 no decoding, 3 nothing learned on validation images
CARD_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
ONNX_FILE = "model.onnx"
REFERENCES_FILE = "references.npy"
DRIFT_FILE = "drift.npz"  # what drift is measured against; no part of what a bundle computes
NEIGHBORS_FILE = "neighbors.npz"  # training images in small; likewise
GOLDEN_FOLDER = "golden"
# of the ONNX network, each with the batch first
INPUT, LOGITS, EMBEDDING, FEATURES = "image", "logits", "embedding", "features"

FREEZE_CHECKS = "freeze_checks"  # entry of a card: see `freeze_checks`

_ENTRIES, _ENTRIES_OF_FORMAT_2 = (
    ("timm_name", "class_names", "preprocessing", "card"),
    ("files", "digest", "embedding_size"),
)
_NETWORK_FILES = (WEIGHTS_FILE, CONFIG_FILE, ONNX_FILE)


def hash_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a bundle but ``bundle.json``, by its path inside the bundle."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != CARD_FILE)
    return {path.relative_to(directory).as_posix(): sha256_file(path) for path in files}


def bundle_digest(content: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return 16 hex digits that name what a bundle computes: what it does from a file to its answer.

    The card's notes (metrics, freeze plan) and the golden images are no part of it.

    Args:
        content: of ``bundle.json``.
        files: SHA-256 by path, of the network's files at least.
    """
    described = {key: content[key] for key in ("timm_name", "class_names", "preprocessing")}
    if decoding := Decoding.from_dict(content.get("decoding")).identity():
        described["decoding"] = decoding
    described |= {key: content[key] for key in ("calibration", "decision", "refusal") if content.get(key) is not None}
    named = _NETWORK_FILES if content.get("refusal") is None else (*_NETWORK_FILES, REFERENCES_FILE)
    return digest({**described, "files": {name: files.get(name) for name in named}})


def freeze_checks(cards: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """Return how many frozen tensors each training behind some networks has found to be what they were.

    Args:
        cards: of the networks.

    Returns:
        A number for each training; None where any of the networks has no record, as of an earlier graftline.
    """
    records = [card.get(FREEZE_CHECKS) for card in cards]
    return None if None in records else [count for record in records for count in record or ()]


def read_description(directory: Path) -> dict[str, Any]:
    """Return the content of ``bundle.json``, for format 1 with the digests that it lacks.

    Raises:
        UserError: no bundle is there, its description is damaged, or a later graftline wrote it.
    """
    file = directory / CARD_FILE
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{directory} is not a bundle: {CARD_FILE} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): save the bundle again.") from error
    if content.get("format") not in READABLE_FORMATS:
        raise UserError(
            f"{file} has format {content.get('format')}, but this version of graftline reads up to format {FORMAT}: "
            "update graftline, or use the version that wrote it."
        )
    needed = _ENTRIES if content["format"] == 1 else _ENTRIES + _ENTRIES_OF_FORMAT_2
    if missing := [entry for entry in needed if entry not in content]:
        raise UserError(f"{file} is damaged (it has no '{missing[0]}'): save the bundle again.")
    if content["format"] == 1:
        files = hash_files(directory)
        content |= {"files": files, "digest": bundle_digest(content, files), "embedding_size": None}
    return content


def find_damage(directory: Path, content: Mapping[str, Any], *names: str) -> list[str]:
    """Return which files of a bundle are missing or are not what was saved.

    Args:
        directory: the bundle.
        content: what ``read_description`` returned.
        names: of the files to look at, beside ``bundle.json``; none: all that the bundle lists.
    """
    files: dict[str, str] = content["files"]
    damaged = [] if content["digest"] == bundle_digest(content, files) else [CARD_FILE]
    return damaged + [name for name in names or files if not is_intact(directory / name, files.get(name))]


def is_intact(file: Path, sha256: str | None) -> bool:
    """Tell whether a file is there and what was saved."""
    return file.is_file() and sha256_file(file) == sha256
