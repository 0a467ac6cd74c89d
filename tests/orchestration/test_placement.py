"""What a run asks for against what a cluster has."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config import Cluster
from rlhf_ray.orchestration.placement import SCORER_ROLES, Share, plan


def test_a_laptop_without_a_gpu() -> None:
    made = plan(Cluster(), {"CPU": 2.0}, 2)
    assert (made.generator, made.learner) == (Share(0.5, 0.0), Share(0.5, 0.0))
    assert made.total() == {"CPU": 1.0, "GPU": 0.0}
    assert made.threads == 2


def test_one_gpu_is_shared_by_all_roles() -> None:
    made = plan(Cluster(), {"CPU": 8.0, "GPU": 1.0}, 8)
    assert 0 < made.generator.gpus < 1
    assert 0 < made.scorer.gpus <= made.generator.gpus
    assert made.total()["GPU"] <= 1.0 + 1e-9


@given(
    generators=st.integers(1, 20),
    learners=st.integers(1, 8),
    scorers=st.integers(1, 4),
    gpus=st.integers(1, 24),
    order=st.randoms(use_true_random=False),
)
def test_what_is_filled_in_finds_room_in_any_order(
    generators: int, learners: int, scorers: int, gpus: int, order: random.Random
) -> None:
    """Placed one by one, each on the fullest GPU that still has room for it, as Ray does."""
    cluster = Cluster(generators=generators, learners=learners, scorers=scorers)
    made = plan(cluster, {"CPU": 64.0, "GPU": float(gpus)}, 64)
    actors = [made.generator.gpus] * generators + [made.learner.gpus] * learners
    actors += [made.scorer.gpus] * scorers * SCORER_ROLES
    order.shuffle(actors)
    free = [1.0] * gpus
    for share in actors:
        room = [gpu for gpu in range(gpus) if free[gpu] >= share - 1e-9]
        assert share > 0 and room, f"{share} of a GPU: {free}"
        free[min(room, key=lambda gpu: free[gpu])] -= share
    if generators + learners <= gpus:
        assert made.generator.gpus > 0.5, "two generators never share a GPU where there are enough"


def test_what_is_asked_for_is_not_changed() -> None:
    cluster = Cluster(generator_gpus=2.0, learner_gpus=1.0, scorer_gpus=0.25, threads=3)
    made = plan(cluster, {"CPU": 4.0, "GPU": 4.0}, 4)
    shares = (made.generator.gpus, made.learner.gpus, made.scorer.gpus)
    assert (*shares, made.threads) == (2.0, 1.0, 0.25, 3)


def test_too_many_cpus_says_what_is_asked_what_is_there_and_what_to_change() -> None:
    with pytest.raises(ValueError, match="CPU") as caught:
        plan(Cluster(generators=40, generator_cpus=1.0), {"CPU": 8.0}, 8)
    message = str(caught.value)
    assert "asks for 40.5 CPU and the cluster has 8" in message
    assert "40 generators, each 1 CPU and 0 GPU" in message
    assert "--cluster.generators" in message and "--cluster.*-cpus" in message


def test_gpus_on_a_cluster_that_has_none() -> None:
    with pytest.raises(ValueError, match=r"asks for 1 GPU and the cluster has 0") as caught:
        plan(Cluster(generator_gpus=1.0), {"CPU": 8.0}, 8)
    assert "--cluster.*-gpus" in str(caught.value)


def test_a_share_of_nothing_is_a_bundle_that_ray_takes() -> None:
    share = Share(0.0, 0.0)
    assert share.bundle() == {"CPU": 0.001}
    assert replace(share, gpus=0.5).bundle() == {"GPU": 0.5}
