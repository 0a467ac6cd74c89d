"""What a node cannot see of a run's files: found by the node, and told before anything starts."""

import os
import re
from pathlib import Path

import pytest
import ray

from rlhf_ray.config import Cluster, Config
from rlhf_ray.orchestration import visible
from rlhf_ray.orchestration.placement import nodes, plan_here
from rlhf_ray.orchestration.plan import plan
from rlhf_ray.orchestration.shares import Node
from rlhf_ray.orchestration.visible import check_visible, unseen
from tests.running.jobs import TINY, job
from tests.running.nodes import several_nodes

# Nodes of one machine share its disks: what differs is what a process sees of itself.
HERE = Path("/proc/self/cwd")


def test_a_node_names_what_it_lacks(tmp_path: Path) -> None:
    run, texts, lists = tmp_path / "run", tmp_path / "texts.txt", tmp_path / "lists.tsv"
    run.mkdir()
    texts.write_text("")
    token = run / ".seen-1"
    assert unseen(token, [texts, lists], within=0.0) == [run, lists], "a directory of the same name"
    token.write_text("")
    assert unseen(token, [texts, lists], within=0.0) == [lists]
    lists.write_text("")
    assert unseen(token, [texts, lists], within=0.0) == []
    assert unseen(tmp_path / "no" / "such" / ".seen-1", [], within=0.3) == [tmp_path / "no/such"]


def test_what_shows_a_little_later_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "run" / ".seen-1"
    token.parent.mkdir()
    monkeypatch.setattr(visible.time, "sleep", lambda seconds: token.write_text(""))
    assert unseen(token, [], within=60.0) == []


def test_asked_are_nodes_with_room_but_for_the_drivers_own(joined: None) -> None:
    own = Node(ray.get_runtime_context().get_node_id(), "head", 8.0, 1.0)
    others = [Node("b", "gpu", 8.0, 2.0), Node("c", "cpu", 8.0)]

    def asked(*up: Node) -> list[str]:
        return [node.name for node in visible._others(plan(Cluster(), up))]

    assert asked(own, *others) == ["gpu"], "every part of this plan has some GPU"
    assert asked(own) == []
    assert asked(Node("b", "worker", 2.0)) == ["worker"], "the head has nothing to give"


def test_on_one_node_nothing_is_done(joined: None, tmp_path: Path) -> None:
    check_visible(tmp_path / "run", [HERE / "nothing"], plan_here(Config()), log=pytest.fail)
    assert not (tmp_path / "run").exists()


def test_every_node_is_asked_for_the_directory_and_the_paths(
    joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, here = plan_here(Config()), nodes()
    monkeypatch.setattr(visible, "_others", lambda plan: here)
    monkeypatch.chdir(tmp_path)
    run, own = tmp_path / "run", Path(f"/proc/self/task/{os.getpid()}")
    check_visible(run, [tmp_path], made, log=pytest.fail)
    with pytest.raises(ValueError, match=r"same path .* name it with --run\.root") as caught:
        check_visible(HERE / "run", [tmp_path, own], made, log=pytest.fail)
    lacks = f"{here[0].name} cannot see what the driver's node has at {HERE / 'run'}, {own}. "
    assert str(caught.value).startswith(lacks)
    assert not list(run.iterdir()), "the token outlives the question"


def test_a_node_that_does_not_answer_does_not_hold_the_run_up(
    joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, here = plan_here(Config()), nodes()
    said: list[str] = []
    gone = Node("ab" * 28, "gone (10.0.0.9)", 2.0)
    monkeypatch.setattr(visible, "_others", lambda plan: [gone, *here])
    check_visible(tmp_path, [], made, log=said.append)
    (line,) = said
    assert line.startswith("whether gone (10.0.0.9) sees the run's files is not known: ")
    monkeypatch.setattr(visible, "ANSWERED_WITHIN", 0.0)
    monkeypatch.setattr(visible, "_others", lambda plan: here)
    check_visible(tmp_path, [HERE / "nothing"], made, log=said.append)
    assert said[1].endswith(f"{here[0].name} did not finish `look for paths` in 0 s")


@pytest.mark.slow
def test_a_phase_ends_before_it_begins_where_a_node_lacks_its_directory(tmp_path: Path) -> None:
    with several_nodes() as cluster:
        cluster.add(cpus=2)
        cluster.add(cpus=2)  # the driver is one node's, whichever
        done = job("sft", f"--run.root={HERE}", "--run.name=apart", *TINY, cwd=tmp_path)
    assert done.code == 2, done.out
    place = HERE / "apart"
    paths = f"{place}, {place}/data/texts.txt, {place}/data/lists.tsv"
    assert re.search(
        rf"error: \S+ \([\d.]+\).* cannot see what the driver's node has at {paths}\. ", done.out
    )
    left = {path.name for path in (tmp_path / "apart").iterdir()}
    assert "data" in left and "sft" not in left
    assert not any(name.startswith(".seen-") for name in left)
