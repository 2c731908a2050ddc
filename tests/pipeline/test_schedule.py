"""A schedule as a user makes it: printed, installed, fired by a real cron, removed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from workplace import PROJECT, TINY, Workplace

from graftline.pipeline import schedule
from graftline.pipeline.__main__ import main
from graftline.scheduling import local_time
from graftline.scheduling.local_time import now_in
from graftline.tracking.promotions import Promotions
from graftline.tracking.tracking import Tracking

DAEMON = shutil.which("cron", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# tables of its own: the daemon reads no other, and no other daemon reads these
ALONE = """
mount -t tmpfs none /var/spool/cron/crontabs && mount -t tmpfs none /etc/cron.d && mount -t tmpfs none /run &&
: > {empty} && mount --bind {empty} /etc/crontab && echo ready && exec {cron} -f
"""


@dataclass(frozen=True)
class Cron:
    """A real cron daemon in a mount namespace of its own.

    Attributes:
        place: where its runs run.
        begin: what to put before a command to run it there.
    """

    place: Workplace
    begin: list[str]

    def run(self, *overrides: str) -> str:
        """Run the stage as a user of this cron, and return what it prints."""
        command = [*self.begin, *self.place.command("schedule", *overrides)]
        done = subprocess.run(command, env=self.place.environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def can_unshare() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _installed(
    request: pytest.FixtureRequest, color_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cron | None]:
    """A schedule of every minute, which begins before the other tests: cron's minute is theirs too."""
    wanted = any(item.name == test_cron_fires_a_run_within_a_minute.__name__ for item in request.session.items)
    if not wanted or DAEMON is None or os.geteuid() != 0 or shutil.which("unshare") is None or not can_unshare():
        yield None
        return
    folder = tmp_path_factory.mktemp("cron")
    place = Workplace(folder / "50% of it's $HOME")
    shutil.copytree(color_folder, images := place.root / "colors (100%)")
    script = ALONE.format(empty=shlex.quote(str(folder / "empty")), cron=DAEMON)
    command = ["unshare", "--mount", "sh", "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"  # from now on no table but its own is in reach
    cron = Cron(place, ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", f"--wdns={place.root}"])
    typed = [*TINY, "trainer.max_epochs=1", "data=folder", f"data.path={images}"]
    cron.run("every=* * * * *", "install=true", "job.name=colors", *typed)
    yield cron
    process.kill()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.wait()


@pytest.fixture
def fired(_installed: Cron | None) -> Cron:
    if _installed is None:
        pytest.skip("needs cron, and root who may have a mount namespace: on Debian, apt-get install cron")
    return _installed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last(folder: Path) -> Path:
    return max((folder / "outputs" / "schedule").glob("20*"))


def test_the_run_gets_what_was_typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["data=folder", "data.path=photos of 50%", "freeze=none", "seed=3", "optim.lr=1e-3"]
    assert main(["schedule", "every=Mon,Thu 03:00", "job.name=pets", "job.hours=2", *typed]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("0 3 * * 1,4 cd "))
    assert "timeout --kill-after=60 7200 " in line
    words = shlex.split(line.replace(r"\%", "%"))
    begin = words.index("graftline") + 2
    assert sorted(words[begin : words.index(">>")]) == sorted(typed)
    assert "GRAFTLINE_SCHEDULER=cron" in words  # the ledger says who decided
    assert (last(folder) / "crontab").read_text() in out
    assert "graftline schedule with install=true does" in out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train.label_smoothing=3", r"^train\.label_smoothing is 3(\.0)?, it must be at least 0 and below 1"),
        ("optim.weight_decay=-1", r"^The optimizer cannot be made"),
        ("freeze.depths=[]", r"freeze\.depths"),
    ],
)
def test_a_mistake_is_told_by_day(folder: Path, typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And not by the first run, which nobody looks at."""
    assert main(["schedule", "every=daily 03:00", "freeze=measured", typed]) == 1
    out = capsys.readouterr().out
    assert re.search(said, out.strip().splitlines()[-1]), out
    assert not list(folder.rglob("crontab"))


def test_the_page_shows_what_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in schedule.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    page = (PROJECT / "docs" / "scheduling.md").read_text(encoding="utf-8")
    shown = re.findall(r"```sh\nmake schedule ([^\n]*)\n```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 3
    for typed, printed in shown:
        assert main(["schedule", *(word for word in shlex.split(typed) if word != "install=true")]) == 0
        files = [file for file in last(folder).iterdir() if f"{file.name}\n" in printed]
        assert files
        for file in files:
            text = file.read_text(encoding="utf-8").replace(sys.executable, "/home/ann/graftline/.venv/bin/python")
            assert f"{file.name}\n{text.replace(str(folder), '/home/ann/pets')}" in printed


@pytest.mark.parametrize("engine", ["systemd", "kubernetes"])
def test_other_engines_get_their_files(folder: Path, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schedule", "every=1st 03:00", f"engine={engine}", "freeze=none"]) == 0
    files = sorted(file for file in last(folder).iterdir() if file.suffix in (".service", ".timer", ".yaml"))
    assert len(files) == {"systemd": 2, "kubernetes": 1}[engine]
    out = capsys.readouterr().out
    assert all(file.read_text() in out for file in files)
    if engine == "kubernetes":
        spec = yaml.safe_load(files[0].read_text())["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert spec["containers"][0]["args"] == [schedule.STAGE, "freeze=none"]


@pytest.mark.parametrize(
    ("typed", "mounted"),
    [
        (["data=folder", "data.path=/images/photos.v2"], "/images/photos.v2"),
        (["data=table", "data.path=/images/labels"], "/images"),
        (["data=archive", "data.path=/images/pets.tar.gz"], "/images"),
    ],
)
def test_a_pod_has_the_folder_with_the_images(folder: Path, typed: list[str], mounted: str) -> None:
    assert main(["schedule", "every=hourly", "engine=kubernetes", *typed]) == 0
    spec = yaml.safe_load((last(folder) / "cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]["template"][
        "spec"
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["images"] == mounted


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "every is not given: write hourly, "),
        (["every=Mon 25:00"], "every=Mon 25:00: 25:00 is no time of day from 00:00 to 23:59; write hourly, "),
        (["every=hourly", "engine=kubernetes", "install=true"], "install: kubectl apply --filename cronjob.yaml"),
        (["every=hourly", "engine=at"], "engine=at: must be cron or systemd or kubernetes"),
        (
            ["every=hourly", "seed=0,1"],
            "These overrides ask for 2 runs of schedule, of which each would replace the one before",
        ),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    folder: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", *overrides]) == 1
    assert message in capsys.readouterr().out


def test_there_may_be_nothing_to_take_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # the user's own crontab is not even read
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    assert main(["schedule", "remove=true"]) == 0
    assert f"No schedule of {folder} is installed: nothing to take away." in capsys.readouterr().out


def test_a_dagster_that_runs_is_to_be_started_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has read the schedules when it started: it goes on to start what is gone, and knows nothing of what is new."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    assert main(["schedule", "every=hourly", "engine=dagster", "install=true", "job.name=pets"]) == 0
    assert "; a Dagster that runs is to be started anew\n" in capsys.readouterr().out
    assert main(["schedule", "remove=true"]) == 0
    assert "pets is taken out of Dagster; a Dagster that runs is to be started anew.\n" in capsys.readouterr().out


def test_what_storage_and_servers_need_goes_along_but_no_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address, key, uri = "http://minio:9000", "/etc/key.json", "http://server:5000"
    for name, value in (
        *(("AWS_ENDPOINT_URL", address), ("GOOGLE_APPLICATION_CREDENTIALS", key), ("NO_PROXY", "localhost")),
        *(("HTTPS_PROXY", "me:se/same@proxy:3128"), ("HTTP_PROXY", "http://proxy:3128")),
        ("PYTHONPATH", "/opt/x:lib@2"),
        *(("AWS_SECRET_ACCESS_KEY", "sesame"), ("MLFLOW_TRACKING_PASSWORD", "sesame")),
        ("MLFLOW_TRACKING_URI", "http://me:sesame@server:5000"),
    ):
        monkeypatch.setenv(name, value)
    assert main(["schedule", "every=hourly"]) == 0
    out = capsys.readouterr().out
    assert "stays out of the schedule, which others may read" not in out, "the images and MLflow are here"
    for word in (
        f"AWS_ENDPOINT_URL={address}",
        f"GOOGLE_APPLICATION_CREDENTIALS={key}",
        "HTTP_PROXY=http://proxy:3128",
        "PYTHONPATH=/opt/x:lib@2",
    ):
        assert f" {word} " in out
    assert "MLFLOW_TRACKING_URI holds a password and stays out of the schedule: keep user and password in" in out
    assert "HTTPS_PROXY holds a password and stays out of the schedule: set it where the engine gives" in out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["schedule", "every=hourly", "engine=kubernetes", f"tracking.uri={uri}"]) == 0
    out += (pod := capsys.readouterr().out)
    (container,) = yaml.safe_load((last(folder) / "cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"][
        "template"
    ]["spec"]["containers"]
    given = {one["name"]: one.get("value") for one in container["env"]}
    assert (given["MLFLOW_TRACKING_URI"], given["AWS_ENDPOINT_URL"]) == (uri, address)
    assert not {"GOOGLE_APPLICATION_CREDENTIALS", "HTTP_PROXY"} & set(given), "a pod has other files and proxies"
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        assert f"{name} stays out of the schedule, which others may read" in pod
    assert "in the Secret of kubernetes.secret" in pod
    assert "~/" not in pod.partition("stays out")[2], "a pod has no such folder"
    assert "sesame" not in out
    assert "se/same" not in out


@pytest.mark.parametrize(
    "typed",
    [
        "tracking.uri=http://me:sesame@server:5000",
        "features.shared=s3://me:sesame@bucket/kept",
        "notify.url=https://me:sesame@hooks/T",
        "data.path=https://me:sesame@host/photos.zip",
    ],
)
def test_a_password_in_an_address_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], typed: str) -> None:
    assert main(["schedule", "every=hourly", typed]) == 1
    out = capsys.readouterr().out
    assert typed.partition("=")[0] in out
    assert "leave it out" in out or "without it" in out
    assert "sesame" not in out
    assert not list(folder.rglob("crontab"))


@pytest.mark.parametrize("key", ["notify.url", "notify.command"])
def test_a_token_of_a_hook_belongs_into_a_file(folder: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["schedule", "every=hourly", "notify.seconds=5", f"{key}=https://hooks/T/sesame"]
    told = f"! {key} may hold a token, which"
    assert main([*typed, "engine=kubernetes"]) == 0
    assert f"{told} whoever reads the CronJob has: write it into a file conf/" in capsys.readouterr().out
    assert main(typed) == 0
    assert f"{told} the list of processes shows to all while a run goes on: write it into" in capsys.readouterr().out
    written = [file for file in last(folder).rglob("*") if file.is_file() and "sesame" in file.read_text()]
    assert {"crontab", "log.txt"} <= {file.name for file in written}
    assert {file.stat().st_mode & 0o077 for file in written} == {0}, "nobody else may read it"
    experiment = folder / "conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    node, name = key.split(".")
    experiment.write_text(f"# @package _global_\n{node}: {{{name}: 'https://hooks/T/sesame'}}\n")
    assert main(["schedule", "every=hourly", "experiment=mine", f"{key}=null"]) == 0
    out = capsys.readouterr().out
    assert "experiment=mine" in out
    assert "sesame" not in out
    assert "may hold a token" not in out


@pytest.mark.parametrize(
    ("typed", "zone", "told"),
    [
        ([], "Etc/UTC", "cron goes by the time zone of this machine, Etc/UTC, unless TZ=Asia/Tokyo holds for it, too."),
        (["engine=kubernetes", "kubernetes.timezone=Pacific/Kiritimati"], "Pacific/Kiritimati", ""),
        (["engine=kubernetes"], "Asia/Tokyo", ""),
    ],
)
def test_the_next_times_are_those_of_the_engines_clock(
    folder: Path,
    typed: list[str],
    zone: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        monkeypatch.setattr(local_time, "LOCALTIME", Path("/usr/share/zoneinfo/Etc/UTC"))
        before = now_in(zone)
        assert main(["schedule", "every=* * * * *", *typed]) == 0
        after = now_in(zone)
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("next "))
    expected = {f"{moment + timedelta(minutes=1):%a %Y-%m-%d %H:%M}" for moment in (before, after)}
    assert any(line.split("  ", 1)[1].strip().startswith(moment) for moment in expected), (line, expected)
    assert line.endswith(f" in {zone}") == (zone != "Asia/Tokyo")
    assert told in out
    assert ("goes by the time zone" in out) == bool(told)


def test_cron_fires_a_run_within_a_minute(fired: Cron) -> None:
    """In a folder with a difficult name, as in an environment of cron's own."""
    outputs = fired.place.root / "outputs"
    log = outputs / "schedule" / "colors.log"
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and not (log.exists() and f"{schedule.STAGE}: done in" in log.read_text()):
        time.sleep(0.5)
    assert f"{schedule.STAGE}: done in" in log.read_text()
    assert len(list((outputs / schedule.STAGE).glob("20*/result.json"))) >= 1
    (line, *_) = Promotions(Tracking(uri=f"sqlite:///{fired.place.root / 'mlflow.db'}"), "colors-100").read().lines
    assert line.decision.author.scheduler == "cron", "the ledger says what started it"
    assert "colors is taken out of cron." in fired.run("remove=true")
    assert subprocess.run([*fired.begin, "crontab", "-l"], capture_output=True).returncode == 1, "none is left"
