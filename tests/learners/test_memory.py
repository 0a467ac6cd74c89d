"""A whole update's peak memory does not grow with the vocabulary times the tokens."""

from tests.memory import measured


def test_an_updates_memory_does_not_grow_with_vocabulary_times_tokens() -> None:
    few, many, vocab = 128, 512, 150_000
    small, large = (measured("tests.learners.update_memory", n, vocab) for n in (few, many))
    assert large - small < 0.1 * (many - few) * vocab * 4, (small, large)
