"""What does an audit find of Fashion-MNIST's published faults? `python -m benchmarks.audit_fashion DIRECTORY`.

Duplicates: the first release had 43 pairs in the training images, one in the test images and ten across both
(github.com/zalandoresearch/fashion-mnist, issue 44); today's files have none. The 49 whose numbers are known here are
put back: the second image of a pair becomes the first. Wrong labels: arXiv 1912.05283 shows 64 training images; the 20
whose numbers its authors' code and pages name (github.com/mueller91/labelfix, and issue 166) are looked for.

Needs Debian's package dataset-fashion-mnist. 70,000 images at 64 px: about ten minutes of two idle cores.
"""

import argparse
import csv
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from benchmarks.accuracy.sets.fashion import CLASS_NAMES, read_part

PAIRS = (
    "train00601 train39865, train00831 train24228, train01826 train23718, train02024 train53883, "
    "train04974 train06293, train05520 train49165, train05790 train11845, train05822 train33399, "
    "train06139 train37731, train06280 train41036, train08485 train31238, train08841 train28184, "
    "train12571 train56657, train14096 train32343, train14710 train22159, train15587 train28635, "
    "train19308 train20114, train19668 train21571, train19760 train39489, train19888 train24443, "
    "train21072 train32800, train22852 train28789, train23052 train57107, train23413 train33731, "
    "train24785 train46015, train25297 train40077, train25629 train49588, train26314 train49351, "
    "train27045 train40033, train27421 train31627, train32113 train38337, train32300 train33730, "
    "train32303 train56840, train32888 train41918, train32922 train54584, train36634 train39841, "
    "train38261 train41877, train42756 train53842, train46667 train57724, train46782 train54829, "
    "train47929 train54185, train48480 train59607, train48955 train51368, test06334 test08569, "
    "train03763 test07243, train04944 test07781, train06168 test09227, train12404 test04037, train15943 test06659"
)
WRONG = (
    "train01600 train03415 train09059 train16691 train18188 train22264 train22750 train28264 train29599 train33982 "
    "train34381 train36049 train37286 train38208 train39620 train40513 train42018 train45592 train50494 train53257"
)


def write(directory: Path, pairs: list[list[str]]) -> None:
    """Write all images as folders of splits and classes, with duplicates put back."""
    images, labels = {}, {}
    for split, part in (("train", "train"), ("test", "t10k")):
        for number, (pixels, label) in enumerate(zip(*read_part(part), strict=True)):
            images[f"{split}{number:05}"], labels[f"{split}{number:05}"] = pixels, label
    for first, second in pairs:
        images[second], labels[second] = images[first], labels[first]
    for name, pixels in images.items():
        folder = directory / name[:-5] / CLASS_NAMES[labels[name]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}.png", compress_level=1)


def names_in(text: str) -> list[str]:
    """Return the names of images in a text."""
    return re.findall(r"(?:train|test)\d{5}", text)


def main() -> None:
    """Write the images, audit them, and print what was found of what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    place = parser.parse_args().directory.resolve()
    pairs = [pair.split() for pair in PAIRS.split(", ")]
    if not (place / "images").is_dir():
        write(place / "images", pairs)
    words = ("audit", "data=folder", f"data.path={place / 'images'}", "backbone.image_size=64")
    subprocess.run([sys.executable, "-m", "graftline", *words], cwd=place, check=True)
    (findings,) = place.glob("data/images/*/findings.json")
    decisions = max(place.glob("outputs/audit/*/decisions.csv"))
    rows = list(csv.DictReader(decisions.read_text(encoding="utf-8").splitlines()))
    told = {frozenset(names_in(line)) for line in findings.read_text(encoding="utf-8").split("}")}
    listed = [names_in(row["path"])[0] for row in rows if row["reason"].startswith("the label is probably wrong")]
    ranks = sorted(listed.index(name) + 1 for name in WRONG.split() if name in listed)
    print(f"{sum(set(pair) in told for pair in pairs)} of {len(pairs)} duplicates are told.")
    print(f"{len(ranks)} of {len(WRONG.split())} wrong labels are among the {len(listed):,} listed, at ranks {ranks}.")


if __name__ == "__main__":
    main()
