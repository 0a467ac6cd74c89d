"""What jobs/status.py and jobs/scale.py make of what they are told."""

import json
from dataclasses import asdict

import pytest

from jobs import scale, status
from rlhf_ray.actors.control import Report, Standing, Wish

ROW = {"step": 7, "of": 16, "score/mean": 1.25, "time/step": 4.0, "time/wait_rollouts": 2.5}
ROW |= {"time/generate": 2.25, "time/score": 0.25, "time/update": 1.5, "time/publish": 0.01}


def test_the_iteration_where_the_time_goes_and_who_is_waited_for() -> None:
    report = Report(ROW, waits=[("learner-0", "update", 3.2), ("reward-0", "x", 0.1)], wanted=2)
    first, seconds, wish, wait = status.lines(report, Wish(2), now=0.0)
    assert first == "iteration 7 of 16 is done  score/mean 1.25"
    assert seconds == (
        "seconds of the last iteration, 4.00: generate 2.25  update 1.50  score 0.25  publish 0.01"
    )
    assert wish == "generators wished for: 2"
    assert wait == "waits for learner-0: update, 3 s"


def test_a_run_that_begins_decides_itself_and_a_driver_that_is_silent() -> None:
    report = Report(wanted=3, decision="2 → 3 generators: learners waited 40%", at=100.0)
    found = list(status.lines(report, Wish(1, auto=(1, 8), paused=True), now=130.0))
    assert found == [
        "starting",
        "generators wished for: auto, 1 to 8 (now 3)",
        "autoscaling: 2 → 3 generators: learners waited 40%",
        "paused before the next iteration",
        "THE DRIVER HAS NOT REPORTED FOR 30 s",
    ]


def test_json_has_every_actor_and_the_wish() -> None:
    actor = Standing("generator-0", "generator", "serving", "0.7", pid=12, work="2 shards")
    control = Standing("control", "control", "serving")
    found = json.loads(status.as_json(Report(ROW, [actor]), Wish(1), control))
    assert [row["name"] for row in found["actors"]] == ["control", "generator-0"]
    assert found["wish"] == asdict(Wish(1))


@pytest.mark.parametrize("asked", ["4", "+1", "-2", "auto"])
def test_numbers_that_scale_takes(asked: str) -> None:
    assert scale.parse(["--generators", asked]).generators == asked


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["--generators", "many"], "give a number, as 4"),
        (["--generators", "auto", "--min", "3", "--max", "2"], "between 3 and 2 generators"),
    ],
)
def test_what_scale_refuses(argv: list[str], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        scale.parse(argv)
