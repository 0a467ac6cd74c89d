"""The driver's end of the control actor: it reports how things stand and follows what is wished."""

import os
import time
from collections.abc import Callable
from typing import Any

from rlhf_ray.actors.control import Report, Standing, Wish
from rlhf_ray.orchestration.autoscale import Autoscaler, Limits, Load
from rlhf_ray.orchestration.pool import GeneratorPool
from rlhf_ray.orchestration.reactor import Late, Outcome, Reactor

EXCHANGE_EVERY = 0.5
EXCHANGE_TIMEOUT = 30.0
WAITS_SHOWN = 8


class Steering:
    """Exchanges report and wish all the time, without waiting; scales the pool towards the wish.

    generators: how many the pool begins with. renew: ends the control actor's process; Ray makes
    another, which learns the wish from here. standing: every actor that is not a generator.
    """

    def __init__(
        self,
        reactor: Reactor,
        control: Any,
        pool: GeneratorPool,
        *,
        renew: Callable[[], None],
        generators: int,
        standing: Callable[[], list[Standing]],
        log: Callable[[str], None],
    ) -> None:
        self._reactor, self._control, self._pool = reactor, control, pool
        self._renew, self._standing, self._log = renew, standing, log
        self.wish = Wish(generators)
        self._iteration: dict[str, Any] = {}
        self._autoscaler: Autoscaler | None = None
        self._exchanging = False
        reactor.every(EXCHANGE_EVERY, self._exchange)

    def measured(self, iteration: dict[str, Any]) -> None:
        """An iteration is over: what status.py shows of it, and what autoscaling goes by."""
        self._iteration = iteration
        idle, serving = self._pool.idleness.take()
        if self._autoscaler is None:
            return
        load = Load(iteration["time/step"], iteration["time/wait_rollouts"], idle, serving)
        now = self._pool.wanted
        then = self._autoscaler.decide(now, load)
        if then != now:
            self._log(f"autoscaling: {self._autoscaler.decision}")
            self._pool.scale(then)

    def _exchange(self, now: float) -> None:
        if self._exchanging:
            return
        self._exchanging = True
        self._reactor.when(
            self._control.exchange.remote(self._report(now)),
            self._on_wish,
            who="control",
            what="exchange",
            timeout=EXCHANGE_TIMEOUT,
        )

    def _report(self, now: float) -> Report:
        waits = [
            (wait.who, wait.what, now - wait.since) for wait in self._reactor.oldest()[:WAITS_SHOWN]
        ]
        driver = Standing("driver", "driver", "serving", pid=os.getpid())
        return Report(
            iteration=self._iteration,
            actors=[driver, *self._pool.standing(), *self._standing()],
            waits=waits,
            wanted=self._pool.wanted,
            decision=self._autoscaler.decision if self._autoscaler else "",
            at=time.time(),
            wish=self.wish,
        )

    def _on_wish(self, outcome: Outcome) -> None:
        self._exchanging = False
        if isinstance(outcome.error, Late):
            self._log(f"{outcome.error}; it is started anew")
            self._renew()
        if outcome.error is None:  # else it is asked again at the next exchange
            before, self.wish = self.wish, outcome.value
            if self.wish != before:
                self._follow(before)

    def _follow(self, before: Wish) -> None:
        wish = self.wish
        if wish.auto is None:
            self._autoscaler = None
            if (wish.generators, wish.asked) != (self._pool.wanted, before.asked):
                self._log(f"{self._pool.wanted} → {wish.generators} generators, as asked")
                self._pool.scale(wish.generators)
        elif wish.auto != before.auto:
            least, most = wish.auto
            self._autoscaler = Autoscaler(Limits(least, most))
            self._pool.idleness.take()
            self._log(f"autoscaling between {least} and {most} generators")
            self._pool.scale(min(max(self._pool.wanted, least), most))
        if wish.paused != before.paused:
            self._log("paused before the next iteration" if wish.paused else "going on")
        if wish.stop and not before.stop:
            self._log("stopping after this iteration, with a checkpoint")
