import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.ids import (
    CALIBRATION,
    HELDOUT,
    TRAIN,
    RolloutKey,
    Version,
    rollout_id,
    sampling_seed,
    stable_hash,
    unpack,
)

KEYS = st.builds(
    RolloutKey,
    split=st.sampled_from([TRAIN, HELDOUT, CALIBRATION]),
    step=st.integers(0, 2**19 - 1),
    prompt_id=st.integers(0, 2**30 - 1),
    sample_index=st.integers(0, 2**12 - 1),
)


@given(KEYS)
def test_unpack_is_the_inverse_and_the_id_fits_int64(key):
    assert unpack(rollout_id(key)) == key
    assert 0 <= rollout_id(key) < 2**63


@given(KEYS, KEYS)
def test_ids_order_as_split_step_prompt_sample(a, b):
    assert (rollout_id(a) < rollout_id(b)) == (dataclasses.astuple(a) < dataclasses.astuple(b))


@given(KEYS, st.sampled_from(["split", "step", "prompt_id", "sample_index"]), st.booleans())
def test_a_part_that_does_not_fit_is_named(key, part, negative):
    limit = {"split": 4, "step": 2**19, "prompt_id": 2**30, "sample_index": 2**12}[part]
    with pytest.raises(ValueError, match=part):
        rollout_id(dataclasses.replace(key, **{part: -1 if negative else limit}))


def test_an_id_by_hand():
    assert rollout_id(RolloutKey(TRAIN, 1, 2, 3)) == (1 << 42) + (2 << 12) + 3
    assert rollout_id(RolloutKey(HELDOUT, 0, 0, 0)) == 1 << 61


def test_seeds_of_a_run_are_all_different():
    keys = [RolloutKey(TRAIN, s, p, i) for s in range(20) for p in range(50) for i in range(8)]
    seeds = {sampling_seed(run, key) for key in keys for run in (0, 1)}
    assert len(seeds) == 2 * len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(KEYS, st.integers(0, 2**31))
def test_seed_forgets_the_step_but_in_training(key, run_seed):
    later = dataclasses.replace(key, step=(key.step + 1) % 2**19)
    same = sampling_seed(run_seed, key) == sampling_seed(run_seed, later)
    assert same == (key.split != TRAIN)


def test_hash_is_the_same_in_another_process_and_does_not_run_parts_together():
    code = (
        "from rlhf_ray.data.ids import *;"
        "print(stable_hash(7, 'train', '水壶'), sampling_seed(3, RolloutKey(0, 5, 6, 7)))"
    )
    command = [sys.executable, "-c", code]
    runs = {
        subprocess.run(
            command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    here = f"{stable_hash(7, 'train', '水壶')} {sampling_seed(3, RolloutKey(0, 5, 6, 7))}\n"
    assert runs == {here}
    assert stable_hash(1, 23) != stable_hash(12, 3)


def test_versions_order_by_incarnation_then_step():
    assert Version(0, 9) < Version(1, 2) < Version(1, 3)
    assert str(Version(1, 3)) == "1.3"
