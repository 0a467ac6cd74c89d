"""What is settled before anything expensive begins: paths and prompts."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray.config import PPO, SFT, Config, Data, Model, Reward, RewardSource, Run
from rlhf_ray.models.tiny import make_tokenizer
from rlhf_ray.observe.console import Console
from rlhf_ray.observe.metrics import RunLog
from rlhf_ray.orchestration.plan import plan
from rlhf_ray.orchestration.shares import Node
from rlhf_ray.training import pipeline
from rlhf_ray.training.ownership import owned, replaced
from rlhf_ray.training.paths import files_of, read_on_nodes, resolve
from rlhf_ray.training.pipeline import Phases, claimed, read_run


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


@pytest.mark.parametrize(
    "path", ["runs/nosuch", "policy/deeper", "no/such/model", "texts.CSV", "texts.jsonl.gz"]
)
def test_what_can_only_be_a_path_is_no_name_of_a_hub(config: Config, path: str) -> None:
    Path("runs").mkdir()
    with pytest.raises(ValueError, match=rf"model\.path {path}: there is no such file"):
        resolve(dataclasses.replace(config, model=Model(path=path)))


def test_a_run_that_is_replaced_is_back_where_its_successor_never_began(config: Config) -> None:
    old = config.dir / "checkpoints" / "step-4"
    old.mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a PPO run already"), claimed(config, resume=False):
        pass
    anew = dataclasses.replace(config, run=dataclasses.replace(config.run, overwrite=True))
    with pytest.raises(ValueError, match="a fault"), claimed(anew, resume=False):
        (config.dir / "sft").mkdir(parents=True)
        raise ValueError("a fault")
    assert old.is_dir() and not (config.dir / "sft").exists()
    with claimed(anew, resume=False) as discard_old:
        assert not config.dir.exists()
        discard_old()
        (config.dir / "sft").mkdir(parents=True)
    assert not old.exists() and (config.dir / "sft").is_dir()
    assert [path.name for path in config.dir.parent.iterdir()] == [config.dir.name]


def test_a_run_behind_a_link_is_overwritten_where_it_lies(config: Config) -> None:
    place = config.dir.parent / "elsewhere"
    (place / "checkpoints").mkdir(parents=True)
    config.dir.symlink_to(place.absolute())
    anew = dataclasses.replace(config, run=dataclasses.replace(config.run, overwrite=True))
    with claimed(anew, resume=False) as discard_old:
        (config.dir / "sft").mkdir(parents=True)
        (config.dir / "config.yaml").touch()
        discard_old()
    assert config.dir.is_symlink() and not replaced(place).exists()
    assert sorted(path.name for path in place.iterdir()) == ["config.yaml", "sft"]


def test_a_run_that_lay_aside_when_its_process_was_killed_is_put_back(config: Config) -> None:
    (replaced(config.dir) / "checkpoints").mkdir(parents=True)
    (config.dir / "data").mkdir(parents=True)
    refused = pytest.raises(ValueError, match="holds a PPO run already")
    with refused, owned(config.dir), claimed(config, resume=False):
        pass
    with owned(config.dir), claimed(config, resume=True):
        assert [path.name for path in config.dir.iterdir()] == ["checkpoints"]


def test_a_run_that_fails_as_soon_as_it_has_begun_has_replaced_the_old_one(config: Config) -> None:
    (config.dir / "checkpoints").mkdir(parents=True)
    anew = dataclasses.replace(config, run=dataclasses.replace(config.run, overwrite=True))
    with pytest.raises(KeyboardInterrupt), claimed(anew, resume=False):
        config.dir.mkdir()
        (config.dir / "config.yaml").touch()
        raise KeyboardInterrupt  # while the old one is removed
    assert [path.name for path in config.dir.iterdir()] == ["config.yaml"]
    assert not replaced(config.dir).exists()


def test_a_run_has_not_begun_before_all_that_it_starts_with_is_written(config: Config) -> None:
    (config.dir / "provenance.json").mkdir(parents=True)  # so that it cannot be written
    with pytest.raises(OSError, match=r"provenance\.json"):
        pipeline._begin(config, plan(config.cluster, [Node("a", "here", 2.0)]), lambda: None)
    assert not (config.dir / "config.yaml").exists()


def test_the_demonstration_keeps_what_is_given(config: Config) -> None:
    data = Data(heldout_prompts="prompts.txt")
    found = resolve(dataclasses.replace(config, data=data, model=Model()))
    assert found.data.heldout_prompts == str(Path("prompts.txt").absolute())
    assert found.data.prompts and Path(found.data.prompts).parent.name == "data"


def test_what_a_phase_took_is_known_to_the_next_start(config: Config) -> None:
    config = dataclasses.replace(config, model=Model())

    def rows() -> Iterator[dict[str, Any]]:
        yield {"step": 1, "total": 1, "loss/lm": 2.0, "bad_rows": 3}
        (config.dir / "sft").mkdir(parents=True)

    with RunLog(config.dir) as log:
        first = Phases(config, None, log, Console("demo", stream=io.StringIO()))  # type: ignore[arg-type]
        first._show("sft", rows())
    assert first.bad_rows == 3 and first.seconds["sft"] > 0
    shown = io.StringIO()
    again = Phases(config, None, None, Console("demo", stream=shown))  # type: ignore[arg-type]
    assert again.sft() == str(config.dir / "sft")
    assert (again.seconds, again.bad_rows) == (first.seconds, 3)
    assert "is there already (--run.overwrite makes it anew)" in shown.getvalue()
    skipped = dataclasses.replace(config, sft=SFT(epochs=0), model=Model(path="policy"))
    other = Phases(skipped, None, None, None)  # type: ignore[arg-type]
    assert (other.sft(), other.seconds) == ("policy", {})


@pytest.mark.parametrize("name", ["absent.ndjson", "ABSENT.TXT"])
def test_a_file_of_any_kind_that_is_read_must_be_there(config: Config, name: str) -> None:
    with pytest.raises(ValueError, match=rf"--data\.prompts {name}: there is no such file"):
        resolve(dataclasses.replace(config, data=Data(prompts=name)))


def test_what_a_run_reads_is_named_part_by_part(config: Config) -> None:
    for name in ("a.tsv", "b.jsonl"):
        Path(name).write_text("")
    Path("saved").mkdir()
    data = Data(preferences="a.tsv=2,b.jsonl", prompts="saved:train", texts="some-org/some-data")
    sources = (RewardSource(model="policy"), RewardSource(classifier="some-org/some-model"))
    found = resolve(dataclasses.replace(config, data=data, reward=Reward(sources=sources)))
    named = {path.name for path in files_of(found)}
    assert named == {"a.tsv", "b.jsonl", "saved", "policy"}


def test_what_the_driver_alone_reads_is_not_looked_for_on_other_nodes(config: Config) -> None:
    Path("texts.txt").write_text("")
    data = dataclasses.replace(config.data, texts="texts.txt", heldout_prompts="prompts.txt")
    found = resolve(dataclasses.replace(config, data=data))
    assert {path.name for path in read_on_nodes(found)} == {"texts.txt", "policy"}
    driver_alone = set(files_of(found)) - set(read_on_nodes(found))
    assert {path.name for path in driver_alone} == {"prompts.txt"}


def test_a_run_that_goes_on_overwrites_nothing(config: Config) -> None:
    run = dataclasses.replace(config.run, overwrite=True)
    config.dir.mkdir(parents=True)
    began = dataclasses.replace(config, run=run).to_dict()
    (config.dir / "config.yaml").write_text(yaml.safe_dump(began))
    assert read_run(config.dir) == config


def test_resuming_where_there_is_no_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"demo holds no run to resume: start one without --resu"):
        read_run(tmp_path / "demo")
