"""GPUs that nobody asked for by number: every role finds room, and no two ranks share one."""

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_ray.config import Cluster
from rlhf_ray.models.device import GPUS
from rlhf_ray.orchestration.plan import SCORER_ROLES, Plan, plan
from rlhf_ray.orchestration.shares import Node, Share


def on(gpus: int, *, cpus: float = 64.0, nodes: int = 1) -> list[Node]:
    return [Node(f"n{i}", f"node-{i}", cpus, float(gpus)) for i in range(nodes)]


def devices(made: Plan, gpus: int, order: random.Random) -> list[tuple[str, int]]:
    """(role, GPU) of every actor, placed one by one on the fullest GPU with room, as Ray does."""
    actors = [(role, share.gpus) for role, n, share in made.roles() for _ in range(n)]
    order.shuffle(actors)
    free, placed = [1.0] * gpus, []
    for role, share in actors:
        room = [gpu for gpu in range(gpus) if free[gpu] >= share - 1e-9]
        assert share > 0 and room, f"{role}: {share} of a GPU, and free are {free}"
        chosen = min(room, key=lambda gpu: free[gpu])
        free[chosen] -= share
        placed.append((role, chosen))
    return placed


@given(
    gpus=st.sampled_from([1, 2, 3, 4, 8, 16]),
    generators=st.integers(1, 20),
    learners=st.integers(1, 16),
    scorers=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_shares_that_are_filled_in_find_room_in_any_order_and_no_two_ranks_share(
    gpus: int, generators: int, learners: int, scorers: int, order: random.Random
) -> None:
    assume(learners <= gpus)
    cluster = Cluster(generators=generators, learners=learners, scorers=scorers)
    made = plan(cluster, on(gpus))
    placed = devices(made, gpus, order)
    assert len(placed) == generators + learners + scorers * SCORER_ROLES
    ranks = [gpu for role, gpu in placed if role == "learner ranks"]
    assert len(set(ranks)) == learners
    if generators + learners <= gpus:
        alone = [gpu for role, gpu in placed if role != "scorers"]
        assert len(set(alone)) == len(alone), "there is a GPU for each of them"


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_ranks_that_outnumber_the_gpus_are_refused_with_what_would_fit(
    gpus: int, nodes: int
) -> None:
    all_gpus = gpus * nodes
    with pytest.raises(ValueError, match=r"--cluster\.learner-gpus 0") as refused:
        plan(Cluster(learners=all_gpus + 1), on(gpus, nodes=nodes))
    assert f"It would fit with --cluster.learners {all_gpus}" in str(refused.value)
    assert plan(Cluster(learners=all_gpus), on(gpus, nodes=nodes))


def test_a_share_that_two_ranks_could_have_of_one_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--cluster\.learner-gpus is 0\.5.*NCCL") as refused:
        plan(Cluster(learners=2, learner_gpus=0.5), on(8))
    assert "--cluster.learners 1" in str(refused.value)
    assert plan(Cluster(learners=1, learner_gpus=0.5), on(8)).learner.gpus == 0.5
    assert plan(Cluster(learners=2, learner_gpus=0.51), on(8)).learner.gpus == 0.51
    assert plan(Cluster(learners=2, learner_gpus=0.0), on(8)).learner.gpus == 0.0


def test_ranks_that_wait_for_the_autoscaler_have_more_than_half_a_gpu_too() -> None:
    made = plan(Cluster(learners=4, autoscaling=True), on(1, nodes=2))
    assert made.learner.gpus > 0.5 and len(made.learner.nodes) == 2


def test_an_engine_of_several_gpus_has_them_whole() -> None:
    cluster = Cluster(generators=1, learners=2)
    made = plan(cluster, on(4), tensor_parallel=2)
    assert (made.generator.gpus, made.learner.gpus) == (2.0, 0.6)
    for given_gpus in (2.0, None):
        same = plan(Cluster(learners=2, generator_gpus=given_gpus), on(4), tensor_parallel=2)
        assert same.generator == made.generator
    with pytest.raises(ValueError, match=r"--cluster\.generator-gpus is 1.*tensor-parallel 2"):
        plan(Cluster(generator_gpus=1.0), on(4), tensor_parallel=2)


def test_an_engine_of_several_processes_on_cpus() -> None:
    made = plan(Cluster(generator_gpus=0.0), on(0), tensor_parallel=2)
    assert made.total()["GPU"] == 0.0


def test_the_process_of_a_role_without_a_gpu_sees_none() -> None:
    assert Share(0.5, 0.0).environment() == {GPUS: "0", "CUDA_VISIBLE_DEVICES": ""}
    assert Share(0.5, 0.25).environment() == {GPUS: "0.25"}, "Ray shows it its own"
