"""How the machine of a training does, as MLflow's own monitors see it: processors, memory, disk, network, GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING

from psclap.parallel import in_background

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

PERIOD_S = 10.0
"""How often a sample is taken."""


def system_metrics(keep: Callable[[Mapping[str, float]], None]) -> AbstractContextManager[None]:
    """Samples this machine for the length of a `with` block, the last time at its end; `keep` is given each sample."""
    return in_background(partial(_watch, keep), "system metrics")


def _watch(keep: Callable[[Mapping[str, float]], None], done: threading.Event) -> None:
    monitors, last = _monitors(), False
    _sample(monitors)  # processors are measured from one sample to the next of the same thread
    while not last:
        last = done.wait(PERIOD_S)
        keep(_sample(monitors))


def _monitors() -> list[BaseMetricsMonitor]:
    # MLflow takes seconds to import: in the thread that samples, beside the first steps.
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # no nvidia-ml-py, or no NVIDIA GPU
        monitors.append(GPUMonitor())
    return monitors


def _sample(monitors: list[BaseMetricsMonitor]) -> dict[str, float]:
    """One sample, named as MLflow's page of system metrics looks for them."""
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values
