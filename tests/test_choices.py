"""What a setting may be is what its table has: no row that nobody can choose, no choice without."""

import types
import typing
from collections.abc import Collection

import pytest

from rlhf_ray.algos.advantages import ESTIMATORS
from rlhf_ray.algos.ensemble import COMBINATIONS
from rlhf_ray.algos.ranking import FORMS
from rlhf_ray.config import PPO, RM, Cluster, Model, RewardSource, Rollout, Run
from rlhf_ray.generators.registry import BACKENDS
from rlhf_ray.observe.trackers import TRACKERS
from rlhf_ray.rewards.ensemble import Combination
from rlhf_ray.weights.buckets import DTYPES
from rlhf_ray.weights.paths import PATHS


def choices(hint: typing.Any) -> set[str]:
    """The strings of a Literal, or of one that may be None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*(choices(part) for part in typing.get_args(hint)))
    return set(typing.get_args(hint))


@pytest.mark.parametrize(
    ("section", "name", "table"),
    [
        (PPO, "estimator", ESTIMATORS),
        (Rollout, "backend", BACKENDS),
        (Cluster, "weights_by", PATHS),
        (Run, "tracker", TRACKERS),
        (RM, "form", FORMS),
        (RM, "combine", COMBINATIONS),
        (RewardSource, "combine", COMBINATIONS),
        (Model, "dtype", {"auto", *DTYPES}),
        (Rollout, "dtype", {"auto", *DTYPES}),
    ],
)
def test_a_setting_may_be_each_row_of_its_table(
    section: type, name: str, table: Collection[str]
) -> None:
    assert choices(typing.get_type_hints(section)[name]) == set(table)


def test_the_ways_to_combine_are_named_once_more_where_scores_are_combined() -> None:
    assert choices(Combination) == set(COMBINATIONS)
