"""Reward model training: it learns, one forward a text, and how it is split changes nothing."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from rlhf_ray.config import RM, Data, LoRA
from rlhf_ray.data.ranked_list import RankedList
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.training import ranked_data, reward_step
from rlhf_ray.training.ranked_data import scores_of, tokenise_lists
from rlhf_ray.training.reward_evaluation import evaluate_lists
from rlhf_ray.training.reward_model import load_split, train_reward_model
from rlhf_ray.training.reward_step import RewardStep
from rlhf_ray.training.supervised import MasterAdamW
from tests.training.worlds import config_for

LISTS = [
    RankedList("", ("good", "so so, really", "bad"), (1, 2, 3), "x", 1),
    RankedList("prompt ", ("fine", "poor and long, long, long"), (1, 2), "x", 2),
    RankedList("", ("worst", "tied", "tied too", "best of all"), (3, 2, 2, 1), "x", 3),
] * 4
TOKENIZER = make_tokenizer([text for one in LISTS for text in one.responses], vocab=300)
PLAIN = RM()
DATA = tokenise_lists(TOKENIZER, LISTS, max_tokens=32)


def fresh() -> RewardModel:
    return RewardModel(make_decoder(TOKENIZER, hidden=64, layers=1, seed=0).model, "mean").eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    tmp_path = tmp_path_factory.mktemp("trained")
    config = config_for(tmp_path)
    base = tmp_path / "base"
    tokenizer = make_tokenizer(Path(config.data.texts).read_text().split("\n"), vocab=320)
    make_decoder(tokenizer, hidden=64, layers=1, seed=0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    return config, list(train_reward_model(config, base, tmp_path / "reward")), tmp_path


def test_it_learns_and_what_is_written_scores_as_reported(trained) -> None:
    config, rows, tmp_path = trained
    assert rows[-1]["done"] is True
    assert rows[-1]["heldout/pair_accuracy"] >= 0.9
    assert rows[0]["loss/rank"] == pytest.approx(0.69, abs=0.15)
    assert rows[-1]["loss/rank"] < 0.4
    out = tmp_path / "reward"
    model, tokenizer = RewardModel.from_pretrained(out), load_tokenizer(out)
    heldout = load_split(config).heldout
    data = tokenise_lists(tokenizer, heldout, max_tokens=config.rm.max_tokens)
    again = evaluate_lists(model, data)
    metrics = json.loads((out / "metrics.json").read_text())
    assert {name: metrics[name] for name in again} == again
    assert metrics["lists"] + metrics["heldout_lists"] == 60
    per_epoch = [
        row["heldout/pair_accuracy"] for row in rows[:-1] if "heldout/pair_accuracy" in row
    ]
    assert len(per_epoch) == 3 and again["heldout/pair_accuracy"] == max(per_epoch)


def test_rows_tell_where_it_stands(trained) -> None:
    _, rows, _ = trained
    assert [row["step"] for row in rows[:-1]] == list(range(1, rows[-1]["total"] + 1))
    for name in ("epoch", "lr", "grad/norm", "tokens_per_s", "pairs_per_s", "eta_s"):
        assert all(row[name] >= 0 for row in rows)
    assert rows[-2]["eta_s"] == 0 and rows[-2]["epoch"] == 3


def with_lm_head() -> RewardModel:
    whole = make_decoder(TOKENIZER, hidden=64, layers=1, seed=0)
    model = RewardModel(whole.model, "mean").eval()
    model.aside["lm_head"] = whole.get_output_embeddings()
    return model


def step_of(optimizer: MasterAdamW, settings: RM = PLAIN, data=DATA, **options) -> RewardStep:
    return RewardStep(optimizer, data, settings, **options)


def stepped(monkeypatch, *, forward: int, graph: int, reduction: str) -> tuple:
    monkeypatch.setattr(ranked_data, "FORWARD_TOKENS", {"cpu": forward})
    monkeypatch.setattr(reward_step, "GRAPH_TOKENS", graph)
    model = with_lm_head()
    optimizer = MasterAdamW(model, dtype=torch.float32)
    settings = RM(reduction=reduction, margin=0.1, centring=0.2, lm_coef=0.3)
    sums = step_of(optimizer, settings)(list(range(12)))
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step(1e-3)
    return sums, gradients, model.state_dict()


@pytest.mark.parametrize("reduction", ["list", "pair"])
def test_the_split_into_forwards_and_graphs_changes_nothing(reduction, monkeypatch) -> None:
    sums, gradients, weights = stepped(monkeypatch, forward=9999, graph=9999, reduction=reduction)
    start = with_lm_head().state_dict()
    assert max(float((weights[name] - start[name]).abs().max()) for name in start) >= 5e-4
    for forward, graph in ((1, 9999), (40, 60), (1, 1)):
        sums_2, gradients_2, weights_2 = stepped(
            monkeypatch, forward=forward, graph=graph, reduction=reduction
        )
        assert sums_2.means["pair_accuracy"] == sums.means["pair_accuracy"]
        for name in ("loss/rank", "loss/lm", "loss/centring"):
            assert sums_2.means[name] == pytest.approx(sums.means[name], rel=1e-5)
        for name in gradients:
            torch.testing.assert_close(gradients_2[name], gradients[name], atol=1e-6, rtol=1e-4)
            # Adam's first step is lr·sign(g): compare where the gradient is not noise.
            real = gradients[name].abs() > 1e-5
            difference = (weights_2[name] - weights[name]).abs()[real]
            assert difference.numel() == 0 or float(difference.max()) <= 5e-6


def test_the_gradient_is_that_of_the_loss_written_out() -> None:
    model = fresh()
    optimizer = MasterAdamW(model, dtype=torch.float32)
    step_of(optimizer)([0, 1, 2])
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    def score(n: int) -> torch.Tensor:
        ids = torch.tensor(DATA.rows.token_ids[n][None]).long()
        return model(ids, torch.ones_like(ids))[0]

    s = [score(n) for n in range(9)]
    pairs = [[(0, 1), (0, 2), (1, 2)], [(3, 4)], [(8, 5), (8, 6), (8, 7), (6, 5), (7, 5)]]
    per_list = [
        torch.stack([-torch.nn.functional.logsigmoid(s[a] - s[b]) for a, b in some]).mean()
        for some in pairs
    ]
    (sum(per_list) / 3).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-6, rtol=1e-4)


def test_a_text_costs_one_forward() -> None:
    model, seen = fresh(), []
    model.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    step_of(MasterAdamW(model, dtype=torch.float32))(list(range(12)))
    assert sum(seen) == DATA.rows.lengths[:36].sum()


def test_scores_come_in_the_order_asked_for() -> None:
    model = fresh()
    texts = [7, 0, 30, 4, 4, 11]
    scores = scores_of(model, DATA.rows, texts)
    for n, s in zip(texts, scores, strict=True):
        ids = torch.tensor(DATA.rows.token_ids[n][None]).long()
        assert s.item() == pytest.approx(model(ids, torch.ones_like(ids)).item(), abs=1e-5)


def test_a_model_that_ties_everything_is_never_right() -> None:
    model = fresh()
    torch.nn.init.zeros_(model.head.weight)
    metrics = evaluate_lists(model, DATA)
    assert metrics["heldout/pair_accuracy"] == 0 == metrics["heldout/exact_order"]


def test_an_encoder_is_a_backbone_too(tmp_path: Path) -> None:
    from tests.rewards.models import word_tokenizer

    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    run = config_for(tmp_path, 12, rm=RM(epochs=1, batch_lists=4, max_tokens=64, pooling="pooler"))
    rows = list(train_reward_model(run, tmp_path / "bert", tmp_path / "reward"))
    assert rows[-1]["done"] and RewardModel.from_pretrained(tmp_path / "reward").pooling == "pooler"


@pytest.mark.parametrize("out", ["reward", "reward/member-0"])
def test_a_run_that_is_moved_takes_the_base_of_its_adapters_along(
    trained, out: str, tmp_path: Path
) -> None:
    rm = RM(epochs=1, batch_lists=4, lora=LoRA(rank=2, save="adapter"))
    config = config_for(tmp_path, 12, rm=rm)
    shutil.copytree(trained[2] / "base", config.dir / "sft")
    list(train_reward_model(config, config.dir / "sft", config.dir / out))
    before = RewardModel.from_pretrained(config.dir / out)
    config.dir.rename(tmp_path / "moved")
    after = RewardModel.from_pretrained(tmp_path / "moved" / out)
    assert all(torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items())


def test_a_base_of_another_place_is_known_by_its_path(trained, tmp_path: Path) -> None:
    rm = RM(epochs=1, batch_lists=4, lora=LoRA(rank=2, save="adapter"))
    config = config_for(tmp_path, 12, rm=rm)
    list(train_reward_model(config, trained[2] / "base", config.dir / "reward"))
    config.dir.rename(tmp_path / "moved")
    RewardModel.from_pretrained(tmp_path / "moved" / "reward")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    config = config_for(tmp_path, 12)
    with pytest.raises(ValueError, match=r"holds no model|does not exist"):
        next(train_reward_model(config, tmp_path / "nothing", tmp_path / "reward"))
    with pytest.raises(ValueError, match=r"needs ranked lists: give --data.preferences"):
        load_split(dataclasses.replace(config, data=Data()))
