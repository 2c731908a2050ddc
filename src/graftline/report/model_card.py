"""The model card of a bundle: what it is, what it was trained and tested on, and how far to trust it, in Markdown.

Its form is that of Hugging Face (https://huggingface.co/docs/hub/model-cards): YAML in front, for programs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import graftline
import graftline.backbones.zoo  # registers our own networks with timm, which tells which ones these are
from graftline.augment.crops import CROP_SETS
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.families import is_own
from graftline.backbones.weights import UNKNOWN
from graftline.bundle.ensemble import is_ensemble, read_ensemble
from graftline.bundle.layout import read_description
from graftline.data.manifest import SPLITS
from graftline.data.version import DatasetVersion
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import HEADLINES, Interval, format_interval, format_score
from graftline.evaluation.slices import Slice, sentence
from graftline.files import write_text
from graftline.report.cost_tables import short_number
from graftline.report.grid_tables import crops_in_words
from graftline.words import join_names

README = "README.md"
MOST_CLASSES = 20  # that are listed one by one
MOST_SLICES = 8
_MARKDOWN = re.compile(r"([\\`*\[<|]|(?<![^\W_])_|_(?![^\W_]))")  # underscores inside words mean nothing
_Row = Sequence[str]


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside what the bundle holds.

    Attributes:
        version: that the model was trained on.
        source: where its images came from, in a few words.
        license: of the images; None where nobody has said.
        result: of the test; None where there were no test images.
        run_id: of the training.
        slices: scores on parts of the test images; none where they were not computed.
    """

    version: DatasetVersion
    source: str
    license: str | None
    result: EvaluationResult | None
    run_id: str
    slices: Sequence[Slice] = ()


def write_card(bundle: Path, facts: CardFacts) -> Path:
    """Write ``README.md`` into the bundle of a network or an ensemble, whose digest does not cover it."""
    if is_ensemble(bundle):
        content = read_ensemble(bundle)
        networks = [read_description(bundle / entry["folder"]) for entry in content["members"]]
    else:
        content = read_description(bundle)
        networks = [content]
    card = _Card(content, networks, facts)
    sections = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in card.sections() if text)
    front = yaml.safe_dump(card.front(), sort_keys=False, allow_unicode=True)
    write_text(bundle / README, f"---\n{front}---\n\n# {card.title}\n\n{card.summary}\n\n{sections}\n")
    return bundle / README


def shortened(card: Path, most: int) -> str:
    """Return what a card says to people in at most so many characters: as many of its sections as that allows."""
    text = card.read_text(encoding="utf-8").split("\n---\n", 1)[1].strip()
    if len(text) <= most:
        return text
    more = f"\n\nThe rest is in the bundle's {card.name}."
    head, *sections = re.split(r"\n(?=## )", text)
    for section in sections:
        if len(head) + 1 + len(section) + len(more) <= most:
            head += f"\n{section}"
    return head[: most - len(more)].rstrip() + more


@dataclass(frozen=True)
class _Card:
    """Writes the parts of a card.

    Attributes:
        content: of ``bundle.json``.
        networks: the same of each network: of the bundle itself, or of an ensemble's members.
        facts: beside that.
    """

    content: Mapping[str, Any]
    networks: Sequence[Mapping[str, Any]]
    facts: CardFacts

    @property
    def is_ensemble(self) -> bool:
        return "members" in self.content

    @property
    def name(self) -> str:
        if not self.is_ensemble:
            return str(self.content["timm_name"])
        return f"soup of {len(self.ingredients)}" if self.ingredients else f"ensemble of {len(self.networks)}"

    @property
    def ingredients(self) -> list[str]:
        """Where the networks came from whose weights are averaged; none where this is no soup."""
        return list(self.networks[0]["card"].get("soup", [])) if len(self.networks) == 1 else []

    @property
    def title(self) -> str:
        return _text(f"{self.name[0].upper() if self.is_ensemble else self.name[0]}{self.name[1:]} on {self.dataset}")

    @property
    def dataset(self) -> str:
        return self.facts.version.name

    @property
    def scores(self) -> Mapping[str, Interval]:
        return {} if self.facts.result is None else self.facts.result.scores

    @property
    def class_names(self) -> list[str]:
        return list(self.content["class_names"])

    @property
    def summary(self) -> str:
        known = f"Says which of {len(self.class_names):,} classes an image shows: {_list(self.class_names)}."
        if self.facts.result is None:
            return f"{known} It was not tested, as there were no test images."
        accuracy = self.scores["accuracy"]
        right = f"{format_score('accuracy', accuracy.value)} right ({format_interval('accuracy', accuracy)})"
        return f"{known} Of {len(self.facts.result.predictions.paths):,} test images, **{right}**."

    def front(self) -> dict[str, Any]:
        """Return what programs read."""
        kinds = [name for name in HEADLINES if name in self.scores]
        metrics = [
            {
                "type": name,
                "value": self.scores[name].value,
                "name": f"{HEADLINES[name]}, 95 % interval {format_interval(name, self.scores[name])}",
            }
            for name in kinds
        ]
        where = {"name": self.dataset, "type": self.dataset, "split": "test", "revision": self.facts.version.digest}
        result = {"task": {"type": "image-classification"}, "dataset": where, "metrics": metrics}
        index = {"model-index": [{"name": f"{self.name} on {self.dataset}", "results": [result]}]} if metrics else {}
        return {
            **self._license(),
            "library_name": "graftline" if self.is_ensemble else "timm",
            "pipeline_tag": "image-classification",
            "tags": ["image-classification", "graftline", *([] if self.is_ensemble else ["timm"])],
            "metrics": kinds,
            **index,
        }

    def sections(self) -> Iterator[tuple[str, str]]:
        """Yield headings and texts, those first that a reader must know first."""
        yield "Scores", self._scores()
        yield "Intended use and limits", _bullets(self._limits())
        yield "Where it is worse", self._slices()
        yield "How to use it", self._use()
        yield "Calibration and decision", _bullets(self._answers())
        yield "Data", self._data()
        yield "Training", _bullets(self._training())
        yield "Licenses", _bullets(self._licenses())
        yield "Input", _bullets(self._input())
        yield "Cost", _bullets(self._cost())
        yield "Class by class", self._classes()

    def _scores(self) -> str:
        if self.facts.result is None:
            return ""
        rows = [self._score(name, label) for name, label in HEADLINES.items() if name in self.scores]
        digest = self.facts.result.predictions.split_digest
        table = _table(("score", "value", "95 % interval"), rows)
        return f"{table}\n\nTest images: digest `{digest}`, with which only scores of the same images can be compared."

    def _score(self, name: str, label: str) -> _Row:
        return label, format_score(name, self.scores[name].value), format_interval(name, self.scores[name])

    def _limits(self) -> Iterator[str]:
        yield (
            f"For images of the kind that it was trained and tested on ({_text(self.dataset)}). The intervals say how "
            "much the scores would change with other images of that kind; nothing is known of images from elsewhere, "
            "such as of another camera or another place."
        )
        if self.content.get("refusal") is None:
            yield "It answers with one of its classes whatever the image shows, also where that is none of them."
        recalls = {name: self.scores[f"recall/{name}"] for name in self.class_names if f"recall/{name}" in self.scores}
        if recalls:
            worst = min(recalls, key=lambda name: recalls[name].value)
            found = f"{format_score('recall', recalls[worst].value)} ({format_interval('recall', recalls[worst])})"
            yield f"It finds {_text(worst)} least well of all classes: {found} of the test images of that class."
        counts = self.facts.version.counts()["train"]
        rarest = min(counts, key=lambda name: counts[name])
        yield f"It has seen {_text(rarest)} least of all classes: {counts[rarest]:,} training images."
        yield from () if self.facts.result is None else map(_text, self.facts.result.notes)
        yield "What a mistake may cost where it is used was not looked at: that is for whoever uses it."

    def _slices(self) -> str:
        if not self.facts.slices:
            return ""
        rows = [
            (_text(one.name), f"{one.images:,}", format_score("accuracy", one.accuracy.value), _per_cent(one))
            for one in self.facts.slices[:MOST_SLICES]
        ]
        table = _table(("test images with", "images", "accuracy", "95 % interval"), rows)
        return f"{_text(sentence(self.facts.slices))}\n\n{table}"

    def _answers(self) -> Iterator[str]:
        learned = [self.content["card"].get(key, {}) for key in ("calibration", "decision", "refusal")]
        yield from (_text(one["sentence"]) for one in learned if one.get("sentence"))
        if not learned[1].get("sentence"):
            yield "It answers with the most probable class."

    def _data(self) -> str:
        version, names = self.facts.version, self.class_names
        counts = version.counts()
        splits = [split for split in SPLITS if any(counts[split].values())]
        rows = [
            (_text(name), *(f"{counts[split].get(name, 0):,}" for split in splits)) for name in names[:MOST_CLASSES]
        ]
        if len(names) > MOST_CLASSES:
            rows = [(f"{len(names):,} classes", *("" for _ in splits))]
        rows.append(("all", *(f"{sum(counts[split].values()):,}" for split in splits)))
        rows.append(("digest", *(f"`{version.split_digests[split]}`" for split in splits)))
        facts = [
            f"{_text(version.name)}, dataset version `{version.digest}`",
            f"Source: {_text(self.facts.source)}",
            f"License: {_text(self.facts.license or UNKNOWN)}",
        ]
        return f"{_bullets(facts)}\n\n{_table(('images', *splits), rows)}"

    def _training(self) -> Iterator[str]:
        if self.is_ensemble:
            yield f"{self._average()}:"
            for entry, network in zip(self.content["members"], self.networks, strict=True):
                share, size = f"{100 * entry['share']:.0f} %", _size(network)
                yield f"{share}: {_text(network['timm_name'])} at {size}, digest `{entry['digest']}`"
        else:
            card = self.content["card"]
            yield f"Network: {_text(self.content['timm_name'])}, {_text(card.get('weights', 'weights unknown'))}."
            if (fold := card.get("fold")) is not None:
                yield f"It was trained without part {fold} of the training images."
            if (plan := card.get("freeze_plan")) is not None:
                trained, frozen = plan["trained_parameters"], plan["frozen_parameters"]
                yield f"Freeze: {_text(plan['reason'])}; {trained:,} of {trained + frozen:,} parameters are trained."
        yield f"Bundle `{self.content['digest']}`, run `{self.facts.run_id}`, graftline {graftline.__version__}."

    def _average(self) -> str:
        """Return what is averaged, over which networks and crops."""
        crops, count = self.content["crops"], len(self.networks)
        kind = self.content.get("average", "probabilities")
        mean = f"the mean of the {kind}" + (" (the geometric mean of the probabilities)" if kind == "logits" else "")
        over_crops = f"{crops_in_words(crops)} of each image"
        if self.ingredients:
            soup = f"One network, whose weights are the mean of those of {len(self.ingredients)} networks (a soup)"
            return f"{soup}, on {over_crops}" if crops == "1" else f"{soup}; {mean} over {over_crops}"
        return f"{mean[0].upper()}{mean[1:]} of {count} network{'' if count == 1 else 's'}, on {over_crops}"

    def _license(self) -> dict[str, str]:
        """Return the license as Hugging Face knows it: one of its names, or ``other`` with a name of its own."""
        known = {self.facts.license or UNKNOWN, *self._weights_licenses()} - {"none"}
        if UNKNOWN in known:
            return {"license": UNKNOWN}
        parts = [
            *(f"weights {one}" for one in self._weights_licenses() if one != "none"),
            f"images {self.facts.license}",
        ]
        name = re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-")
        return {"license": "other", "license_name": name, "license_link": f"{README}#licenses"}

    def _weights_licenses(self) -> list[str]:
        return list(dict.fromkeys(str(one["card"].get("weights_license", UNKNOWN)) for one in self.networks))

    def _licenses(self) -> Iterator[str]:
        for terms in self._weights_licenses():
            what = "none were used, the network began with random ones" if terms == "none" else _text(terms)
            yield f"Weights that the training began with: {what}"
        yield f"Images that it was trained on: {_text(self.facts.license or UNKNOWN)}"
        yield "Neither decides alone on what may be done with this model: see both before you pass it on or sell it."

    def _input(self) -> Iterator[str]:
        for network in self.networks:
            of = f"{_text(network['timm_name'])}: " if self.is_ensemble else ""
            done = Preprocessing.from_dict(network["preprocessing"])
            colors = "gray" if done.channels == 1 else "RGB"
            mean, std = (", ".join(f"{number:.4g}" for number in numbers) for numbers in (done.mean, done.std))
            yield (
                f"{of}{_size(network)}, {colors}; {done.interpolation}, {done.crop_mode} crop of "
                f"{100 * done.crop_pct:.4g} % of the resized image's edge; from 0 to 1, minus {mean}, divided by {std}"
            )

    def _cost(self) -> Iterator[str]:
        crops = CROP_SETS[self.content["crops"]].count if self.is_ensemble else 1
        costs = [network["card"].get("cost") for network in self.networks]
        if all(costs):
            parameters, macs = (sum(one[key] for one in costs if one) for key in ("parameters", "macs"))
            yield f"{short_number(parameters)} parameters, {short_number(crops * macs)} multiply-adds per image"
        if self.facts.result is not None:
            milliseconds = 1000 / self.facts.result.images_per_second
            yield f"{milliseconds:.1f} ms per image where it was tested, from the file to the answer"

    def _use(self) -> str:
        ours = _code(
            "from graftline.bundle.ensemble import load_predictor",
            'predictor = load_predictor(".")  # the folder of this file',
            'probabilities = predictor.predict(["photo.jpg"])  # a row per image, a column per class',
        )
        text = f"With graftline, which does all that is said above:\n\n{ours}"
        return text if self.is_ensemble else f"{text}\n\n{self._use_in_timm()}"

    def _use_in_timm(self) -> str:
        channels = Preprocessing.from_dict(self.content["preprocessing"]).channels
        mode = "L" if channels == 1 else "RGB"
        lines = [
            "import timm",
            "from PIL import Image",
            'network = timm.create_model("local-dir:.", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
            f'logits = network(transform(Image.open("photo.jpg").convert("{mode}")).unsqueeze(0))',
        ]
        if is_own(self.content["timm_name"]):
            lines.insert(0, "import graftline.backbones.zoo  # the network is not one of timm's own")
        missing = "" if self.content.get("calibration") is None else ", without the calibration"
        return f"With timm alone{missing}:\n\n{_code(*lines)}"

    def _classes(self) -> str:
        rows = [
            (_text(name), *self._score(f"recall/{name}", "")[1:], *self._precision(name))
            for name in self.class_names
            if f"recall/{name}" in self.scores
        ]
        if not rows or len(rows) > MOST_CLASSES:
            return ""
        return _table(("class", "recall", "95 % interval", "precision", "95 % interval"), rows)

    def _precision(self, name: str) -> _Row:
        known = f"precision/{name}" in self.scores
        return self._score(f"precision/{name}", "")[1:] if known else ("not defined", "")


def _per_cent(one: Slice) -> str:
    return format_interval("accuracy", one.accuracy)


def _size(network: Mapping[str, Any]) -> str:
    height, width = network["preprocessing"]["image_size"]
    return f"{height} x {width} px"


def _text(text: str) -> str:
    r"""Return text that Markdown shows as it is.

    >>> print(_text("a_b|c*d_"))
    a_b\|c\*d\_
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _list(names: Sequence[str]) -> str:
    return join_names(list(map(_text, names)), MOST_CLASSES)


def _bullets(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(columns: _Row, rows: Sequence[_Row]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
