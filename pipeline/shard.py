"""Shard: write the images of a source into tars with an index, which `data=shards` reads."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from graftline.console import warn
from graftline.data.further_columns import to_json
from graftline.data.ingest import Ingest
from graftline.data.shards.write import write_shards
from graftline.data.split import Split
from graftline.errors import UserError
from graftline.files import check_folder
from graftline.pipeline.program import program
from graftline.pipeline.stage import StageResult

# Fields of a data set that shards depend on, and its license, which the sample's options give.
TAKEN = ("name", "path", "source", "license")


@dataclass(frozen=True)
class Shard:
    """The stage ``shard`` (Hydra target of conf/shard.yaml).

    Attributes:
        data: lists the images; only its name, path and source count.
        out: folder of the shards; the same command goes on where a killed one was.
        shard_mb: size of a shard, about, in MB (10^6 bytes).
        workers: processes that write; 0: one per core.
    """

    data: Ingest
    out: str
    shard_mb: float = 256
    workers: int = 0

    def __post_init__(self) -> None:
        if self.shard_mb <= 0:
            raise UserError(f"Shard.shard_mb is {self.shard_mb:g}, it must be above 0.")
        taken = {name: getattr(self.data, name) for name in TAKEN}
        if given := list(_differing("data", self.data, Ingest(**taken, split=Split()))):
            warn(
                f"{', '.join(given)} does nothing here, as shards hold all images as they are: give it to what reads "
                "the shards."
            )

    def run(self, directory: Path) -> StageResult:  # noqa: ARG002 - shards are for all runs
        """List the images and write those shards that are not there yet."""
        out, start = Path(self.out).expanduser(), time.perf_counter()
        check_folder(out, "Shard.out")
        out = out.absolute()
        listing = self.data.list_images()
        images, class_names = listing.images, listing.class_names
        if not listing.further.columns.empty:
            images = images.assign(columns=to_json(listing.further))
        name = self.data.dataset_name()
        written = write_shards(images, class_names, out, name, int(self.shard_mb * 1e6), self.workers)
        if written.left_out:
            warn(
                f"{len(written.left_out):,} images are listed but not there, or forbidden, and left out: "
                f"{written.left_out[0]} is first."
            )
        rate = written.images / (time.perf_counter() - start)
        already = f", {written.already:,} of them were there already" if written.already else f", {rate:,.0f} images/s"
        return StageResult(
            facts={
                "out": str(out),
                "shards": written.count,
                "images": written.images,
                "bytes": written.bytes,
                "already": written.already,
                "left_out": written.left_out,
            },
            table=[
                ("images", f"{written.images:,} of {len(class_names)} classes"),
                ("shards", f"{written.count:,}, {written.bytes / 1e6:,.0f} MB{already}"),
                ("read them with", shlex.join([program(), "train", "data=shards", f"data.path={self.out}"])),
            ],
        )


def _differing(name: str, given: Any, usual: Any) -> Iterator[str]:
    """Yield the arguments of ``given``, such as ``data.split.test``, that are not as in ``usual``; name: of both."""
    for field in fields(given):
        own, other = getattr(given, field.name), getattr(usual, field.name)
        if own == other:
            continue
        if is_dataclass(own):
            yield from _differing(f"{name}.{field.name}", own, other)
        else:
            yield f"{name}.{field.name}"
