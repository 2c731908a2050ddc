"""Schedule: the retraining at set times, by an engine that exists."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, cast

import yaml
from hydra.utils import instantiate

from graftline.console import say, warn
from graftline.data.sources.archive import Archive
from graftline.data.sources.hugging_face import HuggingFace
from graftline.data.sources.table import Table
from graftline.errors import UserError
from graftline.files import write_text
from graftline.pipeline.program import program
from graftline.pipeline.retrain import Node, Retrain
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.stage import StageResult
from graftline.scheduling import cron, dagster, kubernetes, systemd
from graftline.scheduling.dagster import DagsterOptions
from graftline.scheduling.job import Job, JobOptions, shell_word
from graftline.scheduling.kubernetes import KubernetesOptions
from graftline.scheduling.local_time import (
    have_same_clock,
    local_timezone,
    machine_timezone,
    now_in,
    require_timezone,
)
from graftline.scheduling.times import EXAMPLES, Times, parse_times
from graftline.tracking.names import SCHEDULER

logger = logging.getLogger(__name__)

STAGE = "retrain"  # what runs
# variables that the run needs where they are set now, as no engine hands them on; a pod has other files and devices
POD_VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_S3_ENDPOINT_URL", "GRAFTLINE_REMOTE_GB"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
)
VARIABLES = (
    *POD_VARIABLES,
    *("PYTHONPATH", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME", "XDG_CACHE_HOME"),
    *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"),  # which lead to secrets and are none
    *("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
    *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
)
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "~/.aws/credentials",
    "AWS_SESSION_TOKEN": "~/.aws/credentials",
    "MLFLOW_TRACKING_PASSWORD": "~/.mlflow/credentials",
    "MLFLOW_TRACKING_TOKEN": "a login of ~/.mlflow/credentials in its stead",
    "HF_TOKEN": "the file that `hf auth login` writes",
}  # which stay out, and where else the run finds them
BY_MACHINE = ("cron", "systemd")  # engines whose times are those of the machine, whatever TZ was when they were told
OWN = ("every", "engine", "install", "remove", "job", "kubernetes", "dagster")  # keys that are not the run's

_ADDRESS = re.compile(r"_(URI|URL|URL_S3|PROXY)$", re.IGNORECASE)  # the name of a variable that holds one
_LOGIN = "keep user and password in ~/.mlflow/credentials"
_WITHOUT = {"MLFLOW_TRACKING_URI": f"{_LOGIN}, and give the address without them as tracking.uri"}
_BY_ENGINE = "set it where the engine gives its jobs their variables, and nobody else reads it"
ANEW = "a Dagster that runs is to be started anew"  # it reads the schedules once
DAGSTER = Path(__file__).with_name("dagster")  # what Dagster reads, in an environment of its own


@dataclass(frozen=True)
class ScheduleResult(StageResult):
    """What was printed, by file name, and the names of the schedules that were taken away."""

    files: dict[str, str]
    removed: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ScheduleStage(Retrain):
    """The stage ``schedule`` (Hydra target of conf/schedule.yaml): a retraining that is written down, not done.

    Attributes:
        every: when; parts that a comma divides.
        engine: what runs it.
        install: whether it is installed, too.
        remove: whether schedules of this directory are taken away instead.
        job: a `JobOptions`, as it is written.
        kubernetes: a `KubernetesOptions`, likewise.
        dagster: a `DagsterOptions`, likewise.
    """

    job: Node
    kubernetes: Node
    dagster: Node
    every: Sequence[str] | None = None
    engine: Literal["cron", "systemd", "kubernetes", "dagster"] = "cron"
    install: bool = False
    remove: bool = False

    def __post_init__(self) -> None:
        _ = self._job_options, self._kubernetes, self._dagster  # a mistake in them is found now
        if self.remove:
            return
        super().__post_init__()
        if not self.every:
            raise UserError(f"ScheduleStage.every is not given: write {EXAMPLES}.")
        self._times()
        if self.install and self.engine == "kubernetes":
            raise UserError(f"ScheduleStage.install: kubectl apply --filename {kubernetes.FILE} does that.")

    def run(self, directory: Path) -> ScheduleResult:  # type: ignore[override]  # it has the run's keys, and runs nothing
        """Print the schedule and install it, or take schedules away."""
        if self.remove:
            return self._remove(Path.cwd())
        (directory / "log.txt").touch(mode=0o600)  # it shows the schedule, which may hold a token
        self._check_training()
        job, times = self._job(directory), self._times()
        self._check_clock()
        self._check_secrets()
        files = self._files(job, times)
        for name, text in files.items():
            write_text(directory / name, text, private=True)
            say(f"\n{name}\n{text}")
        in_cluster = self.engine == "kubernetes"
        table = [
            ("runs", " ".join(map(shell_word, ["graftline", *job.arguments]))),
            ("in", str(kubernetes.WORK if in_cluster else job.directory)),
            ("next", self._next(times)),
            ("log", "kubectl logs of the pod" if in_cluster else str(job.directory / job.log)),
            ("installed", self._install(job, times, directory, files)),
        ]
        return ScheduleResult(files=files, facts={"engine": self.engine, "name": job.name}, table=table)

    def _check_training(self) -> None:
        """Find mistakes in the settings of the training now, and not at three in the night.

        What depends on the machine, which may be another one, the run itself looks at.

        Raises:
            UserError: there is one.
        """
        from graftline.backbones import catalog  # with torch
        from graftline.training.trainer import check_optimizer

        training = self._train_stage()
        catalog.check(training.backbone.name)
        check_optimizer(training.optim)

    def _times(self) -> Times:
        text = ",".join(self.every or ())
        try:
            return parse_times(text)
        except ValueError as error:
            raise UserError(f"ScheduleStage.every={text}: {error}; write {EXAMPLES}.") from error

    def _job(self, directory: Path) -> Job:
        files = RunDirectory(directory)
        typed: list[str] = yaml.safe_load(files.overrides.read_text(encoding="utf-8"))
        is_pod = self.engine == "kubernetes"
        shown = "whoever reads the CronJob has" if is_pod else "the list of processes shows to all while a run goes on"
        for key in sorted({_key(text) for text in typed if _may_hold_token(text)}):
            warn(
                f"{key} may hold a token, which {shown}: write it into a file "
                "conf/experiment/mine.yaml that others cannot read, and give experiment=mine."
            )
        return Job(
            name=self._job_options.name or self._images.dataset_name(),
            stage=STAGE,
            overrides=tuple(text.lstrip("+") for text in typed if not _is_own(text)),
            python=Path(sys.executable),
            directory=Path.cwd(),
            seconds=self._job_options.seconds,
            variables=_variables(self.engine),
            config_dir=files.read_config_dir(),
        )

    def _files(self, job: Job, times: Times) -> dict[str, str]:
        """Return what the engine reads, by file name."""
        if self.engine == "cron":
            return {"crontab": cron.cron_block(job, times)}
        if self.engine == "systemd":
            units = {f"{job.slug}.service": systemd.service_unit(job)}
            return units | {f"{job.slug}.timer": systemd.timer_unit(job, times)}
        if self.engine == "dagster":
            text = dagster.dagster_schedule(job, times, self._images.path, self._dagster, self._timezone)
            return {dagster.file_name(job): text}
        return {kubernetes.FILE: kubernetes.cron_job(job, times, self._folder, self._kubernetes, self._timezone)}

    @cached_property
    def _timezone(self) -> str:
        """The zone in which the engine reads the times."""
        if self.engine in BY_MACHINE:
            return machine_timezone()
        return (self._kubernetes.timezone if self.engine == "kubernetes" else None) or local_timezone()

    def _check_clock(self) -> None:
        """See that the engine knows the zone, and warn where it takes another one than TZ has."""
        if self.engine not in BY_MACHINE:
            require_timezone(self._timezone, "TZ")
        elif not have_same_clock(self._timezone, local_timezone()):
            zone = f"{self._timezone}, unless TZ={os.environ['TZ']} holds for it, too"
            warn(f"{self.engine} goes by the time zone of this machine, {zone}.")

    def _check_secrets(self) -> None:
        """Warn of a secret that the run may need and that is only set here."""
        is_server = self._tracking.uri.startswith("http")
        needed = {
            "AWS": is_server or str(self._images.path).startswith("s3:"),
            "MLFLOW": is_server,
            "HF": isinstance(self._images.source, HuggingFace),
        }
        for name, place in SECRETS.items():
            if needed[name.partition("_")[0]] and os.environ.get(name):
                there = "the Secret of kubernetes.secret" if self.engine == "kubernetes" else place
                warn(
                    f"{name} stays out of the schedule, which others may read, and the run may need it: see that it is "
                    f"in {there}."
                )

    def _next(self, times: Times) -> str:
        """Return when it runs next, by the engine's clock, whose zone is named if it is not that of this process."""
        is_ours = have_same_clock(self._timezone, local_timezone())
        now = datetime.now() if is_ours else now_in(self._timezone)
        found = ", ".join(f"{moment:%a %Y-%m-%d %H:%M}" for moment in islice(times.after(now), 3))
        return found if is_ours else f"{found} in {self._timezone}"

    @property
    def _folder(self) -> str | None:
        """The folder with the images, or with the table or archive that leads to them; None: they are in a package."""
        path = self._images.path
        if path is None:
            return None
        is_file = isinstance(self._images.source, (Table, Archive)) or Path(path).is_file()  # a pod's may not be here
        return str(PurePosixPath(path).parent) if is_file else path

    def _install(self, job: Job, times: Times, directory: Path, files: Mapping[str, str]) -> str:
        """Install the schedule if that is wanted, and say what became of it or is left to do."""
        if self.engine == "kubernetes":
            return f"no: kubectl apply --filename {shlex.quote(str(directory / kubernetes.FILE))}"
        if not self.install:
            return f"no: {program()} schedule with install=true does"
        if self.engine == "systemd":
            return systemd.install(job, times)
        if self.engine == "dagster":
            (text,) = files.values()
            dagster.install(job, text, DAGSTER)
            start = "make dagster" if program() == "make" else dagster.command(job.directory, DAGSTER)
            return f"for {start}, which runs it and shows it on http://127.0.0.1:3000; {ANEW}"
        cron.install(job, times)
        return f"in the crontab; {program()} schedule remove=true takes it out"

    def _remove(self, directory: Path) -> ScheduleResult:
        wanted = self._job_options.name
        found = [(engine, name) for engine, take in ENGINES.items() for name in take(str(directory), wanted)]
        for engine, name in found:
            say(f"{name} is taken out of {engine}{f'; {ANEW}' if engine == 'Dagster' else ''}.")
        if not found:
            of = "" if wanted is None else f"called {wanted} "
            say(f"No schedule {of}of {directory} is installed: nothing to take away.")
        names = [name for _, name in found]
        return ScheduleResult(files={}, removed=names, facts={"removed": names}, table=[("removed", f"{len(names)}")])

    @cached_property
    def _job_options(self) -> JobOptions:
        return cast("JobOptions", instantiate(dict(self.job)))

    @cached_property
    def _kubernetes(self) -> KubernetesOptions:
        return cast("KubernetesOptions", instantiate(dict(self.kubernetes)))

    @cached_property
    def _dagster(self) -> DagsterOptions:
        return cast("DagsterOptions", instantiate(dict(self.dagster)))


ENGINES = {
    "cron": cron.remove,
    "systemd": systemd.remove,
    "Dagster": dagster.remove,
}  # those that a schedule can be taken away from


def _key(text: str) -> str:
    """Return the key of an override."""
    return text.lstrip("+~").partition("=")[0]


def _is_own(text: str) -> bool:
    """Tell whether an override is the schedule's own, and not the run's."""
    group = _key(text).partition(".")[0]
    return group == "hydra" or group in OWN


def _may_hold_token(text: str) -> bool:
    """Tell whether an override may let whoever reads it speak in somebody's name, as the address of a web hook does."""
    _, _, value = text.partition("=")
    key = _key(text)
    return key.partition(".")[0] == "notify" and key != "notify.seconds" and value not in ("", "null")


def _variables(engine: str) -> dict[str, str]:
    """Return the variables that a run needs and no engine hands on, but none with a password; and what started it."""
    names = POD_VARIABLES if engine == "kubernetes" else VARIABLES
    found = {SCHEDULER: engine}
    for name in names:
        value = os.environ.get(name)
        login = "" if value is None else value.rpartition("://")[2].rpartition("@")[0]
        if value and _ADDRESS.search(name) and ":" in login:
            logger.warning(f"{name} holds a password and stays out of the schedule: {_WITHOUT.get(name, _BY_ENGINE)}.")
        elif value:
            found[name] = value
    return found
