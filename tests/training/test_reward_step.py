"""What is added to the ranking loss, against the formulas written out; and the remedies' steps."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rlhf_ray.config import RM, Contrastive, Data, MetaRM
from rlhf_ray.data.ranked_list import Comparison, RankedList
from rlhf_ray.data.tokenise import TokenRows
from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.training.meta import MetaStep, read_samples
from rlhf_ray.training.ranked_data import tokenise_lists
from rlhf_ray.training.reward_step import RewardStep, thinned
from rlhf_ray.training.supervised import MasterAdamW
from rlhf_ray.training.views import Views
from tests.models.test_reward_model import BACKBONES, ENCODERS

LISTS = [
    RankedList("", ("good", "so so, really", "bad"), (1, 2, 3), "x", 1),
    RankedList("prompt ", ("poor and long, long", "fine"), (2, 1), "x", 2),
]
TOKENIZER = make_tokenizer([text for one in LISTS for text in one.responses], vocab=300)
PLAIN = RM()


def model_with_head(seed: int = 0) -> RewardModel:
    whole = make_decoder(TOKENIZER, hidden=64, layers=1, seed=seed)
    model = RewardModel(whole.model, "mean").eval()
    model.aside["lm_head"] = whole.get_output_embeddings()
    return model


def run(lists: list[RankedList], settings: RM, views: Views | None = None):
    """(sums, model with gradients) of one step over all lists."""
    model = model_with_head()
    if views is not None and views.prototypes is not None:
        model.aside["prototypes"] = views.prototypes
    optimizer = MasterAdamW(model, dtype=torch.float32)
    data = tokenise_lists(TOKENIZER, lists, max_tokens=32)
    step = RewardStep(optimizer, data, settings, views=views)
    return step(list(range(len(lists)))), model


def score(model: RewardModel, prompt: str, response: str) -> torch.Tensor:
    ids = [*TOKENIZER(prompt)["input_ids"], *TOKENIZER(response)["input_ids"]]
    ids_BT = torch.tensor([[*ids, TOKENIZER.eos_token_id]])
    return model(ids_BT, torch.ones_like(ids_BT))[0]


def check_gradients(model: RewardModel, expected_loss) -> None:
    oracle = model_with_head()
    expected_loss(oracle).backward()
    wanted = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        if wanted.get(name) is not None and wanted[name].grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-6, rtol=1e-4)


def logs(gap: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(gap)


def test_margins_and_soft_labels_of_rows_reach_the_loss() -> None:
    pairs = (Comparison(1, 0, 0.5, 0.9), Comparison(2, 1, -0.3, 0.6))
    lists = [dataclasses.replace(LISTS[0], pairs=pairs), LISTS[1]]
    _, model = run(lists, RM(margin=0.2))

    def expected(m: RewardModel) -> torch.Tensor:
        a, b, c = (score(m, "", text) for text in LISTS[0].responses)
        d, e = (score(m, "prompt ", text) for text in LISTS[1].responses)
        first = 0.9 * logs(b - a - 0.7) + 0.1 * logs(a - b + 0.7)
        second = 0.6 * logs(c - b + 0.1) + 0.4 * logs(b - c - 0.1)
        return ((first + second) / 2 + logs(e - d - 0.2)) / 2

    check_gradients(model, expected)


@pytest.mark.parametrize("form", ["logsigmoid", "logexp", "sigmoid"])
def test_label_smoothing_by_pair(form: str) -> None:
    sums, model = run(LISTS, RM(label_smoothing=0.1, reduction="pair", form=form))
    function = (lambda gap: -torch.sigmoid(gap)) if form == "sigmoid" else logs

    def expected(m: RewardModel) -> torch.Tensor:
        a, b, c = (score(m, "", text) for text in LISTS[0].responses)
        d, e = (score(m, "prompt ", text) for text in LISTS[1].responses)
        gaps = (a - b, a - c, b - c, e - d)
        return sum(0.9 * function(gap) + 0.1 * function(-gap) for gap in gaps) / 4

    check_gradients(model, expected)
    total, terms = sums.means["loss/rank"]
    assert total / terms == pytest.approx(expected(model_with_head()).item(), abs=1e-5)


def test_centring_pulls_the_mean_of_each_list_to_0() -> None:
    sums, model = run(LISTS, RM(centring=0.7))

    def penalty(m: RewardModel) -> torch.Tensor:
        first = torch.stack([score(m, "", text) for text in LISTS[0].responses])
        second = torch.stack([score(m, "prompt ", text) for text in LISTS[1].responses])
        return (first.mean() ** 2 + second.mean() ** 2) / 2

    def expected(m: RewardModel) -> torch.Tensor:
        a, b, c = (score(m, "", text) for text in LISTS[0].responses)
        d, e = (score(m, "prompt ", text) for text in LISTS[1].responses)
        rank = ((logs(a - b) + logs(a - c) + logs(b - c)) / 3 + logs(e - d)) / 2
        return rank + 0.7 * penalty(m)

    check_gradients(model, expected)
    total, count = sums.means["loss/centring"]
    assert total / count == pytest.approx(penalty(model_with_head()).item(), abs=1e-6)


def test_the_language_model_loss_is_of_the_best_response_alone() -> None:
    settings = RM(lm_coef=0.5)
    sums, model = run(LISTS, settings)
    best = [("", "good"), ("prompt ", "fine")]

    def nll(m: RewardModel) -> tuple[torch.Tensor, int]:
        total, tokens = torch.zeros(()), 0
        for prompt, response in best:
            head = TOKENIZER(prompt)["input_ids"]
            ids = [*head, *TOKENIZER(response)["input_ids"], TOKENIZER.eos_token_id]
            hidden = m.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
            logp = (hidden @ m.aside["lm_head"].weight.T).log_softmax(-1)
            for place in range(max(1, len(head)), len(ids)):
                total, tokens = total - logp[place - 1, ids[place]], tokens + 1
        return total, tokens

    def expected(m: RewardModel) -> torch.Tensor:
        a, b, c = (score(m, "", text) for text in LISTS[0].responses)
        d, e = (score(m, "prompt ", text) for text in LISTS[1].responses)
        rank = ((logs(a - b) + logs(a - c) + logs(b - c)) / 3 + logs(e - d)) / 2
        total, tokens = nll(m)
        return rank + 0.5 * total / tokens

    check_gradients(model, expected)
    assert sums.means["loss/lm"][1] == nll(model_with_head())[1]
    assert sums.means["loss/lm"][0] == pytest.approx(nll(model_with_head())[0].item(), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_kind_of_backbone_trains(name: str, lora: bool) -> None:
    torch.manual_seed(0)
    model = RewardModel(BACKBONES[name](), "cls" if name in ENCODERS else "last")
    if lora:
        model.add_lora(rank=2, alpha=4.0)
    optimizer = MasterAdamW(model, dtype=torch.bfloat16)
    data = tokenise_lists(TOKENIZER, LISTS, max_tokens=32)
    rows = dataclasses.replace(data.rows, token_ids=[row % 39 + 1 for row in data.rows.token_ids])
    step = RewardStep(optimizer, dataclasses.replace(data, rows=rows), PLAIN)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = []
    for _ in range(16):
        total, terms = step([0, 1]).means["loss/rank"]
        losses.append(total / terms)
        optimizer.step(1e-2)
    assert losses[-1] < losses[0] - 0.05
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any("backbone" in n for n in moved)
    assert not lora or all("lora_" in n or n.startswith("head") for n in moved)


def test_token_dropout_leaves_out_its_share_and_keeps_both_ends() -> None:
    rows = tokenise_lists(TOKENIZER, LISTS, max_tokens=32).rows
    long = TokenRows([np.arange(1000, dtype=np.int32)], np.zeros(1, np.int64), 0)
    rng = np.random.default_rng(0)
    (kept,) = thinned(long, [0], 0.3, rng).token_ids
    assert kept[0] == 0 and kept[-1] == 999 and (np.diff(kept) > 0).all()
    assert 0.64 < len(kept) / 1000 < 0.76
    (again,) = thinned(long, [0], 0.3, rng).token_ids
    assert not np.array_equal(kept, again)
    assert [row.tolist() for row in thinned(rows, [2, 0], 0.0, rng).token_ids] == [
        rows.token_ids[2].tolist(), rows.token_ids[0].tolist(),
    ]  # fmt: skip
    _, plain = run(LISTS, PLAIN)
    _, dropped = run(LISTS, RM(token_dropout=0.5))
    assert not torch.equal(plain.head.weight.grad, dropped.head.weight.grad)
    with pytest.raises(ValueError, match="texts with holes teach no language"):
        RM(token_dropout=0.1, lm_coef=0.1)


def test_soft_labels_and_smoothing_exclude_each_other() -> None:
    lists = [dataclasses.replace(LISTS[0], pairs=(Comparison(0, 1, 0.0, 0.9),))]
    with pytest.raises(ValueError, match="both say how sure a label is"):
        run(lists, RM(label_smoothing=0.1))


@pytest.mark.parametrize("on", ["pairs", "differences"])
@pytest.mark.parametrize("method", ["simcse", "swav"])
def test_contrastive_losses_train_and_are_reported(method: str, on: str) -> None:
    features = 64
    settings = RM(contrastive=Contrastive(method=method, on=on, weight=1.0))
    views = Views(settings.contrastive, features, seed=0)
    sums, model = run(LISTS, settings, views)
    value = sums.means["loss/contrastive"]
    # each of the five texts once, or both differences of the four pairs
    assert value[0] > 0 and value[1] == {"pairs": 5, "differences": 8}[on]
    plain, reference = run(LISTS, PLAIN)
    assert sums.means["pair_accuracy"] == plain.means["pair_accuracy"]
    moved = [
        float((p.grad - q.grad).abs().max())
        for p, q in zip(model.backbone.parameters(), reference.backbone.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4
    if method == "swav":
        assert float(model.aside["prototypes"].weight.grad.abs().max()) > 0


def test_two_views_differ_by_dropout_and_keep_the_mean() -> None:
    views = Views(Contrastive(method="simcse", dropout=0.25), 8, seed=3)
    ones = torch.ones(2000, 8)
    one, other = views.draw(ones)
    assert one.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert abs(float(one.mean()) - 1) < 0.02 and not torch.equal(one, other)
    again, _ = Views(Contrastive(method="simcse", dropout=0.25), 8, seed=3).draw(ones)
    assert torch.equal(one, again)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Views(Contrastive(method="simcse", dropout=0.0), 8, seed=0)


@pytest.fixture
def samples_file(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "p", "responses": ["one", "two and more", "three"]},
        {"prompt": "", "responses": ["four", "five"]},
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def meta_step(samples_file: Path, eta: float, dtype: torch.dtype = torch.float32):
    optimizer = MasterAdamW(model_with_head(), dtype=dtype)
    data = tokenise_lists(TOKENIZER, LISTS, max_tokens=32)
    step = RewardStep(optimizer, data, PLAIN)
    samples = read_samples(samples_file, TOKENIZER, max_tokens=32, data=Data())
    return optimizer, MetaStep(step, samples, MetaRM(samples="x", eta=eta, prompts=2), seed=0)


def test_meta_takes_the_gradient_where_responses_are_further_apart(samples_file: Path) -> None:
    eta = 0.5
    optimizer, step = meta_step(samples_file, eta)
    before = [p.detach().clone() for p in optimizer.model.parameters()]
    sums = step([0, 1])
    for parameter, old in zip(optimizer.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)

    def difference(m: RewardModel) -> torch.Tensor:
        a = [score(m, "p", text) for text in ("one", "two and more", "three")]
        b = [score(m, "", text) for text in ("four", "five")]
        first = sum(torch.sigmoid((x - y).abs()) for x, y in ((a[0], a[1]), (a[0], a[2]),
                                                              (a[1], a[2])))  # fmt: skip
        return (first * 2 / 9 + torch.sigmoid((b[0] - b[1]).abs()) * 2 / 4) / 2

    moved = model_with_head()
    objective = difference(moved)
    objective.backward()
    with torch.no_grad():
        for parameter in moved.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=eta)
            parameter.grad = None
    a, b, c = (score(moved, "", text) for text in LISTS[0].responses)
    d, e = (score(moved, "prompt ", text) for text in LISTS[1].responses)
    (((logs(a - b) + logs(a - c) + logs(b - c)) / 3 + logs(e - d)) / 2).backward()
    for ours, theirs in zip(optimizer.model.parameters(), moved.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)
    assert sums.means["meta/difference"][0] == pytest.approx(objective.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eta_0_is_a_plain_step(samples_file: Path, dtype: torch.dtype) -> None:
    optimizer, step = meta_step(samples_file, 0.0, dtype)
    sums = step([0, 1])
    plain = MasterAdamW(model_with_head(), dtype=dtype)
    data = tokenise_lists(TOKENIZER, LISTS, max_tokens=32)
    expected = RewardStep(plain, data, PLAIN)([0, 1])
    assert sums == expected
    for ours, theirs in zip(optimizer.masters, plain.masters, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_in_bfloat16_the_weights_that_compute_return_too(samples_file: Path) -> None:
    optimizer, step = meta_step(samples_file, 5.0, torch.bfloat16)
    before = [p.detach().clone() for p in optimizer.compute.parameters()]
    step([0, 1])
    optimizer.step(0.0)
    for parameter, old in zip(optimizer.compute.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_samples_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for row, fault in (
        ({"prompt": "p", "responses": ["one"]}, "are 1: give at least 2"),
        ({"prompt": "p"}, "no column 'responses'"),
        ({"prompt": "p", "responses": ["a", 3]}, "response 2 is a number"),
    ):
        path.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=f"s.jsonl:1: .*{fault}"):
            read_samples(path, TOKENIZER, max_tokens=32, data=Data())
