"""The actor around a learner, called without Ray."""

from dataclasses import replace

import pytest
import torch

from rlhf_ray.actors.learner import LearnerActor, LearnerSpec
from rlhf_ray.config import PPO
from rlhf_ray.data.ids import Version
from rlhf_ray.learners.ppo import PPOLearner
from rlhf_ray.models.packing import PackedRows
from rlhf_ray.weights.buckets import verify
from tests.learners.toys import learner, table

SETTINGS = PPO(prompts=8, epochs=1, minibatches=1)
SPEC = LearnerSpec(
    ppo=SETTINGS,
    policy_path="",
    critic_path=None,
    dtype="float32",
    weights_dtype="float32",
    temperature=1.0,
    run_seed=0,
    probes=((1, 2, 3),),
)


@pytest.mark.parametrize("shares_gpu", [True, False])
def test_a_shared_gpus_memory_is_given_back_after_each_update_and_publish(
    monkeypatch: pytest.MonkeyPatch, shares_gpu: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("given back"))
    for name in ("update", "export"):
        _note(monkeypatch, name, calls)
    actor = LearnerActor(0, 1, replace(SPEC, shares_gpu=shares_gpu))
    actor._learner, actor._table = learner(settings=SETTINGS), table()
    actor.update(0)
    assert actor.pack(Version(0, 1)) is not None
    wanted = ["update", "given back", "export", "given back"]
    assert calls == (wanted if shares_gpu else ["update", "export"])


@pytest.mark.parametrize(("bucket_bytes", "several"), [(4096, True), (64 << 20, False)])
def test_a_version_is_given_away_an_object_for_each_bucket(
    bucket_bytes: int, several: bool
) -> None:
    actor = LearnerActor(0, 1, replace(SPEC, bucket_bytes=bucket_bytes))
    actor._learner = learner(settings=SETTINGS)
    manifest = actor.pack(Version(0, 1))
    assert manifest is not None and (len(manifest.sizes) > 1) is several
    taken = actor.take_objects()
    verify(manifest, taken if several else [taken])


def test_a_critic_that_starts_at_zero_is_not_calibrated() -> None:
    actor = LearnerActor(0, 1, SPEC)
    actor._learner = learner(settings=SETTINGS, critic="separate")
    actor.calibrate(2.0, 4.0)
    critic = actor._learner.critic
    assert critic is not None
    values_N = critic(PackedRows(torch.tensor([3, 4, 5]), (3,)), torch.tensor([1, 2]))
    assert not values_N.any()


def _note(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[str]) -> None:
    own = getattr(PPOLearner, name)
    monkeypatch.setattr(PPOLearner, name, lambda *args: calls.append(name) or own(*args))
