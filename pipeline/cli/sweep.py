"""The runs that were asked for, one after the other, and several of them side by side."""

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hydra.utils import instantiate
from omegaconf import DictConfig

from graftline.console import logged, print_table, say
from graftline.errors import find_cause
from graftline.files import check_folder
from graftline.pipeline.cli.composed_stage import ComposedStage, DirectoryInUseError
from graftline.pipeline.cli.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_MISTAKE, Outcome, report_error
from graftline.pipeline.cli.ray_sweep import ray_cluster_of, run_spread
from graftline.pipeline.cli.ray_training import RayTraining
from graftline.pipeline.cli.wording import worded
from graftline.pipeline.runs.directory import RunDirectory, overrides_of
from graftline.processes import terminate
from graftline.ray_board import shown
from graftline.ray_cluster import RayCluster

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

TRACKED = ("train", "evaluate")  # stages that start a run in MLflow
MOST_DESCRIBED = 50  # runs in the description of their group, for which MLflow has 8,000 letters


def run_all(jobs: Sequence[ComposedStage]) -> int:
    """Run the jobs, those of several grouped under one parent run in MLflow; returns the highest exit code.

    A run that fails does not stop the others; Ctrl-C stops all. What is told of several of them is kept in a log.txt of
    theirs, beside each run's own.
    """
    signal.signal(signal.SIGTERM, terminate)  # a scheduler that stops us is the same as Ctrl-C
    if len(jobs) == 1:
        return attempt(jobs[0]).code
    directory = jobs[0].directory.parent
    with worded(jobs[0].config, jobs[0].overrides):
        ray_cluster = _cluster_of(jobs)
    check_folder(directory, "hydra.run.dir")
    directory.mkdir(parents=True, exist_ok=True)
    with logged(directory / "log.txt"):
        try:
            with worded(jobs[0].config, jobs[0].overrides):
                return _run_group(jobs, ray_cluster)
        except KeyboardInterrupt:
            say(f"Interrupted. {directory}")
            return EXIT_INTERRUPTED
        except Exception as error:
            report_error(error, directory)
            return EXIT_MISTAKE


def attempt(composed: ComposedStage, prepare: Callable[[ComposedStage], ComposedStage | None] | None = None) -> Outcome:
    """Run a stage, and turn what goes wrong into one clear sentence and an exit code.

    Args:
        composed: the stage.
        prepare: returns what is run in its place, or None where it is done; what it raises is told, too. None: the
            stage itself is run.
    """
    signal.signal(signal.SIGTERM, terminate)  # as in `run_all`: this may be a worker
    try:
        with worded(composed.config, composed.overrides):
            if prepare is not None:
                if (prepared := prepare(composed)) is None:
                    return Outcome(EXIT_DONE)
                composed = prepared
            if (on_ray := RayTraining.of(composed)) is not None:
                return Outcome(on_ray.run())
        result = composed.run()
    except DirectoryInUseError as error:
        return Outcome(EXIT_MISTAKE, report_error(error))
    except (Exception, KeyboardInterrupt) as error:
        with logged(composed.directory / "log.txt"):
            if find_cause(error, KeyboardInterrupt):  # also at a moment that a library made an error of its own of
                say(f"Interrupted. {composed.directory}")
                return Outcome(EXIT_INTERRUPTED)
            return Outcome(EXIT_MISTAKE, report_error(error, composed.directory))
    return Outcome(EXIT_MISTAKE if result.failed else EXIT_DONE)


def _run_group(jobs: Sequence[ComposedStage], ray_cluster: RayCluster | None) -> int:
    is_tracked, differing = jobs[0].name in TRACKED, _differing(jobs)
    say(f"Several values for a key: one run each{', grouped under one parent run' if is_tracked else ''}.")
    parent = _start_parent(jobs, differing) if is_tracked else None
    codes: dict[int, int] = {}  # by the number of each run that has ended
    status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
    named = [
        job.with_value("name", _name(job, own)) if is_tracked and job.config.name is None else job
        for job, own in zip(jobs, differing, strict=True)
    ]
    if parent is not None:
        named = [job.with_value("tracking.parent_run_id", parent.id) for job in named]
    try:
        for number, code in _run_each(named, ray_cluster):
            was_interrupted = RunDirectory(jobs[number].directory).read_result().get("interrupted")
            codes[number] = EXIT_INTERRUPTED if code == EXIT_DONE and was_interrupted else code  # it has a model
            if codes[number] == EXIT_INTERRUPTED:
                break
        else:
            status = "FAILED" if any(codes.values()) else "FINISHED"
    finally:
        try:
            columns, rows = _compare(jobs, sorted(codes))
            if parent is not None:
                _describe(parent, columns, rows, len(jobs))
        finally:
            if parent is not None:
                parent.finish(status)
    print_table(f"{len(rows)} runs", columns, rows)
    say(str(jobs[0].directory.parent))
    if any(codes.values()) and len({str(job.config.data.path) for job in jobs if "data" in job.config}) > 1:
        say("Should a comma belong to the path, put quotes around it: data.path='cats, dogs'.")
    return max(codes.values())


def _cluster_of(jobs: Sequence[ComposedStage]) -> RayCluster | None:
    """Return the cluster over which runs are to be spread; None: they run here, one after the other.

    Raises:
        UserError: a run that cannot be spread, or that Ray cannot start.
    """
    started_by_ray = [job for job in jobs if RayTraining.of(job) is not None]  # each of which takes the cluster itself
    return None if started_by_ray else ray_cluster_of(jobs)


def _run_each(jobs: Sequence[ComposedStage], ray_cluster: RayCluster | None) -> Iterator[tuple[int, int]]:
    """Run jobs, here one by one or spread over a cluster; yields the number and exit code of each that has ended."""
    if ray_cluster is None:
        for number, job in enumerate(jobs):
            say(f"\n{_typed(job)}")
            yield number, attempt(job).code
        return
    say(f"Spread over Ray, {ray_cluster.slots().number} at a time; each says what it does in its own log.txt.")
    with shown("Runs", [f"Run {job.directory.name}" for job in jobs]) as board:
        for number, outcome in run_spread(jobs, ray_cluster, board):
            job = jobs[number]
            say(f"{_typed(job)}: {_in_words(outcome, job.directory)}")
            yield number, outcome.code


def _typed(job: ComposedStage) -> str:
    """Return the number of a run and what was typed for it."""
    return f"Run {job.directory.name}: {' '.join(overrides_of(job.overrides, ''))}"


def _in_words(outcome: Outcome, directory: Path) -> str:
    """Return how a run ended, with its score or the reason."""
    if outcome.code == EXIT_INTERRUPTED:
        return "interrupted"
    if outcome.code != EXIT_DONE:
        return f"failed. {outcome.told}".rstrip()
    accuracy, interval = _accuracy(directory)
    return f"done, test accuracy {accuracy} ({interval})" if interval else "done"


def _differing(jobs: Sequence[ComposedStage]) -> list[list[str]]:
    """Return for each job those of its overrides that not all of them have, in the order typed."""
    common = set.intersection(*(set(job.overrides) for job in jobs))
    return [overrides_of([one for one in job.overrides if one not in common], "") for job in jobs]


def _name(job: ComposedStage, own: Sequence[str]) -> str:
    """Return a name for a run of several: its network and its own values; of a group the choice, else key and value."""
    backbone, swept = job.config.get("backbone"), {one.partition("=")[0] for one in own}
    head = "+stages" if backbone and backbone.get("head") == "stages" and "backbone.head" not in swept else ""
    parts = []
    for key, _, value in (one.partition("=") for one in own):
        is_group = isinstance(job.config.get(key), DictConfig)
        told = value if is_group else f"{key.rpartition('.')[2]}={value}"
        parts.append(told + head if key == "backbone" else told)
    return " ".join(parts if not backbone or "backbone" in swept else [backbone.name + head, *parts])


def _start_parent(jobs: Sequence[ComposedStage], differing: Sequence[Sequence[str]]) -> "Run":
    """Start the run under which the others are grouped, named after the keys that were given several values."""
    job, keys = jobs[0], dict.fromkeys(one.partition("=")[0] for own in differing for one in own)
    experiment = instantiate(job.config.data).dataset_name()  # as its runs have it, or MLflow would not nest them
    parent: Run = instantiate(job.config.tracking).start_group(
        name=f"{len(jobs)} runs: {', '.join(keys)}", experiment=experiment, directory=job.directory.parent
    )
    return parent


def _describe(parent: "Run", columns: Sequence[str], rows: Sequence[Sequence[str]], number: int) -> None:
    """Say on the page of a group what came of its runs."""
    from graftline.report.run_note import markdown_table  # scikit-learn takes a second

    head = f"**{number} runs**" if len(rows) == number else f"**{number} runs**, of which {len(rows)} ended"
    more = [f"{len(rows) - MOST_DESCRIBED} more are below."] if len(rows) > MOST_DESCRIBED else []
    parent.describe("\n\n".join([head, *([markdown_table(columns, rows[:MOST_DESCRIBED])] if rows else []), *more]))


def _compare(jobs: Sequence[ComposedStage], ended: Sequence[int]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the columns and rows of a table of the runs that have ended, each with its test accuracy or outcome."""
    outcomes = [_accuracy(jobs[number].directory) for number in ended]
    columns: tuple[str, ...] = ("test accuracy", "95 % interval")
    if not any(outcome[1] for outcome in outcomes):  # a stage that tests nothing
        columns, outcomes = ("outcome",), [(outcome[0] or "done",) for outcome in outcomes]
    differing = _differing(jobs)
    rows = [
        (jobs[number].directory.name, ", ".join(differing[number]), *outcome)
        for number, outcome in zip(ended, outcomes, strict=True)
    ]
    return ("run", "what differs", *columns), rows


def _accuracy(directory: Path) -> tuple[str, ...]:
    """Return a run's test accuracy and its interval, in words, from its result.json."""
    from graftline.evaluation.metrics import Interval, format_interval, format_score  # scikit-learn takes a second

    result = RunDirectory(directory).read_result()
    found = result["metrics"].get("accuracy") if result else None
    if found is None:
        return "failed" if not result else "", ""
    accuracy = Interval(**found)
    return format_score("accuracy", accuracy.value), format_interval("accuracy", accuracy)
