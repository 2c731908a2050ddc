"""An ensemble: several bundles and a set of crops whose answers are averaged; on disk it is a bundle itself.

Its folder holds ``bundle.json``, which names the members with their digests and shares, the members as folders, and
what came of golden images. It is loaded, verified, served and registered like one network. As light to import as the
predictor.

Letters: N images, K classes.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from graftline.bundle.answers import Answers, find_reasons, join_answers, report_progress
from graftline.bundle.calibration import UNCALIBRATED, Calibration
from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.bundle.engines import EngineName
from graftline.bundle.golden import environment, read_golden
from graftline.bundle.grid import Average, Grid, mean_logits
from graftline.bundle.images import ImageLike
from graftline.bundle.layout import CARD_FILE, GOLDEN_FOLDER, find_damage, hash_files, is_intact, read_description
from graftline.bundle.predictor import Predictor, check_files, softmax
from graftline.data.decode import Decoding
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.files import atomic_directory, digest, write_json

FORMAT, OLDEST = 6, 4  # of an ensemble's bundle.json; 4 averages probabilities, and before 6 none has a reference
MEMBERS_FOLDER, REPLAY_FILE, RECORD_FILE = "members", "logits.npy", "golden.json"

_ENTRIES = ("digest", "class_names", "decoding", "crops", "members", "files", "card")


@dataclass(frozen=True)
class Ensemble:
    """Classifies images by the average of its members' answers; it is used as a `Predictor` is.

    Attributes:
        members: loaded bundles; the first one's order of classes is that of the results.
        names: of the members, for messages.
        shares: of each member in the mean; they sum to 1.
        crops: name of a set of `graftline.augment.crops.CROP_SETS`, over which each member is averaged first.
        card: what is known of the training.
        decoding: how files become pixels, for all members.
        calibration: what becomes of the mean, as logits, before anybody sees it.
        decision: which class is answered, given the probabilities; what the members would answer does not count.
        average: what is averaged, over crops and over members.

    Raises:
        UserError: members of other classes, or crops that a network cannot take.
    """

    members: tuple[Predictor, ...]
    names: tuple[str, ...]
    shares: tuple[float, ...]
    crops: str
    card: dict[str, Any]
    decoding: Decoding
    calibration: Calibration = UNCALIBRATED
    decision: Decision = MOST_PROBABLE
    average: Average = "probabilities"

    def __post_init__(self) -> None:
        assert len(self.members) == len(self.shares) == len(self.names), "a share and a name for each member"
        _ = self._grid  # refuses what does not go together

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        engine: EngineName = "onnx",
        execution: Execution = Execution(),  # noqa: B008 - immutable
        *,
        check: bool = True,
    ) -> "Ensemble":
        """Load what ``save`` wrote; the arguments are those of `Predictor.from_directory`.

        Raises:
            UserError: the description or a member is missing or not what was saved.
        """
        content = read_ensemble(directory)
        if check:
            _check_members(directory, content, engine)
        entries = content["members"]
        folders = [directory / entry["folder"] for entry in entries]
        members = tuple(Predictor.from_directory(folder, engine, execution, check=False) for folder in folders)
        return cls(
            members=members,
            names=tuple(map(str, folders)),
            shares=tuple(entry["share"] for entry in entries),
            crops=content["crops"],
            card=content["card"],
            decoding=Decoding.from_dict(content["decoding"]),
            calibration=Calibration.from_dict(content.get("calibration")),
            decision=Decision.from_dict(content.get("decision")),
            average=content.get("average", "probabilities"),
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of the columns that ``predict`` returns."""
        return self.members[0].class_names

    @property
    def digest(self) -> str:
        """16 hex digits that name what the ensemble computes."""
        answers = {"calibration": self.calibration.to_dict(), "decision": self.decision.to_dict()}
        answers |= _named(self.average)
        return _digest([member.digest for member in self.members], self.shares, self.crops, self.class_names, answers)

    @cached_property
    def _grid(self) -> Grid:
        return Grid(self.members, (self.crops,), self.decoding, self.names, self.average)

    def logits(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return (N, K) float32 logits, whose softmax are the probabilities; see `Predictor.logits`."""
        return self._mean(self._grid.logits(images, batch_size, on_progress))

    def predict(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return (N, K) float32 probabilities; see `Predictor.predict`."""
        return softmax(self.logits(images, batch_size, on_progress))

    def predict_readable(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """As ``predict``, but go on where an image cannot be read; see `Predictor.predict_readable`."""
        answers = self.predict_refusing(images, batch_size, on_progress)
        return answers.probabilities, answers.reasons

    def predict_refusing(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> Answers:
        """As ``predict_readable``; an ensemble does not tell which images are none of the classes."""
        none = Answers(np.empty((0, len(self.class_names)), np.float32), None, {})
        return join_answers([none, *report_progress(self.stream(images, batch_size), on_progress)])

    def stream(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        *,
        embed: bool = False,
    ) -> Generator[Answers, None, None]:
        """As ``predict_refusing``, but yield the answers batch by batch; see `Predictor.stream`.

        An embedding is the first member's, of an image's first crop.
        """
        with contextlib.closing(self._grid.steps(images, batch_size, embed=embed)) as steps:
            for found, flaws, embeddings in steps:
                logits = self._mean(found)
                reasons = find_reasons(flaws, logits, *(() if embeddings is None else (embeddings,)))
                yield Answers(softmax(logits), None, reasons, embeddings)

    def _mean(self, found: np.ndarray) -> np.ndarray:
        """Return the logits (N, K) of the members' (M, 1, N, K)."""
        return self.calibration.apply(mean_logits(found[:, 0], np.array(self.shares), self.average))


AnyPredictor: TypeAlias = Predictor | Ensemble
"""What a bundle becomes, be it of one network or of several."""


def load_predictor(
    directory: Path | str,
    engine: EngineName = "onnx",
    execution: Execution = Execution(),  # noqa: B008 - immutable
) -> AnyPredictor:
    """Load a bundle of one network or of several; see `Predictor.from_directory`."""
    kind = Ensemble if is_ensemble(Path(directory)) else Predictor
    return kind.from_directory(Path(directory), engine, execution)


def class_sets(predictor: AnyPredictor, probabilities: np.ndarray) -> list[str]:
    """Return the set of classes of each image as JSON, the most probable class first, for probabilities (N, K)."""
    members, orders = predictor.decision.sets(probabilities), np.argsort(-probabilities, axis=1, kind="stable")
    return [
        json.dumps([predictor.class_names[number] for number in order if row[number]], ensure_ascii=False)
        for row, order in zip(members, orders, strict=True)
    ]


def common_decoding(members: Sequence[Predictor], names: Sequence[str]) -> Decoding:
    """Return how all members' files become pixels, which happens once for all.

    Raises:
        UserError: they are decoded in different ways.
    """
    for name, member in zip(names, members, strict=True):
        if member.decoding.identity() != members[0].decoding.identity():
            raise UserError(
                f"{name} decodes images with other settings than {names[0]}: train both on data with the same "
                "DecodeSettings."
            )
    return members[0].decoding


def save_ensemble(
    directory: Path,
    folders: Sequence[Path],
    shares: Sequence[float],
    crops: str,
    card: Mapping[str, Any],
    calibration: Calibration = UNCALIBRATED,
    decision: Decision = MOST_PROBABLE,
    average: Average = "probabilities",
) -> Path:
    """Write an ensemble, replay golden images with it, and only then make it visible.

    Args:
        directory: where it appears; a bundle that is there is replaced.
        folders: the members' bundles, which are copied.
        shares: of the members.
        crops: the set of crops.
        card: what is to be known of the training.
        calibration: of the mean.
        decision: which class is answered.
        average: what is averaged.

    Returns:
        ``directory``.

    Raises:
        UserError: members that do not go together, or that are damaged.
    """
    with atomic_directory(directory) as folder:
        entries = _copy_members(folder, folders, shares)
        members = tuple(Predictor.from_directory(folder / entry["folder"]) for entry in entries)
        names = tuple(map(str, folders))
        decoding = common_decoding(members, names)
        ensemble = Ensemble(members, names, tuple(shares), crops, dict(card), decoding, calibration, decision, average)
        _write_golden(folder, ensemble)
        write_json(folder / CARD_FILE, _describe(ensemble, entries, hash_files(folder / GOLDEN_FOLDER)))
    return directory


def _copy_members(folder: Path, sources: Sequence[Path], shares: Sequence[float]) -> list[dict[str, Any]]:
    """Copy bundles into the folder of an ensemble, and return what ``bundle.json`` says of them."""
    entries = []
    for number, (source, share) in enumerate(zip(sources, shares, strict=True), start=1):
        place = f"{MEMBERS_FOLDER}/{number}"
        shutil.copytree(source, folder / place)
        description = read_description(folder / place)
        entries.append(
            {"folder": place, "digest": description["digest"], "share": share, "name": description["timm_name"]}
        )
    return entries


def _describe(ensemble: Ensemble, entries: Sequence[Mapping[str, Any]], golden: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of ``bundle.json``, given its entries for the members and the digests of golden files."""
    return {
        "digest": ensemble.digest,
        "format": FORMAT,
        "crops": ensemble.crops,
        "average": ensemble.average,
        "members": entries,
        "class_names": list(ensemble.class_names),
        "decoding": ensemble.decoding.to_dict(),
        "calibration": ensemble.calibration.to_dict(),
        "decision": ensemble.decision.to_dict(),
        "files": {f"{GOLDEN_FOLDER}/{name}": sha256 for name, sha256 in golden.items()},
        "card": ensemble.card,
    }


def is_ensemble(directory: Path) -> bool:
    """Tell whether a folder holds the bundle of an ensemble."""
    try:
        return "members" in json.loads((directory / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def read_ensemble(directory: Path) -> dict[str, Any]:
    """Return the content of an ensemble's ``bundle.json``.

    Raises:
        UserError: it is damaged, or a later graftline wrote it.
    """
    file = directory / CARD_FILE
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if content.get("format") not in range(OLDEST, FORMAT + 1):
        raise UserError(
            f"{file} has format {content.get('format')}, but this version of graftline reads ensembles of formats "
            f"{OLDEST} to {FORMAT}: update graftline, or use the version that wrote it."
        )
    if missing := [entry for entry in _ENTRIES if entry not in content]:
        raise UserError(f"{file} is damaged (it has no '{missing[0]}'): save the bundle again.")
    return content


def _check_members(directory: Path, content: Mapping[str, Any], engine: EngineName) -> None:
    """Make sure that the description and all members are what was saved, before one of them is loaded."""
    if content["digest"] != _described_digest(content):
        raise UserError(f"{directory / CARD_FILE} is not what was saved: copy or save the ensemble again.")
    for entry in content["members"]:
        folder = directory / entry["folder"]
        description = read_description(folder)
        if description["digest"] != entry["digest"]:
            raise UserError(f"{folder} is not the member that was saved: copy or save the ensemble again.")
        check_files(folder, description, engine)


def read_digest(directory: Path) -> str:
    """Return the digest of a bundle, be it of one network or of several.

    Raises:
        UserError: no bundle is there, its description is damaged, or a later graftline wrote it.
    """
    read = read_ensemble if is_ensemble(directory) else read_description
    return str(read(directory)["digest"])


def find_ensemble_damage(directory: Path) -> list[str]:
    """Return which files of an ensemble are missing or not what was saved, those of its members included."""
    content = read_ensemble(directory)
    entries = content["members"]
    found = [] if content["digest"] == _described_digest(content) else [CARD_FILE]
    found += [name for name, sha in content["files"].items() if not is_intact(directory / name, sha)]
    for entry in entries:
        folder = directory / entry["folder"]
        description = read_description(folder)
        damaged = find_damage(folder, description) or ([CARD_FILE] if description["digest"] != entry["digest"] else [])
        found += [f"{entry['folder']}/{name}" for name in damaged]
    return found


def read_replay(directory: Path) -> tuple[list[Path], np.ndarray, dict[str, str]]:
    """Return golden images (the first member's), an ensemble's logits (N, K) of them, and where it was written.

    Raises:
        UserError: they are damaged.
    """
    files = read_golden(directory / MEMBERS_FOLDER / "1")[0]
    folder = directory / GOLDEN_FOLDER
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        return files, np.load(folder / REPLAY_FILE, allow_pickle=False), record["environment"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The golden images in {folder} are damaged ({error}): save the bundle again.") from error


def _write_golden(folder: Path, ensemble: Ensemble) -> None:
    files = read_golden(folder / MEMBERS_FOLDER / "1")[0]
    (folder / GOLDEN_FOLDER).mkdir()
    ours = replace(ensemble, decoding=ensemble.decoding.of_our_own())
    np.save(folder / GOLDEN_FOLDER / REPLAY_FILE, ours.logits(files), allow_pickle=False)
    write_json(folder / GOLDEN_FOLDER / RECORD_FILE, {"environment": environment()})


def _named(average: Average) -> dict[str, Any]:
    """Return what a digest has of the average: nothing of probabilities, as before there was a choice."""
    return {} if average == "probabilities" else {"average": average}


def _described_digest(content: Mapping[str, Any]) -> str:
    entries = content["members"]
    digests, shares = [entry["digest"] for entry in entries], [entry["share"] for entry in entries]
    answers = {key: content.get(key) for key in ("calibration", "decision")}
    answers |= _named(content.get("average", "probabilities"))
    return _digest(digests, shares, content["crops"], content["class_names"], answers)


def _digest(
    digests: Sequence[str], shares: Sequence[float], crops: str, class_names: Sequence[str], answers: Mapping[str, Any]
) -> str:
    members = [[name, round(share, 12)] for name, share in zip(digests, shares, strict=True)]
    return digest({"members": members, "crops": crops, "class_names": list(class_names), **answers})
