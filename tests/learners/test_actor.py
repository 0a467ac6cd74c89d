"""The actor around a learner, called without Ray."""

import pytest
import torch

from rlhf_ray.actors.learner import LearnerActor, LearnerSpec
from rlhf_ray.config import PPO
from rlhf_ray.data.ids import Version
from rlhf_ray.learners.ppo import PPOLearner
from tests.learners.toys import learner, table

SETTINGS = PPO(prompts=8, epochs=1, minibatches=1)


@pytest.mark.parametrize("shares_gpu", [True, False])
def test_a_shared_gpus_memory_is_given_back_after_each_update_and_publish(
    monkeypatch: pytest.MonkeyPatch, shares_gpu: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("given back"))
    for name in ("update", "export"):
        _note(monkeypatch, name, calls)
    spec = LearnerSpec(
        ppo=SETTINGS,
        policy_path="",
        critic_path=None,
        dtype="float32",
        weights_dtype="float32",
        temperature=1.0,
        run_seed=0,
        probes=((1, 2, 3),),
        shares_gpu=shares_gpu,
    )
    actor = LearnerActor(0, 1, spec)
    actor._learner, actor._table = learner(settings=SETTINGS), table()
    actor.update(0)
    assert actor.pack(Version(0, 1)) is not None
    wanted = ["update", "given back", "export", "given back"]
    assert calls == (wanted if shares_gpu else ["update", "export"])


def _note(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[str]) -> None:
    own = getattr(PPOLearner, name)
    monkeypatch.setattr(PPOLearner, name, lambda *args: calls.append(name) or own(*args))
