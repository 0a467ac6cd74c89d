"""Reading a metrics port as Prometheus does."""

import urllib.request
from collections.abc import Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def families(page: str) -> dict[str, Metric]:
    """What is on the page, by the name of its samples."""
    with urllib.request.urlopen(page, timeout=60) as answer:
        text = answer.read().decode()
    return {
        sample.name: family
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def samples(
    page: str, name: str, labels: Mapping[str, str], *, above: float | None = None
) -> list[Sample]:
    """Samples of a name that have these labels, and are above a value; [] where there is none."""
    family = families(page).get(name)
    return [
        sample
        for sample in (family.samples if family else [])
        if sample.name == name
        and labels.items() <= sample.labels.items()
        and (above is None or sample.value > above)
    ]
