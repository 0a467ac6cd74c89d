"""What a critic of its own starts as: the reward model where that reads the policy's own rows."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ray.config import PPO, SFT, Config, Data, Model, Reward, RewardSource, Rollout, Run
from rlhf_ray.models.reward_model import RewardModel, backbone_config
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.observe.console import Console
from rlhf_ray.training.critic_start import why_from_policy
from rlhf_ray.training.pipeline import Phases

OWN, OTHER = (
    make_tokenizer([text], 300) for text in ("some text to learn from", "words of another kind")
)
BEGINNING = "the critic starts from the policy, not as the reward model: "


def save(path: Path, model: PreTrainedModel | RewardModel, beside: PreTrainedTokenizerBase) -> str:
    model.save_pretrained(path)
    beside.save_pretrained(path)
    return str(path)


def encoder() -> BertModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return BertModel(BertConfig(vocab_size=300, intermediate_size=8, **sizes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, what reward models grow from, and the reward models that did."""
    root = tmp_path_factory.mktemp("models")
    decoder, short, foreign = (make_decoder(one, 64, 1, 0) for one in (OWN, OWN, OTHER))
    short.config.max_position_embeddings = 32
    save(root / "policy", decoder, OWN)
    for name, model, tokenizer in (
        ("fitting", decoder, OWN),
        ("short", short, OWN),
        ("foreign", foreign, OTHER),
    ):
        save(root / f"{name}-base", model, tokenizer)
        save(root / name, RewardModel(model.base_model, "last"), tokenizer)
    save(root / "encoder-base", encoder(), OWN)
    save(root / "encoder", RewardModel(encoder(), "mean"), OWN)
    return root


def config_of(models: Path, place: Path, *sources: RewardSource, base: str | None = None) -> Config:
    made = Config(
        run=Run(name="small", root=str(place)),
        data=Data(max_prompt_tokens=24),
        model=Model(path=str(models / "policy")),
        sft=SFT(epochs=0),
        ppo=PPO(critic="separate"),
        rollout=Rollout(max_response_tokens=16),
        reward=Reward(sources=sources),
    )
    return replace(made, rm=replace(made.rm, base=base))


FAULTS = {
    "fitting": None,
    "encoder": "is an encoder, which cannot give a value at each token",
    "foreign": "has another tokenizer than the policy",
    "short": "takes 32 tokens, and a prompt with its response may have 40",
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_the_reward_model_only_if_that_reads_the_policys_rows(
    models: Path, tmp_path: Path, name: str
) -> None:
    config = config_of(models, tmp_path, RewardSource(model=str(models / name)))
    shown = io.StringIO()
    phases = Phases(config, None, None, Console("small", stream=shown))  # type: ignore[arg-type]
    phases.tell_of_critic(policy := phases.sft())
    reward, critic = phases.reward(policy)
    assert reward.sources == config.reward.sources
    if FAULTS[name] is None:
        assert critic == str(models / name) and not shown.getvalue()
    else:
        assert critic is None
        assert shown.getvalue().endswith(f"  {BEGINNING}{models / name} {FAULTS[name]}\n")
        assert shown.getvalue().count("\n") == 1, "said once"


@pytest.mark.parametrize("name", FAULTS)
def test_it_shows_in_what_the_reward_model_is_to_grow_from(
    models: Path, tmp_path: Path, name: str
) -> None:
    base = str(models / f"{name}-base")
    config = config_of(models, tmp_path, base=base)
    fault = FAULTS[name] and f"{BEGINNING}{base} {FAULTS[name]}"
    assert why_from_policy(config, config.model.path) == fault
    unknown = None if name == "foreign" else fault
    assert why_from_policy(config, None) == unknown, "SFT is yet to make the policy's tokenizer"


def test_what_grows_from_the_policy_fits_and_no_reward_model_is_told(
    models: Path, tmp_path: Path
) -> None:
    assert why_from_policy(config_of(models, tmp_path), str(models / "policy")) is None
    none = config_of(models, tmp_path, RewardSource(function="my_rewards:length"))
    told = why_from_policy(none, str(models / "policy"))
    assert told == f"{BEGINNING}no source of the reward is a reward model"


@pytest.mark.parametrize("ppo", [PPO(), PPO(critic="separate", estimator="rloo", samples=4)])
def test_without_a_critic_of_its_own_nothing_is_looked_at(tmp_path: Path, ppo: PPO) -> None:
    missing = RewardSource(model=str(tmp_path / "missing"))
    config = config_of(tmp_path, tmp_path, missing)
    assert why_from_policy(replace(config, ppo=ppo), None) is None
    with pytest.raises(ValueError, match=r"missing holds no reward model \(reward_model\.json"):
        why_from_policy(config, None)


def test_adapters_that_are_apart_have_the_config_of_their_base(
    models: Path, tmp_path: Path
) -> None:
    base = models / "encoder-base"
    model = RewardModel(encoder(), "mean")
    model.add_lora(rank=2, alpha=4.0)
    model.save_pretrained(tmp_path, base=base)
    assert not (tmp_path / "config.json").exists()
    assert backbone_config(tmp_path).model_type == "bert"


def test_prompts_that_are_left_out_are_told(models: Path, tmp_path: Path) -> None:
    asked, heldout = tmp_path / "asked.jsonl", tmp_path / "heldout.txt"
    asked.write_text('{"prompt": "a"}\n{"prompt": 3}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    heldout.write_text("b\nd\n")
    config = config_of(models, tmp_path)
    data = Data(prompts=str(asked), heldout_prompts=str(heldout), on_bad_row="skip")
    config = replace(config, data=data, ppo=replace(config.ppo, prompts=2, minibatches=1))
    shown = io.StringIO()
    phases = Phases(config, None, None, Console("small", stream=shown))  # type: ignore[arg-type]
    prompts = phases.prompts(phases.sft())
    assert [prompt.text for prompt in prompts.train] == ["a", "c"]
    told = " ".join(shown.getvalue().split())
    assert "1 prompts are held-out ones too: they are not trained on" in told
    assert f"prompts: 1 bad row skipped, the first: {asked}:2: " in told
