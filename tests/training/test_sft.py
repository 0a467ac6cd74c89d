"""SFT: it learns, what it writes is a plain model, and how it is split changes nothing."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config import SFT, Config, Data, Model
from rlhf_ray.data.texts import Text
from rlhf_ray.data.tokenise import tokenise_pairs
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.training import sft
from rlhf_ray.training.sft import heldout_loss, sft_step, train_sft
from rlhf_ray.training.supervised import MasterAdamW
from tests.training.worlds import config_for

TEXTS = [
    Text("", "a plain text"),
    Text("a prompt ", "and its response"),
    Text("", "x"),
    Text("long prompt, long prompt ", "y" * 30),
] * 8


def rows_of(texts: list[Text]):
    tokenizer = make_tokenizer((text.prompt + text.response for text in texts), vocab=300)
    rows = tokenise_pairs(
        tokenizer, [t.prompt for t in texts], [t.response for t in texts], max_tokens=48
    )
    return tokenizer, rows


def test_the_loss_is_that_of_the_response_and_its_eos() -> None:
    tokenizer, rows = rows_of(TEXTS[:4])
    model = make_decoder(tokenizer, hidden=64, layers=1, seed=0)
    expected, count = 0.0, 0
    for text in TEXTS[:4]:
        prompt = tokenizer(text.prompt)["input_ids"] if text.prompt else []
        ids = [*prompt, *tokenizer(text.response)["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([ids])).logits[0]
        first = max(1, len(prompt))
        targets = torch.tensor(ids[first:])
        expected += F.cross_entropy(logits[first - 1 : -1], targets, reduction="sum").item()
        count += len(targets)
    assert heldout_loss(model, rows) == pytest.approx(expected / count, rel=1e-5)


@pytest.mark.parametrize("micro_tokens", [1, 100, 100_000])
def test_the_split_into_micro_batches_changes_nothing(micro_tokens: int, monkeypatch) -> None:
    tokenizer, rows = rows_of(TEXTS)

    def stepped(budget: int) -> dict[str, torch.Tensor]:
        monkeypatch.setitem(sft.MICRO_TOKENS, "cpu", budget)
        model = make_decoder(tokenizer, hidden=64, layers=1, seed=0)
        optimizer = MasterAdamW(model, dtype=torch.float32)
        sft_step(optimizer, rows, list(range(32)))
        optimizer.step(1e-3)
        return model.state_dict()

    start = make_decoder(tokenizer, hidden=64, layers=1, seed=0).state_dict()
    one, other = stepped(400), stepped(micro_tokens)
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved >= 5e-4
    # Adam's first step is lr·sign(g) where |g| ≫ eps: compare where the gradient is not noise.
    for name in one:
        assert ((one[name] - other[name]).abs() <= 5e-6).float().mean() > 0.999, name


def test_it_learns_and_writes_a_plain_model(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    out = tmp_path / "sft"
    rows = list(train_sft(config, out))
    losses = [row["heldout/loss_lm"] for row in rows if "heldout/loss_lm" in row]
    assert rows[0]["loss/lm"] == pytest.approx(math.log(320), rel=0.1)
    assert losses[-1] < 0.6 * rows[0]["loss/lm"]
    assert [row["step"] for row in rows[:-1]] == list(range(1, rows[-1]["total"] + 1))
    assert rows[-1]["done"] is True and not any("done" in row for row in rows[:-1])
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("the room was", return_tensors="pt")["input_ids"]
    best = {tokenizer.decode(i) for i in model(ids).logits[0, -1].topk(10).indices}
    assert best & {" good", " great", " bad", " awful", " cold", " kind", " rude"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_it_goes_on_from_a_model_and_is_the_same_each_time(tmp_path: Path) -> None:
    config = config_for(tmp_path, lists=20, sft=SFT(epochs=1, lr=1e-3, batch_tokens=512))
    first, again = (list(train_sft(config, tmp_path / name)) for name in ("a", "b"))
    assert [row["loss/lm"] for row in first] == [row["loss/lm"] for row in again]
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / x).state_dict() for x in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    further = dataclasses.replace(
        config, model=dataclasses.replace(config.model, path=str(tmp_path / "a"))
    )
    rows = list(train_sft(further, tmp_path / "c"))
    assert rows[0]["loss/lm"] < first[0]["loss/lm"] - 0.2
    assert json.loads((tmp_path / "c/config.json").read_text())["model_type"] == "llama"


def test_an_interrupted_run_leaves_the_old_model(tmp_path: Path) -> None:
    config = config_for(tmp_path, lists=20)
    out = tmp_path / "sft"
    out.mkdir()
    (out / "old").touch()
    rows = train_sft(config, out)
    next(rows)
    rows.close()
    assert [file.name for file in out.iterdir()] == ["old"]


REFUSING = (
    "{% for m in messages %}{{ raise_exception('no system') if m['role'] == 'system' "
    "else m['content'] }}{% endfor %}"
)


def conversations(tmp_path: Path, roles: list[str]) -> Config:
    """A file of one conversation a role, after a bad row, for a model whose template refuses."""
    tokenizer = make_tokenizer(["a tea, another tea"], vocab=300)
    tokenizer.chat_template = REFUSING
    tokenizer.save_pretrained(tmp_path / "base")
    make_decoder(tokenizer, hidden=64, layers=1, seed=0).save_pretrained(tmp_path / "base")
    rows = [
        {"prompt": [{"role": role, "content": f"q{i}"}], "response": "a"}
        for i, role in enumerate(roles)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(["{}", *map(json.dumps, rows)]))
    data = Data(texts=str(path), on_bad_row="skip")
    return config_for(tmp_path, data=data, model=Model(path=str(tmp_path / "base")))


def test_texts_that_the_template_all_refuses_train_nothing(tmp_path: Path) -> None:
    config = conversations(tmp_path, ["system"] * 4)
    wanted = (
        r"a\.jsonl holds no text: all 5 rows are bad, the first: .*a\.jsonl:1: neither .*; mend "
        r"them, or do without the template: --data\.chat-template never$"
    )
    with pytest.raises(ValueError, match=wanted):
        next(train_sft(config, tmp_path / "sft"))
    assert not (tmp_path / "sft").exists()


def test_a_held_out_text_alone_trains_nothing(tmp_path: Path, monkeypatch) -> None:
    config = conversations(tmp_path, ["user", *["system"] * 4])
    monkeypatch.setattr(sft, "split_texts", lambda texts, *_: (list(texts[1:]), [texts[0]]))
    wanted = r"only held-out texts are left \(1\), 5 rows are bad, the first: .*heldout-fraction 0$"
    with pytest.raises(ValueError, match=wanted):
        next(train_sft(config, tmp_path / "sft"))


def test_texts_that_the_template_refuses_are_counted(tmp_path: Path) -> None:
    config = conversations(tmp_path, ["system", *["user"] * 4])
    *_, last = train_sft(config, tmp_path / "sft")
    assert last["bad_rows"] == 2 and "a.jsonl:1: neither" in last["first_bad"]


def test_what_is_missing_or_too_long_is_said(tmp_path: Path) -> None:
    config = config_for(tmp_path, lists=20)
    with pytest.raises(ValueError, match=r"SFT needs texts: give --data.texts"):
        next(train_sft(dataclasses.replace(config, data=Data()), tmp_path / "x"))
    with pytest.raises(ValueError, match=r"--sft.max-tokens is 2000.*1024 positions"):
        next(train_sft(dataclasses.replace(config, sft=SFT(max_tokens=2000)), tmp_path / "x"))
