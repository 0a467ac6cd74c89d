"""Where a run is steered from and asked about, from any machine of the cluster.

A named actor `rlhf-<run>` in the namespace `rlhf`. It decides nothing: it keeps what people wish
and what the driver last reported, and the driver reconciles towards the wish as it goes.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from rlhf_ray.actors.presence import present

NAMESPACE = "rlhf"
ANSWER_TIMEOUT = 30.0  # seconds in which a control actor answers a job


def control_name(run: str) -> str:
    """The name of a run's control actor."""
    return f"rlhf-{run}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What people want of a run.

    asked: Unix time at which the number of generators was last wished for; the same one again is a
    wish too. auto: the run decides, between these two numbers.
    """

    generators: int
    asked: float = 0.0
    auto: tuple[int, int] | None = None
    paused: bool = False
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """One actor as the driver sees it. work: what it has in hand, in words."""

    name: str
    role: str
    state: str
    version: str = ""
    node: str = ""
    pid: int | None = None
    work: str = ""
    restarts: int = 0
    last_error: str = ""


@dataclass
class Report:
    """What the driver says of a run: plain values, ready to print.

    iteration: the last row of metrics, `step` and `of`. waits: (who, what, seconds), longest
    first. wanted: generators that are to be there. decision: autoscaling's last. at: Unix time.
    wish: as the driver knows it, for a control actor that was restarted.
    """

    iteration: dict[str, Any] = field(default_factory=dict)
    actors: list[Standing] = field(default_factory=list)
    waits: list[tuple[str, str, float]] = field(default_factory=list)
    wanted: int = 0
    decision: str = ""
    at: float = 0.0
    wish: Wish | None = None


class ControlActor:
    """Keeps the wish and the report."""

    def __init__(self, generators: int) -> None:
        self._wish = Wish(generators)
        self._report = Report()
        self._early: dict[str, Any] | None = {}  # wished before the driver's first call

    def exchange(self, report: Report) -> Wish:
        """The driver's call: here is how it is, tell me what is wished."""
        if self._early is not None and report.wish is not None:
            self._wish = replace(report.wish, **self._early)
        self._report, self._early = report, None
        return self._wish

    def scale(self, generators: int, *, relative: bool = False) -> int:
        """Ask for this many generators, or for this many more; returns how many are now wished."""
        if relative and self._early is not None:
            raise ValueError(
                "the run has yet to say how many generators it has: ask again in a few seconds, or "
                "for a number without a sign"
            )
        now = self._report.wanted if self._wish.auto else self._wish.generators
        wanted = now + generators if relative else generators
        if wanted < 1:
            raise ValueError(
                f"{wanted} generators are asked for where there are {now}; a run needs at least 1"
            )
        self._change(generators=wanted, asked=time.time(), auto=None)
        return wanted

    def scale_by_itself(self, least: int, most: int) -> None:
        """Let the run decide between `least` and `most` generators."""
        self._change(auto=(least, most))

    def pause(self, paused: bool) -> None:
        """Hold the loop before its next iteration, or let it go on."""
        self._change(paused=paused)

    def stop(self) -> None:
        """End the run at the next consistent point, resumable."""
        self._change(stop=True)

    def status(self) -> tuple[Report, Wish, Standing]:
        """The driver's last report, what is wished, and this actor itself."""
        here = present()
        mine = Standing("control", "control", "serving", node=here.node, pid=here.pid)
        return self._report, self._wish, mine

    def _change(self, **wishes: Any) -> None:
        self._wish = replace(self._wish, **wishes)
        if self._early is not None:
            self._early |= wishes


def create_control(run: str, generators: int) -> ray.actor.ActorHandle:
    """The driver's end. ValueError where a run of this name is alive."""
    # One call at a time, Ray's default: a wish is read, changed and written without a lock.
    actor = ray.remote(ControlActor).options(
        name=control_name(run), namespace=NAMESPACE, num_cpus=0, max_restarts=-1
    )
    try:
        return actor.remote(generators)
    except ValueError:
        raise ValueError(_is_alive(run)) from None


def refuse_namesake(run: str) -> None:
    """Raise ValueError where a run of this name is alive: early, before hours of training."""
    try:
        ray.get_actor(control_name(run), namespace=NAMESPACE)
    except ValueError:  # Ray knows none
        return
    raise ValueError(_is_alive(run))


def _is_alive(run: str) -> str:
    return (
        f"a run named {run!r} is alive on this cluster: stop it (jobs/stop.py --run {run}), "
        f"or choose another name with --run.name"
    )


def find_control(run: str) -> ray.actor.ActorHandle:
    """Everybody else's end. ValueError, naming the runs that are alive, where there is none."""
    try:
        return ray.get_actor(control_name(run), namespace=NAMESPACE)
    except ValueError:
        named = ray.util.list_named_actors(all_namespaces=True)
        prefix = control_name("")
        alive = [
            a["name"].removeprefix(prefix)
            for a in named
            if a["namespace"] == NAMESPACE and a["name"].startswith(prefix)
        ]
        raise ValueError(
            f"no run named {run!r} is alive on this cluster; alive: {', '.join(alive) or 'none'}"
        ) from None


def ask(run: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """What the control actor of `run` answers. ValueError for what it refuses or leaves unsaid."""
    call = getattr(find_control(run), method).remote(*args, **kwargs)
    try:
        return ray.get(call, timeout=ANSWER_TIMEOUT)
    except RayTaskError as error:
        raise error.cause from None
    except ActorUnavailableError:  # of those below, the one that passes
        raise ValueError(
            f"the control actor of {run!r} is being started anew, and did not answer `{method}`: "
            f"try again in a few seconds"
        ) from None
    except RayActorError:
        raise ValueError(f"the run {run!r} has just ended") from None
    except GetTimeoutError:
        raise ValueError(
            f"the control actor of {run!r} did not answer `{method}` in {ANSWER_TIMEOUT:.0f} s: "
            f"look whether its node is up (ray status), and try again"
        ) from None
