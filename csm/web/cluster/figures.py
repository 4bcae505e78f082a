"""Prometheus' figures of all replicas as one page: every sample says whose it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from csm.web.cluster.roster import FAILED, LEAVING, READY, STARTING, Figures, Standing


class _Collected:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def merged(texts: Mapping[str, str]) -> bytes:
    """`texts`, what each replica tells, by the replica's name -> all of it, with a label `replica`."""
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families.values()))
    return generate_latest(registry)


def own_figures(standings: Iterable[Standing]) -> bytes:
    """How many replicas are in which state, and one queue's figures for all."""
    there = list(standings)
    registry, counts, figures = CollectorRegistry(), Counter(one.state for one in there), Figures.of(there)
    states = Gauge("csm_cluster_replicas", "Replicas by what they do.", ["state"], registry=registry)
    for state in (READY, STARTING, LEAVING, FAILED):
        states.labels(state).set(counts[state])
    for name, about, value in (
        ("slots", "Jobs that all replicas speak side by side.", figures.slots),
        ("slots_busy", "Jobs that are spoken now.", figures.speaking),
        ("queue_waiting", "Jobs that wait.", figures.waiting),
    ):
        Gauge(f"csm_cluster_{name}", about, registry=registry).set(value)
    return generate_latest(registry)
