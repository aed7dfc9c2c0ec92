"""Hands the metrics to Ray: the one place that knows `ray.util.metrics`.

Ray sends them to the agent of this node every 10 s, which serves them to Prometheus.
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate, product

from ray.util.metrics import Counter, Gauge

from waveflow_ray.metrics import TABLE, Distribution, Metric, Metrics


class RayExporter:
    """Ray's counterparts of the whole table.

    A call of Ray's takes 3 µs, so what happens is collected first, and `flush` passes on sums.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counters: dict[Metric, Counter] = {}
        self._gauges: dict[Metric, Gauge] = {}
        self._histograms: dict[Metric, Buckets] = {}
        for metric in TABLE:
            labels = tuple(metric.labels)
            if metric.kind == "counter":
                self._counters[metric] = counter = Counter(metric.name, metric.meaning, labels)
                for values in product(*metric.labels.values()) if metric.starts_at_zero else ():
                    # `inc` refuses 0, though it is what a counter starts with.
                    counter._record(0.0, tags(metric, values))
            elif metric.kind == "gauge":
                self._gauges[metric] = Gauge(metric.name, metric.meaning, labels)
            else:
                self._histograms[metric] = Buckets(metric)

    def flush(self) -> None:
        """Pass on what came since the last call, and where everything else stands."""
        for (metric, values), amount in self._metrics.take_added().items():
            if amount > 0:
                self._counters[metric].inc(amount, tags(metric, values))
        for (metric, values), level in self._metrics.levels.items():
            self._gauges[metric].set(level, tags(metric, values))
        for (metric, values), seen in self._metrics.seen.items():
            self._histograms[metric].set(seen, values)


class Buckets:
    """A histogram as Prometheus knows it, made of gauges.

    Ray has histograms, but its agent replays every single value, at 15 µs each, holds up scrapes
    meanwhile, and knows sums only roughly.
    """

    def __init__(self, metric: Metric) -> None:
        name, meaning, labels = metric.name, metric.meaning, tuple(metric.labels)
        self._metric = metric
        self._bounds = [*(f"{bound:.10g}" for bound in metric.bounds), "+Inf"]
        self._bucket = Gauge(f"{name}_bucket", meaning, (*labels, "le"))
        self._count = Gauge(f"{name}_count", meaning, labels)
        self._sum = Gauge(f"{name}_sum", meaning, labels)

    def set(self, seen: Distribution, values: tuple[str, ...]) -> None:
        """Where it stands."""
        count = 0
        for bound, count in zip(self._bounds, accumulate(seen.buckets), strict=True):
            self._bucket.set(count, tags(self._metric, values, bound))
        self._count.set(count, tags(self._metric, values))
        self._sum.set(seen.total, tags(self._metric, values))


@cache
def tags(metric: Metric, values: tuple[str, ...], bound: str = "") -> dict[str, str]:
    """Labels as Ray takes them. There are few, so all of them are remembered."""
    found = dict(zip(metric.labels, values, strict=True))
    return found | {"le": bound} if bound else found
