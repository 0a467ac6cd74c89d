"""What the pipeline settles before anything expensive begins: paths and prompts."""

import dataclasses
from pathlib import Path

import pytest

from rlhf_ray.config import PPO, Config, Data, Model, Reward, RewardSource, Run
from rlhf_ray.models.tiny import make_tokenizer
from rlhf_ray.orchestration.side_by_side import side_by_side
from rlhf_ray.training.pipeline import Phases, resolve


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run in `tmp_path` with twenty prompts, and a tokenizer at `policy`."""
    monkeypatch.chdir(tmp_path)
    make_tokenizer(["some text to learn from"], 300).save_pretrained("policy")
    Path("prompts.txt").write_text("".join(f"some text {i}\n" for i in range(20)))
    data = Data(prompts="prompts.txt", heldout_fraction=0.2)
    ppo = PPO(prompts=8)
    return Config(run=Run(root="runs"), data=data, ppo=ppo, model=Model(path="policy"))


def prompts_of(config: Config):
    return Phases(config, None, None, None).prompts("policy")  # type: ignore[arg-type]


def test_prompts_are_counted_before_they_are_needed(config: Config) -> None:
    found = prompts_of(config)
    assert len(found.train) + len(found.heldout) == 20
    with pytest.raises(ValueError, match=r"32 different prompts .* set --ppo\.prompts to at most"):
        prompts_of(dataclasses.replace(config, ppo=PPO(prompts=32)))
    none_apart = dataclasses.replace(config.data, heldout_fraction=0.0)
    with pytest.raises(ValueError, match=r"no prompt is held out .*--data\.heldout-prompts"):
        prompts_of(dataclasses.replace(config, data=none_apart))


def test_every_path_is_absolute_wherever_it_is_read(config: Config) -> None:
    sources = (RewardSource(model="policy"), RewardSource(classifier="some-org/some-model"))
    found = resolve(dataclasses.replace(config, reward=Reward(sources=sources)))
    assert found.data.prompts == str(Path("prompts.txt").absolute())
    assert found.model.path == found.reward.sources[0].model == str(Path("policy").absolute())
    assert found.reward.sources[1].classifier == "some-org/some-model", "a name of a hub"
    missing = Reward(sources=(RewardSource(model="./no/such/model"),))
    with pytest.raises(ValueError, match=r"reward\.sources\.model \./no/such/model: there is no"):
        resolve(dataclasses.replace(config, reward=missing))


def test_the_demonstration_keeps_what_is_given(config: Config) -> None:
    data = Data(heldout_prompts="prompts.txt")
    found = resolve(dataclasses.replace(config, data=data, model=Model()))
    assert found.data.heldout_prompts == str(Path("prompts.txt").absolute())
    assert found.data.prompts and Path(found.data.prompts).parent.name == "data"


def test_no_call_has_no_rows() -> None:
    """An ensemble whose members were all trained before it was killed."""
    assert not list(side_by_side(None, [], plan=None, name="", log=print))  # type: ignore[arg-type]
