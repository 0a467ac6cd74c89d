"""Responses of a policy to a set of prompts: by the run's generators, side by side, into a file.

What MetaRM learns from and a reward is calibrated on. Who samples a response does not change it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_ray.actors.generator import make_engine
from rlhf_ray.config import Config
from rlhf_ray.data.ids import stable_hash
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.samples import Samples, write_samples
from rlhf_ray.generators.protocol import Request
from rlhf_ray.generators.registry import BACKENDS, check_installed
from rlhf_ray.models.device import device_here
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.observe.console import Console
from rlhf_ray.orchestration.phases import Call, run_phases
from rlhf_ray.orchestration.placement import plan_here
from rlhf_ray.orchestration.session import ray_session
from rlhf_ray.training.engine import generator_spec

Row = dict[str, Any]
TELL_EVERY = 32  # finished responses between two rows


def sample_to(
    config: Config, policy: str, out: Path, *, prompts: int, samples: int, console: Console
) -> int:
    """`samples` responses to each of the first `prompts` training prompts, written to `out`.

    As many generators as `config.cluster.generators` share the prompts. Returns the number of
    responses. Raises ValueError for prompts or a policy that cannot be used.
    """
    check_installed(config.rollout.backend)
    tokenizer = load_tokenizer(policy, trust_remote_code=config.model.trust_remote_code)
    chosen = load_prompts(config.data, tokenizer, config.run.seed).train[:prompts]
    parts = [
        range(i, len(chosen), config.cluster.generators) for i in range(config.cluster.generators)
    ]
    calls: list[Call] = [
        (
            (config, policy, [(chosen[k].prompt_id, chosen[k].token_ids) for k in part], samples),
            {},
        )
        for part in parts
        if len(part)
    ]
    texts: dict[int, list[str]] = {}
    with ray_session(), console.phase("sample", len(chosen) * samples) as line:
        done, plan = [0] * len(calls), plan_here(config)
        for place, row in run_phases(
            sample_prompts,
            calls,
            share=plan.generator,
            threads=plan.threads,
            name=f"sample {config.run.name}",
            start_timeout=config.cluster.start_timeout_s,
            log=console.note,
            environment=BACKENDS[config.rollout.backend].environment,
        ):
            texts |= row.pop("texts", {})
            done[place] = row["step"]
            line.update(sum(done), {}, total=len(chosen) * samples)
    write_samples(out, [Samples(one.text, tuple(texts[one.prompt_id])) for one in chosen])
    return len(chosen) * samples


def sample_prompts(
    config: Config, policy: str, prompts: list[tuple[int, tuple[int, ...]]], samples: int
) -> Iterator[Row]:
    """One generator's share: rows of progress, the last with `texts`: prompt id -> responses."""
    tokenizer = load_tokenizer(policy, trust_remote_code=config.model.trust_remote_code)
    engine = make_engine(generator_spec(config, policy, device_here()), "sample")
    requests = [
        Request(
            place * samples + k, token_ids, stable_hash(config.run.seed, "sample", prompt_id, k)
        )
        for place, (prompt_id, token_ids) in enumerate(prompts)
        for k in range(samples)
    ]
    tokens: dict[int, list[int]] = {}
    told = 0
    try:
        engine.submit(requests)
        while engine.has_work():
            for completion in engine.step():
                tokens[completion.rollout_id] = completion.response_token_ids.tolist()
            if len(tokens) - told >= TELL_EVERY:
                told = len(tokens)
                yield {"step": told, "total": len(requests)}
    finally:
        engine.close()
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    texts = {
        prompt_id: [
            tokenizer.decode(tokens[place * samples + k], **options) for k in range(samples)
        ]
        for place, (prompt_id, _) in enumerate(prompts)
    }
    yield {"step": len(requests), "total": len(requests), "texts": texts, "done": True}
