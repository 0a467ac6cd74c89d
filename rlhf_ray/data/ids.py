"""Identity of a rollout and the seed that follows from it: who computes it changes nothing."""

from dataclasses import dataclass

import xxhash

SPLIT_BITS, STEP_BITS, PROMPT_BITS, SAMPLE_BITS = 2, 19, 30, 12
TRAIN, HELDOUT, CALIBRATION = 0, 1, 2


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A policy version. The incarnation rises when the learner goes back to a checkpoint."""

    incarnation: int
    step: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}"


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """(split, step, prompt, sample), packed into 63 bits by `rollout_id`."""

    split: int
    step: int
    prompt_id: int
    sample_index: int


def rollout_id(key: RolloutKey) -> int:
    """The int64 id of a rollout; ids of one step sort by prompt, then by sample.

    Raises ValueError where a part does not fit: 2^19 steps, 2^30 prompts, 2^12 samples.
    """
    for name, value, bits in (
        ("split", key.split, SPLIT_BITS),
        ("step", key.step, STEP_BITS),
        ("prompt_id", key.prompt_id, PROMPT_BITS),
        ("sample_index", key.sample_index, SAMPLE_BITS),
    ):
        if not 0 <= value < 1 << bits:
            raise ValueError(
                f"{name} {value} does not fit a rollout id: it is 0 to {(1 << bits) - 1}"
            )
    packed = (key.split << STEP_BITS) | key.step
    packed = (packed << PROMPT_BITS) | key.prompt_id
    return (packed << SAMPLE_BITS) | key.sample_index


def unpack(packed: int) -> RolloutKey:
    """Inverse of `rollout_id`."""
    sample_index = packed & ((1 << SAMPLE_BITS) - 1)
    packed >>= SAMPLE_BITS
    prompt_id = packed & ((1 << PROMPT_BITS) - 1)
    packed >>= PROMPT_BITS
    return RolloutKey(packed >> STEP_BITS, packed & ((1 << STEP_BITS) - 1), prompt_id, sample_index)


def stable_hash(*parts: int | str) -> int:
    """63-bit hash of `parts`, the same in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def sampling_seed(run_seed: int, key: RolloutKey) -> int:
    """63-bit seed of one rollout.

    Held-out rollouts leave the step out, so that evaluations differ by the policy alone.
    """
    step = key.step if key.split == TRAIN else -1
    return stable_hash(run_seed, key.split, step, key.prompt_id, key.sample_index)
