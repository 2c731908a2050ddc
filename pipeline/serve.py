"""Serve: models over HTTP, each as the registry names it, until it is told to stop."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graftline.console import print_facts, say
from graftline.errors import UserError
from graftline.execution import Accelerator, Execution
from graftline.pipeline.bundles.source import find_source
from graftline.pipeline.bundles.watch import check_watch, make_watch
from graftline.pipeline.program import program
from graftline.pipeline.stage import StageResult
from graftline.serving.limits import Limits
from graftline.serving.login import PASSWORD, find_password, is_loopback
from graftline.serving.origin import Registered
from graftline.serving.slot import Slot
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class ServeResult(StageResult):
    """What the stage ``serve`` answered until it was stopped."""

    requests: int
    images: int


@dataclass(frozen=True)
class Serve:
    """The stage ``serve`` (Hydra target of conf/serve.yaml).

    Attributes:
        tracking: where the models are registered.
        model: name of a registered model, which stands for its champion, or while it has none for the newest version
            that the gate has not refused; ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run's id, directory or
            bundle; several of them.
        host: address to listen on: 127.0.0.1 is reached from this machine only. Any other takes a password, which is
            read from the environment.
        allowed_hosts: names by which it may be called, beside those of this machine, such as that of a proxy; none:
            with a password, by all names.
        port: 0 takes a free one.
        poll_seconds: between two looks at a name or alias, which may have moved.
        accelerator: where the models run.
        limits: what is taken in.
        monitor: directory that a small sample of what the models see is kept in, for `drift`; None: nothing is kept.
        monitor_images: of which small versions are kept, in an hour; 0: none.
    """

    tracking: Tracking
    model: str | Sequence[str]
    host: str = "127.0.0.1"
    allowed_hosts: Sequence[str] = ()
    port: int = 5001
    poll_seconds: float = 10.0
    accelerator: Accelerator = "auto"
    limits: Limits = field(default_factory=Limits)
    monitor: str | None = None
    monitor_images: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise UserError(f"Serve.port is {self.port}: choose one up to 65535, or 0 for any free one.")
        if self.poll_seconds <= 0:
            raise UserError(f"Serve.poll_seconds is {self.poll_seconds}, it must be above 0.")
        check_watch(self.monitor, self.monitor_images)
        if not self.model:
            raise UserError("Serve.model is empty: name a registered model.")
        find_password(self.host)

    def run(self, directory: Path) -> ServeResult:  # noqa: ARG002 - a stage's signature; this one writes no file
        """Load the models, replay their golden images, and answer until Ctrl-C or SIGTERM.

        Raises:
            UserError: a model is missing or does not give here what it gave where it was saved, or the port is taken.
        """
        from graftline.serving.server import serve

        asked = [self.model] if isinstance(self.model, str) else list(self.model)
        sources = [find_source(reference, self.tracking) for reference in asked]
        names = [source.name for source in sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"Serve.model names {doubled[0]} twice: an address could mean either; leave one out.")
        served: dict[str, Slot] = {}

        def tell(address: str, slots: Mapping[str, Slot]) -> None:
            served.update(slots)
            self._tell(address, slots)

        counted = serve(
            sources,
            host=self.host,
            port=self.port,
            limits=self.limits,
            execution=Execution.onnx(self.accelerator),
            poll_seconds=self.poll_seconds,
            on_start=tell,
            watch=make_watch(self.monitor, self.monitor_images),
            password=find_password(self.host),
            allowed_hosts=self.allowed_hosts,
        )
        uris = [slot.model.origin.model_uri for slot in served.values()]  # of what answered last
        return ServeResult(
            facts={
                "model_uri": uris[0] if len(uris) == 1 else None,
                "requests": counted.num_requests,
                "images": counted.num_predictions,
            },
            table=[("requests", f"{counted.num_requests:,}"), ("images", f"{counted.num_predictions:,}")],
            requests=counted.num_requests,
            images=counted.num_predictions,
        )

    def _tell(self, address: str, slots: Mapping[str, Slot]) -> None:
        for slot in slots.values():
            if isinstance(slot.source, Registered) and (note := slot.source.note(slot.model.origin)) is not None:
                say(note)
            model, golden = slot.model, slot.model.verification
            change = golden.largest_probability_change
            print_facts(
                slot.source.name,
                [
                    ("model", model.origin.uri),
                    ("classes", f"{len(model.predictor.class_names)}: {', '.join(model.predictor.class_names[:6])}"),
                    ("digest", model.predictor.digest),
                    ("golden images", f"{golden.num_images} reproduced, a probability changes by {change:.1g} at most"),
                    ("follows", f"looked up every {self.poll_seconds:g} s" if slot.source.moves else "stays as it is"),
                ],
            )
        if not is_loopback(self.host):
            say(f"{self.host} may be reached by others, and the password is sent as it is: let a proxy add TLS.")
        say(f"{address}/        drop a photo here")
        login = f'-u ":${PASSWORD}" ' if PASSWORD in os.environ else ""
        say(
            f"curl {login}-F image=@photo.jpg {address}/predict        or ask from a shell; {address}/docs has the rest"
        )
        if watched := [slot.source.name for slot in slots.values() if slot.model.watch is not None]:
            names = "the models see" if len(watched) == len(slots) else f"{', '.join(watched)} sees"
            say(f"What {names} is sampled into {self.monitor}, for `{program()} drift model={watched[0]}`.")
        say("Ctrl-C stops it, once what waits is answered.")
