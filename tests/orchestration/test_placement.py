"""What a run asks for, where it goes, and what it says where it does not fit: on nodes by hand."""

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config import Cluster
from rlhf_ray.orchestration.plan import plan
from rlhf_ray.orchestration.shares import GENERATOR, LEARNER, SCORER, Node, Share

LAPTOP = [Node("n0", "laptop", 2.0)]
TWO_OF_FOUR = [Node("a", "node-a", 32.0, 4.0), Node("b", "node-b", 32.0, 4.0)]
ALL_ROLES = frozenset({GENERATOR, LEARNER, SCORER})


def test_a_laptop_without_a_gpu() -> None:
    made = plan(Cluster(), LAPTOP)
    assert (made.generator.cpus, made.learner.cpus, made.learner.gpus) == (0.5, 0.5, 0.0)
    assert made.total() == {"CPU": 1.0, "GPU": 0.0}
    assert made.threads == 2
    assert made.lines() == [
        "2 CPUs on 1 node; 2 threads a process",
        "1 learner rank, each 0.5 CPU and 0 GPU: 1 on laptop",
        "1 generator, each 0.5 CPU and 0 GPU: 1 on laptop",
        "2 scorers, each 0 CPU and 0 GPU: 2 on laptop",
    ]


def test_eight_gpus_on_two_nodes() -> None:
    made = plan(Cluster(generators=4, learners=4), TWO_OF_FOUR)
    assert made.lines()[0].startswith("8 GPUs, 64 CPUs on 2 nodes")
    assert made.learner.nodes == ("a",) * 4 and made.learner.strategy == "STRICT_PACK"
    assert made.generator.nodes == ("b",) * 4
    assert len(made.scorer.nodes) == 2 and 0 < made.scorer.gpus < 0.5


def test_learners_take_the_tightest_node_and_generators_are_spread() -> None:
    nodes = [Node("big", "big", 64.0, 8.0), *TWO_OF_FOUR, Node("c", "node-c", 32.0, 4.0)]
    made = plan(Cluster(generators=6, learners=4, scorers=2), nodes)
    assert set(made.learner.nodes) == {"a"}
    assert Counter(made.generator.nodes) == {"big": 2, "b": 2, "c": 2}


def test_a_learner_group_that_no_node_holds_is_packed_on_few() -> None:
    nodes = [Node(f"n{i}", f"n{i}", 32.0, 8.0) for i in range(4)]
    made = plan(Cluster(generators=8, learners=16), nodes)
    assert made.learner.strategy == "PACK"
    assert sorted(Counter(made.learner.nodes).values()) == [8, 8]
    assert not set(made.learner.nodes) & set(made.generator.nodes)


def test_a_generator_of_four_gpus_is_whole_on_a_node() -> None:
    made = plan(Cluster(generators=1, learners=2), TWO_OF_FOUR, tensor_parallel=4)
    assert made.generator.gpus == 4.0
    assert not set(made.generator.nodes) & set(made.learner.nodes)
    nodes = [Node(f"n{i}", f"n{i}", 8.0, 2.0) for i in range(4)]
    with pytest.raises(ValueError, match=r"generators do not all find room, whole, on 4 nodes"):
        plan(Cluster(), nodes, tensor_parallel=4)


def test_roles_stay_on_the_nodes_that_offer_them() -> None:
    nodes = [
        Node("g", "gen", 8.0, 2.0, frozenset({GENERATOR})),
        Node("l", "learn", 8.0, 2.0, frozenset({LEARNER})),
        Node("s", "score", 8.0, 1.0, frozenset({SCORER})),
    ]
    made = plan(Cluster(generators=2, learners=2, role_resources=True), nodes)
    places = (made.generator.nodes, made.learner.nodes, made.scorer.nodes)
    assert places == (("g", "g"), ("l", "l"), ("s", "s"))
    assert made.generator.bundle()[GENERATOR] == made.generator.options()["resources"][GENERATOR]
    with pytest.raises(ValueError, match="learner ranks do not all find room"):
        plan(Cluster(generators=2, role_resources=True), nodes[:1])


def test_one_gpu_is_shared_by_all_roles() -> None:
    made = plan(Cluster(), [Node("n0", "one", 8.0, 1.0)])
    assert 0 < made.generator.gpus < 1
    assert 0 < made.scorer.gpus <= made.generator.gpus
    assert made.total()["GPU"] <= 1.0 + 1e-9


@settings(max_examples=60)
@given(
    cluster=st.builds(
        Cluster,
        generators=st.integers(1, 12),
        learners=st.integers(1, 6),
        scorers=st.integers(1, 3),
        generator_cpus=st.sampled_from([0.5, 1.0, 4.0]),
        learner_gpus=st.sampled_from([None, 0.0, 0.5, 1.0]),
        generator_gpus=st.sampled_from([None, 0.0, 0.25, 1.0, 2.0]),
    ),
    sizes=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=5),
)
def test_a_plan_never_promises_more_than_a_node_has_and_a_refusal_can_be_mended(
    cluster: Cluster, sizes: list[tuple[int, int]]
) -> None:
    nodes = [Node(f"n{i}", f"n{i}", float(c), float(g)) for i, (c, g) in enumerate(sizes)]
    try:
        made = plan(cluster, nodes)
    except ValueError as error:
        if smaller := re.search(r"fit with --cluster\.(\w+) (\d+)", str(error)):
            assert plan(replace(cluster, **{smaller[1]: int(smaller[2])}), nodes)
        if more := re.search(r"with (\d+) more nodes? of (\d+) CPU and (\d+) GPU", str(error)):
            count, cpus, gpus = map(int, more.groups())
            added = [Node(f"m{i}", "more", cpus, gpus) for i in range(count)]
            assert plan(cluster, [*nodes, *added])
        return
    for node in nodes:
        used = [
            (share.nodes.count(node.node_id), share)
            for share in (made.generator, made.learner, made.scorer)
        ]
        assert sum(n * share.cpus for n, share in used) <= node.cpus + 1e-6
        assert sum(n * share.gpus for n, share in used) <= node.gpus + 1e-6


def test_what_is_asked_for_is_not_changed() -> None:
    cluster = Cluster(generator_gpus=2.0, learner_gpus=1.0, scorer_gpus=0.25, threads=3)
    made = plan(cluster, [Node("n0", "one", 4.0, 4.0)])
    shares = (made.generator.gpus, made.learner.gpus, made.scorer.gpus)
    assert (*shares, made.threads) == (2.0, 1.0, 0.25, 3)


def test_too_many_cpus_says_what_is_asked_what_is_there_and_what_would_fit() -> None:
    with pytest.raises(ValueError, match="CPU") as caught:
        plan(Cluster(generators=40, generator_cpus=1.0), [Node("n0", "one", 8.0)])
    message = str(caught.value)
    assert "asks for 40.5 CPU and the cluster has 8" in message
    assert "40 generators, each 1 CPU and 0 GPU" in message
    assert "It would fit with --cluster.generators 7, or with 5 more nodes of 8 CPU" in message


def test_gpus_on_a_cluster_that_has_none() -> None:
    with pytest.raises(ValueError, match=r"asks for 1 GPU and the cluster has 0") as caught:
        plan(Cluster(generator_gpus=1.0), LAPTOP)
    assert "--cluster.*-gpus" in str(caught.value)


def test_a_cluster_that_grows_is_asked_for_what_is_missing() -> None:
    growing = Cluster(generators=4, generator_gpus=1.0, learner_gpus=1.0, autoscaling=True)
    made = plan(growing, [Node("a", "node-a", 8.0, 2.0)])
    assert made.generator.nodes == ("a",)
    assert "1 on node-a, 3 wait for nodes that the autoscaler brings" in made.lines()[2]


def test_a_share_of_nothing_is_a_bundle_that_ray_takes() -> None:
    share = Share(0.0, 0.0)
    assert share.bundle() == {"CPU": 0.001}
    assert replace(share, gpus=0.5).bundle() == {"GPU": 0.5}
