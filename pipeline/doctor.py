"""Doctor: what is broken on this machine, or in what it needs of others, before a run finds out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from graftline.console import console
from graftline.pipeline.health import machine, packages
from graftline.pipeline.health.finding import Finding, State, checked
from graftline.pipeline.health.nodes import Nodes, check_nodes
from graftline.pipeline.stage import StageResult
from graftline.tracking.tracking import Tracking

MARKS: dict[State, tuple[str, str]] = {  # mark and style
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "broken": ("broken", "bold red"),
}


@dataclass(frozen=True, kw_only=True)
class DoctorResult(StageResult):
    """What the stage ``doctor`` found, by what it looked at."""

    findings: dict[str, list[Finding]]


@dataclass(frozen=True)
class Doctor:
    """The stage ``doctor`` (Hydra target of conf/doctor.yaml). It imports what is heavy only to see whether that loads.

    Attributes:
        tracking: where runs and models are tracked.
        model: whose golden images are replayed; None: those of the champions in a database of this machine.
        folders: where runs write.
        weights_dir: the weights directory.
        nodes: number of machines that are to train together, on each of which the same command is typed; None: one.
        devices: that train on each of them, a process on each; None: all GPUs.
        head: ``HOST:PORT`` at which they meet: the name of one of them, and a free port.
        images: that all of them have to see.
    """

    tracking: Tracking
    model: str | None = None
    folders: Sequence[str] = ("outputs", "data", "cache")
    weights_dir: str = "weights"
    nodes: int | None = None
    devices: int | None = None
    head: str | None = None
    images: str | None = None

    def run(self, directory: Path) -> DoctorResult:  # noqa: ARG002 - a stage's signature; this one writes no file
        """Look at everything, and print a line for each finding as soon as its group is known."""
        findings: dict[str, list[Finding]] = {}
        for title, checks in self._groups().items():
            findings[title] = [one for name, check in checks.items() for one in checked(name, check)]
            _print(title, findings[title])
        every = [one for group in findings.values() for one in group]
        named = {state: [one.name for one in every if one.state == state] for state in MARKS}
        outcomes: list[tuple[str, State]] = [("broken", "broken"), ("warnings", "warning")]
        return DoctorResult(
            findings=findings,
            failed=bool(named["broken"]),
            facts={
                "broken": len(named["broken"]),
                "warnings": len(named["warning"]),
                "findings": {title: [asdict(one) for one in group] for title, group in findings.items()},
            },
            table=[
                (title, f"{len(named[state])}: {', '.join(dict.fromkeys(named[state]))}" if named[state] else "none")
                for title, state in outcomes
            ],
        )

    def _groups(self) -> dict[str, dict[str, Callable[[], Iterator[Finding]]]]:
        """Return the checks, by title and by the name that a check has if it fails; none has run yet."""
        installed = packages.installed_versions()
        groups: dict[str, dict[str, Callable[[], Iterator[Finding]]]] = {
            "Packages": {
                "Python": packages.check_python,
                "versions": lambda: packages.check_versions(
                    installed, packages.own_requirements(), packages.read_lock()
                ),
                "clashes": lambda: packages.check_clashes(installed),
                "imports": packages.check_imports,
            },
            "Machine": {
                "GPU": lambda: machine.check_gpu(machine.find_gpus()),
                "shared memory": machine.check_shared_memory,
                "disk": lambda: machine.check_disk(self.folders),
                "locale": machine.check_locale,
                "time zone": machine.check_time_zone,
            },
            "Tracking": {"tracking": self._check_tracking},
            "Models": {"weights": self._check_weights},
        }
        if self.nodes is not None:
            planned = Nodes(self.nodes, self.devices, self.head or "", self.images)
            groups["Nodes"] = {"rendezvous": lambda: check_nodes(planned)}
        if self.model is None:
            groups["Models"]["golden images"] = self._check_champions
        else:
            groups["Models"][self.model] = lambda: self._check_model(str(self.model))
        return groups

    def _check_tracking(self) -> Iterator[Finding]:
        from graftline.pipeline.health.server import check_tracking

        yield from check_tracking(self.tracking)

    def _check_weights(self) -> Iterator[Finding]:
        from graftline.pipeline.health.models import check_weights

        yield from check_weights(self.weights_dir)

    def _check_champions(self) -> Iterator[Finding]:
        from graftline.pipeline.health.models import check_champions

        yield from check_champions(self.tracking)

    def _check_model(self, model: str) -> Iterator[Finding]:
        from graftline.pipeline.health.models import check_model

        yield from check_model(model, self.tracking)


def _print(title: str, findings: Sequence[Finding]) -> None:
    """Print a group; lines are not broken, so that a command can be copied."""
    console.print(title, style="bold")
    width = max(len(mark) for mark, _ in MARKS.values())
    for one in findings:
        mark, style = MARKS[one.state]
        line = Text.assemble(f"{'':{width - len(mark)}}", (mark, style), f"  {one.name:<17}  {one.text}")
        console.print(line, soft_wrap=True)
