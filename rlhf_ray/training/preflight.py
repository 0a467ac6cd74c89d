"""What would end a run only after a model was trained, looked for before one is.

Where SFT is yet to make tokenizer and model, stand-ins take their place: texts, counts and lengths
in positions are the same, token ids are not.
"""

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_ray.config import Config, Reward
from rlhf_ray.data.prompts import Prompts, batch_of_step, load_prompts
from rlhf_ray.generators.registry import check_installed
from rlhf_ray.models.ensemble import first_member
from rlhf_ray.models.loading import check_length, load_config, load_tokenizer, positions_of
from rlhf_ray.models.reward_model import SETTINGS_FILE
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.observe.keys import KEYS
from rlhf_ray.observe.trackers import check_tracker
from rlhf_ray.rewards.function import FunctionReward
from rlhf_ray.training.engine import check_context
from rlhf_ray.training.estimators import check_estimator
from rlhf_ray.training.meta import read_samples
from rlhf_ray.training.paths import policy_of, reward_of
from rlhf_ray.training.reward_ensemble import require_heldout
from rlhf_ray.training.reward_model import load_split

TAKEN = {key.partition("/")[2] for key in KEYS if key.startswith("score/") and "<" not in key}


def preflight(config: Config) -> None:
    """Raise ValueError for settings or data of a resolved config that a later phase would refuse.

    Where all models are there, what scores is not loaded: the scorers come next, and do that.
    """
    check_estimator(config.ppo)
    check_installed(config.rollout.backend)
    check_names(config.reward)
    check_tracker(config.run.tracker)
    policy, reward = policy_of(config), reward_of(config)
    tokenizer, model = _loaded(config, policy or config.model.path)
    check_context(config, model, policy or "the model that SFT trains")
    enough_prompts(config, tokenizer)
    if policy is not None and reward is not None:
        return
    check_sources(config)
    if reward is None:
        check_lists(config, tokenizer, model)


def enough_prompts(config: Config, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """What PPO asks. ValueError where an iteration or an evaluation lacks prompts."""
    prompts = load_prompts(config.data, tokenizer, config.run.seed)
    batch_of_step(len(prompts.train), config.ppo.prompts, config.run.seed, 0)
    if not prompts.heldout:
        raise ValueError(
            "no prompt is held out to evaluate on: give --data.heldout-prompts FILE, or a "
            "--data.heldout-fraction above 0"
        )
    return prompts


def check_names(reward: Reward) -> None:
    """Raise ValueError where the metric of a source would be that of all scores."""
    for source in reward.sources:
        if source.name in TAKEN:
            raise ValueError(
                f"reward function {source.function!r} would be the metric score/{source.name}, "
                f"which is of the whole score: give the function another name"
            )


def check_sources(config: Config) -> None:
    """Import the functions, as scorers will, and look for the models that the reward is of."""
    for source in config.reward.sources:
        if source.function:
            FunctionReward(source.function, timeout_s=source.timeout_s).close()
        elif source.classifier:
            load_config(source.classifier, trust_remote_code=config.model.trust_remote_code)
        elif source.model and not (first_member(source.model) / SETTINGS_FILE).is_file():
            raise ValueError(
                f"reward.sources.model {source.model} holds no reward model ({SETTINGS_FILE} is "
                f"missing): train one with jobs/rm.py, or give another model as `classifier`"
            )
    if config.reward.gold:
        try:
            FunctionReward(config.reward.gold).close()
        except ValueError as error:
            raise ValueError(f"reward.gold: {error}") from None


def check_lists(
    config: Config, tokenizer: PreTrainedTokenizerBase, model: PretrainedConfig
) -> None:
    """Raise ValueError for ranked lists that no reward model could be trained on.

    tokenizer, model: the policy's, from which it grows where `rm.base` is not set.
    """
    if config.rm.base is not None:
        tokenizer, model = _loaded(config, config.rm.base)
    require_heldout(config)
    check_length(positions_of(model), config.rm.max_tokens, "rm.max-tokens")
    load_split(config, tokenizer)
    if config.rm.meta.samples is not None:
        read_samples(
            config.rm.meta.samples,
            tokenizer,
            max_tokens=config.rm.max_tokens,
            data=config.data,
        )


def _loaded(config: Config, path: str | None) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """Tokenizer and config of the model at `path`; without one, like those that SFT will make."""
    made, trust = config.model, config.model.trust_remote_code
    if path is not None:
        tokenizer = load_tokenizer(path, trust_remote_code=trust)
        return tokenizer, load_config(path, trust_remote_code=trust)
    tokenizer = make_tokenizer([], made.vocab)
    with torch.device("meta"):  # no weights: the width may be any
        return tokenizer, make_decoder(tokenizer, made.hidden, 1, config.run.seed).config
