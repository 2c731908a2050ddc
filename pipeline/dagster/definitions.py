"""Dagster's definitions: of each schedule in DAGSTER_HOME/schedules the assets, the clock and the sensor.

Dagster reads this file in an environment of its own (requirements.txt beside it), which knows nothing of graftline:
what a schedule is stands in its file, which make schedule engine=dagster install=true writes.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
from plain_name import plain_name
from result_metadata import describe
from source_watch import FolderWatch

HOME = Path(os.environ["DAGSTER_HOME"])
RUNNER = Path(__file__).with_name("pipes_run.py")
MODEL = "graftline/model"  # the tag by which dagster.yaml lets one run at a time
OUTCOME = "graftline/outcome"  # tag of a run: what it came to
ASSETS = {
    "dataset": "The dataset version: images with labels and splits, named by its digest.",
    "model": "The newest trained model, tested and registered.",
    "champion": "The model that the gate let through, under the alias champion.",
}
RETRIES = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL)  # a run that is retried goes on


def retraining(job: dict[str, Any]) -> Any:
    """Return what makes the assets of a schedule: a run of graftline, of which each asset takes what is new.

    A run that finds nothing new makes none of them; one that the gate refuses, no champion.
    """
    name = f"{job['stage']}_{plain_name(job['name'])}"

    def run(context: dg.OpExecutionContext, pipes: dg.PipesSubprocessClient) -> Any:
        done = pipes.run(context=context, command=[sys.executable, str(RUNNER)], extras=job)
        report = done.get_custom_messages()[-1]
        context.instance.add_run_tags(context.run_id, {OUTCOME: report["result"].get("outcome", "done")})
        yield dg.Output(report)

    def tell(report: dict[str, Any]) -> Any:
        for asset, metadata in describe(report, job["address"]).items():
            version = dg.DataVersion(report["result"]["dataset_digest"]) if asset == "dataset" else None
            values = {key: getattr(dg.MetadataValue, kind)(value) for key, (kind, value) in metadata.items()}
            yield dg.Output(None, asset, metadata=values, data_version=version)

    run_op = dg.op(name=f"{name}_run", out=dg.Out(dict), retry_policy=RETRIES)(run)
    outs = {asset: dg.Out(dg.Nothing, is_required=False) for asset in ASSETS}
    tell_op = dg.op(name=f"{name}_assets", ins={"report": dg.In(dict)}, out=outs)(tell)

    def whole() -> Any:
        return dict(zip(ASSETS, tell_op(run_op()), strict=True))

    graph = dg.graph(name=name, out={asset: dg.GraphOut() for asset in ASSETS})(whole)
    keys = {asset: dg.AssetKey([job["name"], asset]) for asset in ASSETS}
    return dg.AssetsDefinition.from_graph(
        graph,
        keys_by_output_name=keys,
        internal_asset_deps={"dataset": set(), "model": {keys["dataset"]}, "champion": {keys["model"]}},
        group_name=plain_name(job["name"]),
        descriptions_by_output_name=ASSETS,
    )


def gate(job: dict[str, Any]) -> Any:
    """Return the check of the model: whether the gate let the newest one through."""
    key = dg.AssetKey([job["name"], "model"])

    def verdict(context: dg.AssetCheckExecutionContext) -> Any:
        event = context.instance.get_latest_materialization_event(key)
        metadata = event.asset_materialization.metadata
        outcome = metadata["outcome"].value
        told = {name: metadata[name] for name in ("verdict", "reasons") if name in metadata}
        return dg.AssetCheckResult(passed=outcome == "promoted", severity=dg.AssetCheckSeverity.WARN, metadata=told)

    return dg.asset_check(asset=key, name="gate", description="Did the gate let it through?")(verdict)


def sensor(job: dict[str, Any], dagster_job: Any) -> Any:
    """Return the sensor that looks for new images."""
    name = f"new_images_{plain_name(job['name'])}"

    def evaluate(context: dg.SensorEvaluationContext) -> Any:
        watch, now = FolderWatch.from_cursor(context.cursor), time.time()
        if watch.asked is not None:
            tags = {"dagster/sensor_name": name, "dagster/run_key": watch.asked}
            found = context.instance.get_runs(dg.RunsFilter(tags=tags), limit=1)
            if not found or found[0].is_finished:  # or it was deleted
                # one that was held by another has looked at no images
                has_looked = bool(found) and found[0].is_success and found[0].tags.get(OUTCOME) != "held"
                watch.end(now, succeeded=has_looked)
        try:
            watch.look(job["source"], now)
        except OSError as error:
            return dg.SkipReason(f"{job['source']} cannot be read ({error.strerror}): is it mounted?")
        waiting = f"{watch.new:,} of {watch.count:,} files are new"
        is_due = watch.is_due(job["new_images"], job["age_hours"], now)
        if is_due:
            watch.ask(f"{now:.0f}", now)
        context.update_cursor(json.dumps(watch.to_json()))
        if is_due:
            return dg.RunRequest(run_key=watch.asked, tags={"graftline/why": waiting})
        if watch.asked is not None:
            return dg.SkipReason(f"{waiting}; a run is under way.")
        if watch.asked_at is not None:
            return dg.SkipReason(
                f"{waiting}; the last run has failed or was held: one is due {job['age_hours']:g} h after it."
            )
        return dg.SkipReason(f"{waiting}; a run is due at {job['new_images']:,}, or after {job['age_hours']:g} h.")

    return dg.sensor(
        name=name,
        job=dagster_job,
        minimum_interval_seconds=job["look_seconds"],
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks at {job['source']}, a stat for each folder.",
    )(evaluate)


def _definitions() -> Any:
    parts: dict[str, list[Any]] = {"assets": [], "asset_checks": [], "jobs": [], "schedules": [], "sensors": []}
    for file in sorted((HOME / "schedules").glob("*.json")):
        job = json.loads(file.read_text(encoding="utf-8"))
        asset, check = retraining(job), gate(job)
        selection = dg.AssetSelection.assets(asset) | dg.AssetSelection.checks(check)
        name, tags = f"{job['stage']}_{plain_name(job['name'])}_job", {MODEL: job["name"]}
        dagster_job = dg.define_asset_job(name, selection, tags=tags, executor_def=dg.in_process_executor)
        clock = dg.ScheduleDefinition(
            name=f"clock_{plain_name(job['name'])}",
            job=dagster_job,
            cron_schedule=job["cron"],
            execution_timezone=job["timezone"],
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
        watches = [] if job["source"] is None else [sensor(job, dagster_job)]
        new = {"assets": [asset], "asset_checks": [check], "jobs": [dagster_job], "schedules": [clock]}
        for kind, values in {**new, "sensors": watches}.items():
            parts[kind] += values
    resources = {"pipes": dg.PipesSubprocessClient(), "io_manager": dg.mem_io_manager}
    return dg.Definitions(**parts, resources=resources)


defs = _definitions()
