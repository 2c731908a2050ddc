"""Kubernetes: a CronJob whose pods run a job in the image of docker/Dockerfile.

YAML carries any word. Kubernetes itself replaces ``$(NAME)`` in a command, unless the dollar is doubled.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from graftline.errors import UserError
from graftline.files import digest
from graftline.scheduling.job import Job
from graftline.scheduling.local_time import require_timezone
from graftline.scheduling.times import Times

FILE = "cronjob.yaml"
WORK = PurePosixPath("/work")  # where the image works, docker/Dockerfile
USER = 1000  # of the image
LONGEST_NAME = 52  # of a CronJob, which adds 11 letters for each job of at most 63
DIGITS = 8  # hex, that tell names apart which would be the same
LABEL = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
QUANTITY = re.compile(r"\d+(?:\.\d+)?(?:m|k|Ki|[MGTPE]i?)?")


@dataclass(frozen=True)
class KubernetesOptions:
    """What of a CronJob can be chosen (Hydra target of the node ``kubernetes``).

    Attributes:
        image: of the pods.
        claim: PersistentVolumeClaim that keeps what is written: data, cache, outputs, mlflow.db.
        images_claim: PersistentVolumeClaim with the images, mounted for reading where the source looks for them; None
            where they lie on the first.
        secret: a Secret whose keys become variables, such as MLFLOW_TRACKING_PASSWORD, if it is there.
        cpus: of the pod, as Kubernetes writes it.
        memory: of the pod, likewise; half of it may be shared memory.
        timezone: of the times; None for this machine's.
    """

    image: str = "graftline"
    claim: str = "graftline"
    images_claim: str | None = "images"
    secret: str = "graftline"  # noqa: S105 - a name
    cpus: str = "4"
    memory: str = "16Gi"
    timezone: str | None = None

    def __post_init__(self) -> None:
        for key in ("claim", "images_claim", "secret"):
            name = getattr(self, key)
            if name is not None and not LABEL.fullmatch(name):
                raise UserError(
                    f"KubernetesOptions.{key}={name} is no name of an object: use small letters, digits, '-' and '.'."
                )
        for key in ("cpus", "memory"):
            if not QUANTITY.fullmatch(getattr(self, key)):
                raise UserError(
                    f"KubernetesOptions.{key}={getattr(self, key)} is no quantity: write 4, 500m, 16Gi or the like."
                )
        if self.timezone is not None:
            require_timezone(self.timezone, "KubernetesOptions.timezone")


def cron_job(job: Job, times: Times, folder: str | None, options: KubernetesOptions, timezone: str) -> str:
    """Return the manifest of a CronJob.

    Args:
        job: what runs; its interpreter and directory are the image's own.
        times: when.
        folder: with the images, as given; None for a data set from a package.
        options: image, claims, limits.
        timezone: of the times where the options have none.

    Raises:
        UserError: a path begins with the home folder of this machine, or a folder of it was named for options.
    """
    if homes := [word for word in job.overrides if re.match(r"[\w.]+='?~", word)]:
        raise UserError(f"{homes[0]}: in a pod the home folder is {WORK}: give the path that it is to have there.")
    if job.config_dir is not None:
        raise UserError(
            f"--config-dir={job.config_dir} is a folder of this machine, which no pod sees: put its files into "
            f"{WORK}/conf on KubernetesOptions.claim, and into ./conf here."
        )
    labels = {"app.kubernetes.io/name": "graftline", "app.kubernetes.io/component": job.stage}
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": object_name(job), "labels": labels},
        "spec": {
            "schedule": times.as_cron(),
            "timeZone": options.timezone or timezone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "activeDeadlineSeconds": job.seconds,
                    "backoffLimit": 2,  # a run that was killed goes on
                    "template": {"metadata": {"labels": labels}, "spec": _pod(job, folder, options)},
                }
            },
        },
    }
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def object_name(job: Job) -> str:
    """Return the name of a CronJob: with hex digits of the schedule's name where it does not hold all of that.

    Else two data sets with long names, or with names of other scripts, would be one.
    """
    whole = f"graftline-{job.stage}-{job.name}"
    if job.slug == whole and len(whole) <= LONGEST_NAME:
        return whole
    return f"{job.slug[: LONGEST_NAME - DIGITS - 1].rstrip('-')}-{digest(job.name)[:DIGITS]}"


def _pod(job: Job, folder: str | None, options: KubernetesOptions) -> dict[str, Any]:
    volumes, mounts = _volumes(folder, options)
    container = {
        "name": "graftline",
        "image": options.image,
        "args": [word.replace("$(", "$$(") for word in (job.stage, *job.overrides)],
        "env": [{"name": key, "value": value.replace("$(", "$$(")} for key, value in job.variables.items()],
        "envFrom": [{"secretRef": {"name": options.secret, "optional": True}}],
        "resources": {
            "requests": {"cpu": options.cpus, "memory": options.memory},
            "limits": {"cpu": options.cpus, "memory": options.memory},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,  # until a run has said that it was killed
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{key: value for key, value in container.items() if value}],
        "volumes": volumes,
    }


class _Dumper(yaml.SafeDumper):
    """Write what comes twice twice: people read it."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - as PyYAML calls it
        return True


def _volumes(folder: str | None, options: KubernetesOptions) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the volumes and where they are mounted."""
    volumes: list[dict[str, Any]] = [
        {"name": "work", "persistentVolumeClaim": {"claimName": options.claim}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": _half(options.memory)}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "work", "mountPath": str(WORK)},
        {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108 - loader processes hand over batches there
    ]
    if folder is not None and options.images_claim is not None and not (WORK / folder).is_relative_to(WORK):
        claim = {"claimName": options.images_claim, "readOnly": True}
        volumes.append({"name": "images", "persistentVolumeClaim": claim})
        mounts.append({"name": "images", "mountPath": folder, "readOnly": True})
    return volumes, mounts


def _half(quantity: str) -> str:
    """Return half of a quantity of memory.

    >>> _half("16Gi"), _half("1.5G"), _half("1Gi")
    ('8Gi', '0.75G', '0.5Gi')
    """
    match = re.fullmatch(r"([\d.]+)(\D*)", quantity)
    assert match is not None
    return f"{float(match[1]) / 2:g}{match[2]}"
