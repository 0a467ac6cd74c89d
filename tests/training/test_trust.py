"""A tokenizer that brings its own code is loaded wherever its model is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.config import Config
from rlhf_ray.training import reward_evaluation, studies
from rlhf_ray.training.reward_model import Split
from tests.training.worlds import config_for


class Refused(Exception):
    """Where the tokenizer would be loaded."""


NOTHING = Split([], [], 0)
LOADS: dict[str, Callable[[Config, str], object]] = {
    "read_split": lambda config, base: studies.read_split(config, base),
    "train_and_judge": lambda config, base: studies.train_and_judge(config, base, NOTHING, {}),
    "read_elsewhere": lambda config, base: studies.read_elsewhere(["a.tsv"], base, config),
    "evaluate_file": lambda config, base: reward_evaluation.evaluate_file(
        base, "a.tsv", trust_remote_code=True
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_trust_reaches_the_tokenizer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> None:
        assert trust_remote_code
        raise Refused

    for module in (studies, reward_evaluation):
        monkeypatch.setattr(module, "load_tokenizer", load_tokenizer)
    config = config_for(tmp_path)
    config = replace(config, model=replace(config.model, trust_remote_code=True))
    with pytest.raises(Refused):
        LOADS[name](config, str(tmp_path))
