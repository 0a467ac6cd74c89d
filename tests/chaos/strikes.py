"""Who is struck when, and how: by hand for each state of each role, or drawn from a seed."""

import random
import signal
from dataclasses import dataclass, replace

DRIVER = "driver"
BEFORE_THE_LOOP = "run is calibrated"
KILL, STOP = int(signal.SIGKILL), int(signal.SIGSTOP)

RATES = {  # occurrences of a point in one iteration
    "generator generates": 4,
    "generator loads": 1,
    "scorer scores": 8,
    "learner updates": 1,
    "learner publishes": 1,
    "learner saves": 1,
}


@dataclass(frozen=True)
class Strike:
    """One signal to one process.

    at: the point of the run (see driver.py). time: its how manieth occurrence in the loop, what is
    done again after a loss counted too. delay: seconds after it, and `part_of_update` times the
    seconds of the last update. which: of the role's processes, by age; -1 is the youngest.
    """

    role: str
    at: str
    time: int
    signal: int = KILL
    delay: float = 0.0
    part_of_update: float = 0.0
    which: int = -1

    @property
    def iteration(self) -> float:
        """In which it falls, of a point that is reached in each."""
        return self.time / RATES[self.at]

    def from_step(self, step: int) -> "Strike":
        """The same for a driver that resumes about `step`, and counts each point anew."""
        return replace(self, time=max(1, self.time - step * RATES.get(self.at, 0)))


def generator(how: int, first: int) -> list[Strike]:
    """In each state, some iterations apart (four shards and one load each)."""
    return [
        Strike("generator", "learner updates", first, how, part_of_update=0.2),  # idle
        Strike("generator", "generator generates", 4 * (first + 3), how, delay=0.005),
        Strike("generator", "generator loads", first + 9, how, delay=0.002),  # mid-sync
        Strike("generator", "generator made", 3, how, delay=2.0),  # loading its engine
    ]


def scorers(how: int, first: int) -> list[Strike]:
    """Both kinds, while they score."""
    return [
        Strike("reference", "scorer scores", first, how, delay=0.002),
        Strike("reward", "scorer scores", first + 40, how, delay=0.002),
    ]


def learner(how: int, which: int = -1) -> list[Strike]:
    """In log-probs, in an epoch, between update and publish, in a save, in a load."""
    return [
        Strike("learner", "learner updates", 3, how, part_of_update=0.05, which=which),
        Strike("learner", "learner updates", 7, how, part_of_update=0.7, which=which),
        Strike("learner", "learner publishes", 12, how, which=which),
        Strike("learner", "learner saves", 11, how, delay=0.001, which=which),
    ]


MATRIX = {
    "generator killed": generator(KILL, 2),
    "generator stopped": generator(STOP, 2),
    "scorers and the control actor killed, then stopped": [
        *scorers(KILL, 20),
        Strike("control", "learner updates", 6, KILL),
        *scorers(STOP, 100),
        Strike("control", "learner updates", 20, STOP),
    ],
    "learner killed, then stopped": [
        *learner(KILL),
        Strike("learner", "learner updates", 19, STOP, part_of_update=0.7),
    ],
    "learner killed while idle, with a generator, while it loads a checkpoint": [
        # Before the first step, and while the rollouts of another are written.
        Strike("learner", BEFORE_THE_LOOP, 1, delay=0.2),
        Strike("learner", "learner publishes", 8, delay=0.05),
        Strike("learner", "learner updates", 14, part_of_update=0.3),
        Strike("generator", "learner updates", 14, part_of_update=0.3),
        Strike("learner", "learner loads", 2, delay=0.001),
    ],
    "driver killed four times": [
        Strike(DRIVER, "learner updates", 4, part_of_update=0.5),
        Strike(DRIVER, "generator generates", 28, delay=0.01),
        Strike(DRIVER, "learner saves", 12, delay=0.003),
        Strike(DRIVER, "learner publishes", 17),
    ],
}

# One case of each class of failure in one run.
EACH_CLASS = [
    Strike("generator", "generator generates", 9, KILL, delay=0.005),
    Strike("reward", "scorer scores", 30, KILL, delay=0.002),
    Strike("learner", "learner updates", 6, KILL, part_of_update=0.5),
    Strike("generator", "learner updates", 6, STOP, part_of_update=0.5),  # both start at once
    Strike(DRIVER, "learner updates", 14, part_of_update=0.5),
]


def drawn(seed: int, first: int, iterations: int) -> list[Strike]:
    """A schedule for `iterations` after `first`: in order, on any role at any point.

    Two to four strikes, and at times one more on the driver.
    """
    draw = random.Random(seed)
    found = []
    for _ in range(draw.randint(2, 4)):
        at = draw.choice(sorted(RATES))
        found.append(
            Strike(
                role=draw.choice(["generator", "reference", "reward", "learner"]),
                at=at,
                time=max(1, round(RATES[at] * (first + draw.uniform(1, iterations - 1)))),
                signal=draw.choice([KILL, KILL, STOP]),
                delay=draw.uniform(0.0, 0.05),
                part_of_update=draw.choice([0.0, draw.random()]),
            )
        )
    if draw.random() < 0.4:
        at = draw.choice(sorted(RATES))
        moment = round(RATES[at] * (first + draw.uniform(2, iterations - 1)))
        found.append(Strike(DRIVER, at, moment, delay=draw.uniform(0, 0.3)))
    return sorted(found, key=lambda strike: strike.iteration)
