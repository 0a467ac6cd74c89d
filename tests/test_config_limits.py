"""Every number of the config has limits, and what is senseless is refused with its flag."""

import math
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from rlhf_ray.config import Config, Reward, RewardSource
from rlhf_ray.config_limits import ABOVE, BELOW, FREE, LEAST, MAY_BE_INF, MOST


def numeric_fields(kind: Any, name: str = "") -> Iterator[tuple[str, type]]:
    """(dotted name, int or float) of each number that a value of this type may hold."""
    if kind in (int, float):
        yield name, kind
    elif is_dataclass(kind):
        types_of = typing.get_type_hints(kind)
        for field in fields(kind):
            yield from numeric_fields(types_of[field.name], f"{name}.{field.name}".lstrip("."))
    elif isinstance(kind, types.UnionType) or typing.get_origin(kind) is tuple:
        for inner in set(typing.get_args(kind)):
            yield from numeric_fields(inner, name)


NUMBERS = dict(numeric_fields(Config))
FLOATS = sorted(name for name, kind in NUMBERS.items() if kind is float)


def with_value(name: str, value: Any) -> Config:
    """The default config with one setting replaced."""
    *sections, field = name.split(".")
    nodes = [Config(reward=Reward(sources=(RewardSource(function="m:f"),)))]
    for section in sections:
        node = getattr(nodes[-1], section)
        nodes.append(node[0] if isinstance(node, tuple) else node)
    node = replace(nodes.pop(), **{field: value})
    for section in reversed(sections):
        is_list = isinstance(getattr(nodes[-1], section), tuple)
        node = replace(nodes.pop(), **{section: (node,) if is_list else node})
    return node


def test_every_number_has_limits_and_every_limit_a_number():
    bounded_below = [name for table in (LEAST, ABOVE) for names in table.values() for name in names]
    assert sorted([*bounded_below, *FREE]) == sorted(NUMBERS)
    for table in (MOST, BELOW):
        assert {name for names in table.values() for name in names} <= set(bounded_below)
    assert set(MAY_BE_INF) <= set(FLOATS)


@pytest.mark.parametrize("name", FLOATS)
def test_every_float_is_finite_unless_the_table_says_otherwise(name):
    for value in (math.nan, -math.inf, math.inf):
        if value == math.inf and name in MAY_BE_INF:
            assert with_value(name, value)
            continue
        with pytest.raises(ValueError, match=name.rpartition(".")[2].replace("_", "[-_]")):
            with_value(name, value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("data.max_prompt_tokens", 0, "--data.max-prompt-tokens is 0; it must be at least 1"),
        ("data.prompt_prefix_chars", (0, 3), "--data.prompt-prefix-chars is 0; it must be at lea"),
        ("run.seed", -1, "--run.seed is -1; it must be at least 0"),
        ("run.seed", 2**63, "it must be at most 9223372036854775807"),
        ("sft.warmup", 5.0, "--sft.warmup is 5.0; it must be at most 1"),
        ("sft.weight_decay", -0.1, "--sft.weight-decay is -0.1; it must be at least 0"),
        ("rm.warmup", -1.0, "--rm.warmup is -1.0; it must be at least 0"),
        ("rm.margin", math.nan, "--rm.margin is nan; it must be a finite number"),
        ("rm.lm_coef", -1.0, "--rm.lm-coef is -1.0; it must be at least 0"),
        ("rm.centring", -1.0, "--rm.centring is -1.0; it must be at least 0"),
        ("rm.lora.rank", -1, "--rm.lora.rank is -1; it must be at least 0"),
        ("rm.lora.alpha", 0.0, "--rm.lora.alpha is 0.0; it must be above 0"),
        ("rm.lora.dropout", 1.0, "--rm.lora.dropout is 1.0; it must be below 1"),
        ("rm.contrastive.weight", -1.0, "--rm.contrastive.weight is -1.0; it must be at least 0"),
        ("rm.contrastive.prototypes", 0, "--rm.contrastive.prototypes is 0; it must be at least 2"),
        ("rm.contrastive.dropout", 0.0, "--rm.contrastive.dropout is 0.0; it must be above 0"),
        ("rm.meta.eta", -1.0, "--rm.meta.eta is -1.0; it must be at least 0"),
        ("rm.meta.prompts", 0, "--rm.meta.prompts is 0; it must be at least 1"),
        ("reward.sources.timeout_s", 0.0, "--reward.sources.0.timeout-s is 0.0; it must be above"),
        ("ppo.samples", 2**12 + 1, "--ppo.samples is 4097; it must be at most 4096"),
        ("ppo.iterations", 2**19, "--ppo.iterations is 524288; it must be at most 524287"),
        ("ppo.kl_limit", -1.0, "--ppo.kl-limit is -1.0; it must be above 0"),
        ("ppo.lr", math.inf, "--ppo.lr is inf; it must be a finite number"),
        ("ppo.kl_coef", math.inf, "--ppo.kl-coef is inf; it must be a finite number"),
    ],
)
def test_a_senseless_number_is_named_with_its_flag(name, value, expected):
    with pytest.raises(ValueError) as caught:
        with_value(name, value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rm.margin", -0.5),
        ("reward.sources.weight", -1.0),
        ("rm.warmup", 1.0),
        ("ppo.clip_high", math.inf),
        ("ppo.lr", 10**400),
        ("ppo.samples", 2**12),
        ("ppo.iterations", 2**19 - 1),
    ],
)
def test_what_may_have_its_use_is_let_through(name, value):
    assert with_value(name, value)
