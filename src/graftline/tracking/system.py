"""Record MLflow's system metrics (processor, memory, disk, network, GPUs) by way of the outbox."""

from collections.abc import Callable, Mapping

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SECONDS = 10.0  # between two samples, MLflow's own default


class SystemMetrics(SystemMetricsMonitor):
    """Sample as MLflow's own monitor does, which would end for good when the server is away for a moment."""

    monitors: list[BaseMetricsMonitor]

    def __init__(
        self, run_id: str, uri: str, log: Callable[[Mapping[str, float], int], None], *, is_resumed: bool
    ) -> None:
        """Start to ``log(values, step)`` a sample every `SECONDS`; a resumed run's steps go on where they ended."""
        super().__init__(  # type: ignore[no-untyped-call]  # untyped in MLflow
            run_id, sampling_interval=SECONDS, resume_logging=is_resumed, tracking_uri=uri
        )
        self._log = log
        self.start()  # type: ignore[no-untyped-call]  # untyped in MLflow

    def monitor(self) -> None:
        """Take samples until the end, and one at the end: a short run has some too."""
        is_over = False
        while not is_over:
            is_over = self._shutdown_event.wait(self.sampling_interval)
            values = {}
            for monitor in self.monitors:
                monitor.collect_metrics()  # type: ignore[no-untyped-call]  # untyped in MLflow
                values.update(monitor.aggregate_metrics())  # type: ignore[no-untyped-call]  # untyped in MLflow
                monitor.clear_metrics()  # type: ignore[no-untyped-call]  # untyped in MLflow
            self._log({f"{self._metrics_prefix}{name}": value for name, value in values.items()}, self._logging_step)
            self._logging_step += 1

    def finish(self) -> None:
        """Take the last sample and end."""
        super().finish()  # type: ignore[no-untyped-call]  # untyped in MLflow
