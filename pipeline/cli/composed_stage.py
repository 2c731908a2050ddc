"""From overrides to a stage that can be run, in this process, once or as often as one likes."""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from graftline.console import console, logged, print_facts, say
from graftline.errors import UserError, first_line
from graftline.files import check_folder, write_json, write_text
from graftline.locks import Lock
from graftline.pipeline.cli.build import build
from graftline.pipeline.cli.gather import LIST, gather
from graftline.pipeline.cli.hydra_conf import compose_config, output_directory, session
from graftline.pipeline.cli.resume import resume, resumed_directory
from graftline.pipeline.cli.validate import validate
from graftline.pipeline.cli.wording import worded
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.stage import Stage, StageResult
from graftline.pipeline.training.further_process import first_rank, further_launch

SINGLE = {  # stages that decide or install one thing at a time, and what to do instead
    "promote": "give each key one value, and promote another model by a command of its own",
    "rollback": "give each key one value, and go further back by a command of its own",
    "schedule": "give each key one value, and the others calls of their own, each with a job.name",
}


@dataclass(frozen=True)
class ComposedStage:
    """A stage with its configuration, what led to it, and where it writes to.

    Attributes:
        name: of its file at the root of conf/.
        config: its configuration.
        overrides: those that were typed.
        directory: the output directory.
        config_dir: folder of the user's own options that was named beside conf/, absolute; None: none was.
    """

    name: str
    config: DictConfig
    overrides: list[str]
    directory: Path
    config_dir: Path | None = None

    @cached_property
    def stage(self) -> Stage:
        """The stage itself; a UserError says which values do not go together."""
        with worded(self.config):
            return build(self.config)

    def with_value(self, key: str, value: Any) -> "ComposedStage":
        """Return the stage with another value for a key."""
        config = self.config.copy()
        OmegaConf.update(config, key, value, force_add=True)
        return replace(self, config=config)

    @property
    def _keeps_result(self) -> bool:
        """Whether the result of an earlier run in the directory stays until there is another one.

        A run that is resumed is that run; a retraining may still have to tell what the last one has decided.
        """
        return self.name == "retrain" or OmegaConf.select(self.config, "train.resume") is not None

    def run(self, directory: Path | None = None) -> StageResult:
        """Run the stage; configuration, log and ``result.json`` go to the directory, which is printed last.

        Raises:
            UserError: a mistake of the user's, in the words of the configuration.
            DirectoryInUseError: another run is writing to the directory, in which nothing was changed.
            SystemExit: this is a further process of a distributed training, which Lightning, torchrun or srun started
                by the program's own command line; it has trained along. Or it is a loader process, which imports the
                program.
        """
        from graftline.pipeline.worker import WORKER, follow, work  # it reports errors as the command line does

        if work_for := os.environ.get(WORKER):
            sys.exit(work(Path(work_for)))
        if (launch := further_launch()) is not None:
            sys.exit(follow(launch))
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
            sys.exit(
                "The processes that load images import this program and would train again: "
                'put what it does under if __name__ == "__main__":'
            )
        _ = first_rank()
        directory = directory or self.directory
        with worded(self.config, self.overrides), ExitStack() as held:
            with self._failure_told(directory):
                check_folder(directory, "hydra.run.dir")
                held.enter_context(_claimed(directory))
                held.enter_context(logged(directory / "log.txt"))
                files = self._write_files(directory)
            start = time.perf_counter()
            result = self.stage.run(directory)
            seconds = round(time.perf_counter() - start, 1)
            content = {"stage": self.name, "seconds": seconds, **result.facts, "metrics": result.metrics}
            write_json(files.result, content)
            console.print()
            print_facts(f"{self.name}: done in {seconds:.0f} s", result.table)
            say(str(directory))
        return result

    def _write_files(self, directory: Path) -> RunDirectory:
        """Write down what is run, before it is."""
        files = RunDirectory(directory)
        write_text(files.config, OmegaConf.to_yaml(self.config), private=True)
        write_text(files.overrides, yaml.safe_dump(self.overrides, allow_unicode=True), private=True)
        files.write_config_dir(self.config_dir)
        if not self._keeps_result:
            files.result.unlink(missing_ok=True)
        return files

    @contextmanager
    def _failure_told(self, directory: Path) -> Iterator[None]:
        """Let a retraining, which nobody watches, tell that it cannot begin, as on a full disk."""
        try:
            yield
        except DirectoryInUseError:
            raise
        except (OSError, UserError) as error:
            if self.name == "retrain":
                stage: Any = self.stage  # a `Retrain`, which this package does not import
                stage.tell_failure(error, directory)
            raise


class DirectoryInUseError(UserError):
    """Another run is writing to an output directory."""


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Keep others from a run's output directory during the block."""
    file = directory / ".hydra" / "lock"
    try:
        lock = Lock(file, shared=False, temporary=True)  # the kernel frees it, however the run ends
    except BlockingIOError as error:
        raise DirectoryInUseError(
            f"{directory} is the output directory of a run that is still going: wait for it, or give another "
            "one as hydra.run.dir."
        ) from error
    with lock:
        yield


def compose(stage: str, overrides: Sequence[str] = (), config_dir: Path | None = None) -> ComposedStage:
    """Compose a stage, named as its file at the root of conf/ or of a folder of your own.

    Raises:
        UserError: mistakes in the overrides, all of them; or several values for a key.
    """
    composed = compose_all(stage, overrides, config_dir)
    if len(composed) > 1:
        raise UserError(f"These overrides ask for {len(composed)} runs: give each key one value.")
    return composed[0]


def compose_all(stage: str, overrides: Sequence[str], config_dir: Path | None = None) -> list[ComposedStage]:
    """Compose a stage once for each combination of values; one that is resumed has the configuration that it had.

    Raises:
        UserError: mistakes in the overrides, all of them; or values that do not go together, in any of the runs.
    """
    with session(stage, config_dir):
        resumed = resumed_directory(stage, overrides)
        if resumed is not None:
            composed = [ComposedStage(stage, *resume(stage, overrides, resumed), resumed)]
            config_dir = config_dir or RunDirectory(resumed).read_config_dir()
        else:
            composed = _jobs(stage, overrides)
    if config_dir is not None:
        composed = [replace(one, config_dir=config_dir.absolute()) for one in composed]
    try:
        for one in composed:
            _ = one.stage
    except InstantiationException as error:
        if resumed is None:
            raise
        raise UserError(f"The run in {resumed} is of another version of graftline: {first_line(error)}.") from error
    return composed


def _jobs(stage: str, overrides: Sequence[str]) -> list[ComposedStage]:
    checked = validate(stage, overrides)
    if LIST in checked.config:
        jobs = gather(stage, overrides, checked)
    else:
        jobs = [(compose_config(stage, lines), lines) for lines in checked.jobs]
    if len(jobs) > 1 and stage in SINGLE:
        raise UserError(
            f"These overrides ask for {len(jobs)} runs of {stage}, of which each would replace the one before: "
            f"{SINGLE[stage]}."
        )
    root = output_directory(stage, checked.jobs[0], of_several=len(jobs) > 1)
    return [
        ComposedStage(stage, *job, root / str(number) if len(jobs) > 1 else root) for number, job in enumerate(jobs)
    ]
