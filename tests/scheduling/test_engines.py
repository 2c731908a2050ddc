"""What the engines' own tools read in our files: every sign of a path and an override comes through."""

import json
import os
import re
import shutil
import subprocess
import sys
import zoneinfo
from pathlib import Path

import pytest
import yaml

from graftline.errors import UserError
from graftline.pipeline.schedule import DAGSTER
from graftline.scheduling import cron, dagster, local_time, systemd
from graftline.scheduling.job import Job, JobOptions
from graftline.scheduling.kubernetes import KubernetesOptions, cron_job, object_name
from graftline.scheduling.local_time import local_timezone, machine_timezone
from graftline.scheduling.times import parse_times

WORDS = (
    "data=folder",
    "data.path='/media/50% $HOME/it\\'s \"here\"'",
    "freeze.frozen=[conv_stem.*,blocks.0]",
    "name=Ünïcode — `date` $(date) !1 #2 ; & | < > ~ %n %% %h \\ \\\\ \\% \\\\% \\\\\\ '\\\\'",
    "weights.dir=$$PATH${PATH}",
    "name=",
)
TIMES = parse_times("Mon,Thu 03:00")
ZONES = next((Path(folder) for folder in zoneinfo.TZPATH if Path(folder, "Europe/Berlin").is_file()), None)
needs_cron = pytest.mark.skipif(
    shutil.which("crontab") is None or os.geteuid() != 0,
    reason="cron is missing, or this is not root, who alone writes another user's crontab: apt-get install cron",
)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt-get install systemd"
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job in a folder with a difficult name, whose interpreter writes down what it was started with."""
    folder = tmp_path / '50% of it\'s $HOME "quoted"'
    folder.mkdir()
    python = folder / "python"
    code = "import json, os, sys; json.dump([sys.argv[1:], os.getcwd(), os.environ['A']], open('started', 'w'))"
    quoted = "'" + code.replace("'", "'\\''") + "'"
    python.write_text(f'#!/bin/sh\necho printed\nexec {sys.executable} -c {quoted} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return Job("pets", "retrain", WORDS, python, folder, 3600, {"A": 'b% "c" $d \\'})


@pytest.fixture
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real crontab of a user who has none, and no other is touched."""
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "crontab"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("crontab")} -u nobody "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)
    if subprocess.run([wrapper, "-l"], capture_output=True).returncode == 0:
        pytest.skip("the user nobody has a crontab")
    return wrapper


def listed(crontab: Path) -> str:
    return subprocess.run([crontab, "-l"], capture_output=True).stdout.decode("utf-8", "surrogateescape")


DEBIAN, CRONIE = "%\\", "%"  # the signs before which each cron takes a backslash away


def read_by_cron(command: str, signs: str = DEBIAN) -> str:
    """Return what cron gives to the shell, as its do_command.c has it."""
    read, is_escaped = "", False
    for sign in command:
        if is_escaped and sign in signs:
            read = read[:-1]
        assert is_escaped or sign != "%", "which cron takes for a new line"
        read += sign
        is_escaped = sign == "\\" and not is_escaped
    return read


@pytest.mark.parametrize("signs", [DEBIAN, CRONIE])
def test_a_shell_gets_from_cron_what_was_meant(job: Job, signs: str) -> None:
    *_, command = cron.cron_line(job, TIMES).split(" ", 5)
    done = subprocess.run(["/bin/sh", "-c", read_by_cron(command, signs)], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    started = json.loads((job.directory / "started").read_text())
    assert started == [["-m", "graftline", "retrain", *WORDS], str(job.directory), job.variables["A"]]
    assert (job.directory / job.log).read_text() == "printed\n"


def test_a_job_that_still_runs_is_not_started_twice(job: Job) -> None:
    *_, command = cron.cron_line(job, TIMES).split(" ", 5)
    (job.directory / "outputs" / "schedule").mkdir(parents=True)
    with subprocess.Popen(
        ["flock", str(job.directory / "outputs/schedule/pets.lock"), "sh", "-c", "echo; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()  # it has the lock
        assert subprocess.run(["/bin/sh", "-c", read_by_cron(command)], cwd="/").returncode == 1
        holder.communicate()
    assert not (job.directory / "started").exists()


@needs_cron
@pytest.mark.parametrize("before", ["", "MAILTO=me\n0 1 * * * echo 50\\% \xe9 # graftline schedule\n\n# end\n"])
def test_other_lines_of_a_crontab_stay(job: Job, crontab: Path, before: str) -> None:
    raw = before.encode("latin-1")  # bytes that are no UTF-8
    if before:
        subprocess.run([crontab, "-"], input=raw, check=True)
    try:
        other = Job("cats", "retrain", (), job.python, job.directory, 60)
        for each in (job, other, job):
            cron.install(each, TIMES)
        text = listed(crontab)
        assert text == before.encode("latin-1").decode("utf-8", "surrogateescape") + cron.cron_block(
            job, TIMES
        ) + cron.cron_block(other, TIMES)
        assert cron.remove("/elsewhere", None) == []
        assert cron.remove(str(job.directory), "pets") == ["pets"]
        assert cron.remove(str(job.directory), None) == ["cats"]
        assert listed(crontab).encode("utf-8", "surrogateescape") == raw
    finally:
        subprocess.run([crontab, "-r"], capture_output=True)


def test_lines_of_the_user_stay_where_a_block_was_changed(job: Job) -> None:
    """As where the comment that ends it was deleted: what lies between it and the next one's is not ours."""
    block = cron.cron_block(job, TIMES)
    *ours, end = block.splitlines(keepends=True)
    changed = "".join([*ours, "0 1 * * * backup\n"])
    both = cron.with_block(changed, block)
    assert both == changed + block
    assert cron.changed_blocks(both, str(job.directory), None) == ["pets"], "which still runs"
    assert cron.changed_blocks(both, "/elsewhere", None) == cron.changed_blocks(block, str(job.directory), None) == []
    assert cron.without_blocks(both, str(job.directory), "pets") == (changed, ["pets"])
    inserted = "".join([*ours, "0 1 * * * backup\n", end])
    assert cron.without_blocks(inserted, str(job.directory), None) == (inserted, [])


@needs_cron
def test_a_line_that_goes_on_to_run_is_told(job: Job, crontab: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = cron.cron_block(job, TIMES).replace("\n", "\n# mine\n", 1)
    subprocess.run([crontab, "-"], input=changed.encode(), check=True)
    told = "Lines of the schedule pets in the crontab were changed by hand and stay"
    try:
        cron.install(job, TIMES)
        assert told in caplog.text
        caplog.clear()
        assert cron.remove(str(job.directory), "pets") == ["pets"], "the new ones"
        assert told in caplog.text
        caplog.clear()
        assert cron.remove(str(job.directory), None) == []
        assert told in caplog.text
        assert listed(crontab) == changed
    finally:
        subprocess.run([crontab, "-r"], capture_output=True)


@needs_cron
def test_cron_takes_a_line_as_long_as_we_do(job: Job, crontab: Path) -> None:
    def long_job(size: int) -> Job:
        return Job("long", "retrain", (f"name={'n' * size}",), job.python, Path("/tmp"), 60)

    left = cron.LONGEST_COMMAND - len(cron.cron_line(long_job(0), TIMES).split(" ", 5)[5])
    try:
        cron.install(long_job(left), TIMES)
    finally:
        subprocess.run([crontab, "-r"], capture_output=True)
    with pytest.raises(UserError, match="The command has 999 bytes and cron takes 998: put the overrides into"):
        cron.cron_line(long_job(left + 1), TIMES)


@needs_systemd
def test_systemd_reads_in_the_units_what_was_meant(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    folder.mkdir()
    (folder / "a.service").write_text(systemd.service_unit(job), encoding="utf-8")
    (folder / "a.timer").write_text(systemd.timer_unit(job, TIMES), encoding="utf-8")
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "LC_ALL": "C"}
    command = ["systemd-analyze", "verify", "--user", "--man=no", "a.service", "a.timer"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    environment |= {"SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console"}
    dump = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout
    read = re.search(r"Command Line: (.*)", dump)
    assert read is not None, dump
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {read[1]}"], capture_output=True, text=True).stdout
    command = printed.split("\0")[:-1]
    environment = {**job.variables, "PATH": os.defpath}
    done = subprocess.run(command, cwd=job.directory, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    started = json.loads((job.directory / "started").read_text())
    assert started[0] == ["-m", "graftline", "retrain", *WORDS]
    assert (job.directory / job.log).read_text() == "printed\n", "the folder is made where it is gone"
    assert f"\tWorkingDirectory: {job.directory}\n" in dump
    assert f"\tEnvironment: A={job.variables['A']}\n" in dump
    assert "\tTimeoutStartSec: 1h\n" in dump


def test_units_are_installed_once_and_removed(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")  # a systemd of the developer's is left alone
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    folder = systemd.units_folder()
    told = {systemd.install(job, TIMES) for _ in range(2)}
    assert len(told) == 1
    assert "no systemd of yours loaded them" in told.pop()
    assert sorted(file.name for file in folder.iterdir()) == [
        "graftline-retrain-pets.service",
        "graftline-retrain-pets.timer",
    ]
    assert {file.stat().st_mode & 0o077 for file in folder.iterdir()} == {0}, "the command may hold a token"
    other = Job("pets", "retrain", (), job.python, tmp_path, 60)
    with pytest.raises(
        UserError, match=r"is there and not of this schedule: give this one a name with JobOptions.name"
    ):
        systemd.install(other, TIMES)
    assert systemd.remove(str(tmp_path), None) == []
    assert systemd.remove(str(job.directory), "cats") == []
    assert systemd.remove(str(job.directory), "pets") == ["pets"]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("folder", [None, "photos", "/images/cats & dogs: 50%", "/images/photos.v2", "/work/photos"])
def test_kubernetes_takes_the_manifest(job: Job, folder: str | None) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    manifest = yaml.safe_load(cron_job(job, TIMES, folder, KubernetesOptions(), "Europe/Berlin"))
    validate(manifest, "1.37", strict=True)
    spec = manifest["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 3 * * 1,4", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 3600
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [re.sub(r"\$\$\(", "$(", word) for word in container["args"]] == ["retrain", *WORDS]
    assert "$(date)" not in " ".join(container["args"]).replace("$$(", ""), "which Kubernetes takes for a variable"
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts.get("images") == (folder if (folder or "").startswith("/images/") else None)


def test_a_manifest_has_the_names_of_objects() -> None:
    job = Job("Cats_and.Dogs" * 9, "retrain", (), Path("/p"), Path("/d"), 60)
    name = yaml.safe_load(cron_job(job, TIMES, None, KubernetesOptions(), "UTC"))["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 52
    with pytest.raises(UserError, match=r"KubernetesOptions\.claim=My Claim is no name of an object"):
        KubernetesOptions(claim="My Claim")
    with pytest.raises(UserError, match=r"KubernetesOptions\.memory=lots is no quantity"):
        KubernetesOptions(memory="lots")
    with pytest.raises(UserError, match="in a pod the home folder is /work"):
        cron_job(
            Job("a", "retrain", ("data.path='~/photos'",), Path("/p"), Path("/d"), 60),
            TIMES,
            "/root/photos",
            KubernetesOptions(),
            "UTC",
        )


@pytest.mark.parametrize("hours", [0.0, float("nan"), -1.0, 9000.0])
def test_a_job_has_a_time_and_a_name(hours: float) -> None:
    with pytest.raises(UserError, match=r"JobOptions\.hours"):
        JobOptions(hours=hours)
    with pytest.raises(UserError, match=r"JobOptions\.name=a b is no name"):
        JobOptions(name="a b")


def test_no_schedule_carries_a_line_break() -> None:
    with pytest.raises(UserError, match="holds a line break or another sign that no schedule can carry"):
        Job("a", "retrain", ("name=a\nb",), Path("/p"), Path("/d"), 60)


def test_the_time_zone_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert local_timezone() == "Europe/Berlin"
    monkeypatch.delenv("TZ")
    assert re.fullmatch(r"[\w+/-]+", local_timezone())


@pytest.mark.skipif(ZONES is None, reason="this system has no files of time zones")
def test_a_copy_of_a_zone_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a container has it that is given the /etc/localtime of another machine."""
    assert ZONES is not None
    monkeypatch.delenv("TZ", raising=False)
    (tmp_path / "timezone").write_text("Etc/UTC\n")  # the image's own, which nobody changed
    monkeypatch.setattr(local_time, "TIMEZONE", tmp_path / "timezone")
    for name, content in (("Europe/Berlin", None), ("Etc/UTC", None), ("Etc/UTC", b"TZif, but of no zone")):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        file.write_bytes((ZONES / name).read_bytes() if content is None else content)
        monkeypatch.setattr(local_time, "LOCALTIME", file)
        assert local_timezone() == machine_timezone() == name
        assert ("no time zone known here is the same" in caplog.text) == (content is not None)
    monkeypatch.setenv("TZ", f":{ZONES}/Asia/Tokyo")
    assert local_timezone() == "Asia/Tokyo"
    monkeypatch.setattr(local_time, "LOCALTIME", tmp_path / "none")
    assert machine_timezone() == "Etc/UTC", "as the C library has it"


def test_a_time_zone_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"KubernetesOptions\.timezone=Berlin is no name of a time zone: give one such"):
        KubernetesOptions(timezone="Berlin")
    assert KubernetesOptions(timezone="Europe/Berlin").timezone == "Europe/Berlin"


def test_two_schedules_are_two_objects() -> None:
    """Also where their names differ in what an object's name cannot hold."""
    names = ["a-b", "a.b", "a_b", "A-B", "кошки", "собаки", *(f"{'long' * 20}-{number}" for number in range(2))]
    jobs = [Job(name, "retrain", (), Path("/p"), Path("/d"), 60) for name in (*names, "pets")]
    found = [object_name(job) for job in jobs]
    assert len(set(found)) == len(jobs)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", name) for name in found)
    assert (found[0], found[-1]) == ("graftline-retrain-a-b", "graftline-retrain-pets")


@pytest.mark.parametrize(
    ("source", "watched"),
    [
        ("photos", "/d/photos"),
        ("/images", "/images"),
        ("~/photos", "/home/ann/photos"),
        ("s3://pets/cats", None),
        (None, None),
    ],
)
def test_dagster_watches_folders_of_this_machine(
    source: str | None, watched: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    job = Job("pets", "retrain", (), Path("/p"), Path("/d"), 60)
    text = dagster.dagster_schedule(job, TIMES, source, dagster.DagsterOptions(), "Etc/UTC")
    assert json.loads(text)["source"] == watched


def test_dagster_reports_to_nobody_and_retrains_a_model_once_at_a_time(job: Job) -> None:
    dagster.install(job, "{}", DAGSTER)
    assert (job.directory / dagster.HOME / "schedules" / "pets.json").stat().st_mode & 0o077 == 0
    content = yaml.safe_load((job.directory / dagster.HOME / "dagster.yaml").read_text(encoding="utf-8"))
    assert content["telemetry"] == {"enabled": False}
    assert content["concurrency"]["runs"]["tag_concurrency_limits"] == [
        {"key": "graftline/model", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    ]
    assert "storage" not in content, "it is SQLite in that folder"
    assert dagster.command(job.directory, DAGSTER).endswith(" --host 127.0.0.1 --port 3000")
