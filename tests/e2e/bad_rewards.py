"""Reward functions that go wrong; named by the tests as tests.e2e.bad_rewards:<function>."""


def raises(prompts: list[str], responses: list[str]) -> list[float]:
    """Fails on every response."""
    raise RuntimeError("the polite-o-meter is out of order")


def few(prompts: list[str], responses: list[str]) -> list[float]:
    """Returns one score too few."""
    return [0.0] * (len(responses) - 1)


def length(prompts: list[str], responses: list[str]) -> list[float]:
    """Works: the number of characters."""
    return [float(len(response)) for response in responses]
