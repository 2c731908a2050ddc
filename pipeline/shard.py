"""Shard: write the images of a source into tars with an index, which `data=shards` reads."""

import time
from dataclasses import dataclass
from pathlib import Path

from graftline.console import warn
from graftline.data.further_columns import to_json
from graftline.data.ingest import Ingest
from graftline.data.shards.write import write_shards
from graftline.errors import UserError
from graftline.files import check_folder
from graftline.pipeline.stage import StageResult


@dataclass(frozen=True)
class Shard:
    """The stage ``shard`` (Hydra target of conf/shard.yaml)."""

    data: Ingest
    out: str
    shard_mb: float = 256
    workers: int = 0

    def __post_init__(self) -> None:
        if self.shard_mb <= 0:
            raise UserError(f"Shard.shard_mb is {self.shard_mb:g}, it must be above 0.")

    def run(self, directory: Path) -> StageResult:  # noqa: ARG002 - shards are for all runs
        """List the images and write those shards that are not there yet."""
        out, start = Path(self.out).expanduser().absolute(), time.perf_counter()
        check_folder(out, "Shard.out")
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
                ("read them with", f"make train data=shards data.path={self.out}"),
            ],
        )
