"""What docs/rewards.md shows is what works."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from rlhf_ray.config import Reward
from rlhf_ray.rewards.function import FunctionReward
from rlhf_ray.rewards.function_pool import START_TIMEOUT_S
from rlhf_ray.rewards.protocol import Responses

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_recipe_and_the_function_of_the_page_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward, ensemble = (
        TypeAdapter(Reward).validate_python(yaml.safe_load(block)["reward"])
        for block in blocks("yaml")
    )
    assert ensemble.sources[0].combine == "cautious"
    assert [source.name for source in reward.sources] == ["reward", "classifier", "brevity"]
    (tmp_path / "my_rewards.py").write_text(
        next(block for block in blocks("python") if "def brevity" in block)
    )
    monkeypatch.chdir(tmp_path)
    function = FunctionReward(reward.sources[2].function or "", processes=2)
    batch = Responses([[1]] * 2, [[1]] * 2, ["a", "b"], ["x" * 10, "x" * 50], [True] * 2)
    assert function(batch).scores == pytest.approx([-0.1, -0.5])
    function.close()


def test_the_page_knows_how_long_an_import_may_take() -> None:
    assert f"importing the module may take {START_TIMEOUT_S:g}" in " ".join(PAGE.split())
