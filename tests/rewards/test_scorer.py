"""Scoring outside a run: from Python, by the job, and by an ensemble."""

import io
import json
import sys
from codecs import BOM_UTF8
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import dynamic_module_utils

from rlhf_ray.config import RewardSource
from rlhf_ray.models.ensemble import first_member, member_name, read_ensemble, write_ensemble
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import (
    Calibration,
    RewardModel,
    read_calibration,
    write_calibration,
)
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.rewards.combine import build
from rlhf_ray.rewards.scorer import Scorer
from tests.running.here import job_here

PROMPTS = ["Name a tea.", "", "Name a tea."]
RESPONSES = ["Oolong.", "It broke at once.", "No, and never again."]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def write_model(path: Path, seed: int = 0, template: str | None = None) -> Path:
    tokenizer = make_tokenizer(PROMPTS + RESPONSES, vocab=300)
    tokenizer.chat_template = template
    model = RewardModel(make_decoder(tokenizer, hidden=64, layers=1, seed=seed).model, "last")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("score") / "reward")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ensemble")
    for i in range(3):
        write_model(path / member_name(i), seed=i)
    write_ensemble(path, [member_name(i) for i in range(3)], SCALES)
    return path


SCALES = [Calibration(0.5, 2.0, 9), Calibration(-1.0, 0.5, 9), Calibration(0.0, 1.0, 9)]


def by_hand(path: Path, text: str, prompt: str = "") -> float:
    """The score of prompt + response + EOS, tokenised in two parts."""
    reward, tokenizer = RewardModel.from_pretrained(path), load_tokenizer(path)
    ids = [i for part in (prompt, text) for i in tokenizer(part)["input_ids"]]
    ids_BT = torch.tensor([[*ids, tokenizer.eos_token_id]])
    return reward(ids_BT, torch.ones_like(ids_BT)).item()


def test_scores_are_those_of_the_model(model: Path) -> None:
    scores = Scorer(model, dtype="float32")(PROMPTS, RESPONSES)
    expected = [by_hand(model, r, p) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.array_equal(Scorer(model, dtype="float32").texts(RESPONSES)[1:2], scores[1:2])
    with pytest.raises(ValueError, match="3 prompts and 2 responses"):
        Scorer(model)(PROMPTS, RESPONSES[:2])
    with pytest.raises(ValueError, match="does not exist"):
        Scorer(model / "none")


def test_prompts_are_rendered_as_in_training(tmp_path: Path) -> None:
    path = write_model(tmp_path, template=TEMPLATE)
    scores = Scorer(path, dtype="float32")([PROMPTS[0]], ["Oolong."])
    whole = by_hand(path, "Oolong.", "<user>Name a tea.<assistant>")
    np.testing.assert_allclose(scores, [whole], atol=1e-5)
    plain = Scorer(path, dtype="float32", chat_template="never")([PROMPTS[0]], ["Oolong."])
    np.testing.assert_allclose(plain, [by_hand(path, "Oolong.", PROMPTS[0])], atol=1e-5)
    turns = (("user", PROMPTS[0]),)
    np.testing.assert_allclose(Scorer(path, dtype="float32")([turns], ["Oolong."]), scores)


def test_an_ensemble_combines_members_on_their_scales(ensemble: Path) -> None:
    members = np.array(
        [
            [(by_hand(ensemble / member_name(i), text) - scale.mean) / scale.std]
            for i, scale in enumerate(SCALES)
            for text in RESPONSES[:2]
        ]
    ).reshape(3, 2)
    expected = {
        "mean": members.mean(0),
        "min": members.min(0),
        "cautious": members.mean(0) - 2 * members.std(0),
    }
    for how, values in expected.items():
        scores = Scorer(ensemble, dtype="float32", combine=how, caution=2.0).texts(RESPONSES[:2])
        np.testing.assert_allclose(scores, values, atol=1e-4)


def test_a_reward_source_may_be_an_ensemble(ensemble: Path) -> None:
    tokenizer = load_tokenizer(first_member(ensemble))
    source = RewardSource(model=str(ensemble), combine="min")
    reward = build([source], tokenizer, dtype="float32")
    batch = Scorer(ensemble, dtype="float32")._batch(PROMPTS, RESPONSES)
    found = reward(batch).scores
    expected = Scorer(ensemble, dtype="float32", combine="min")(PROMPTS, RESPONSES)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_calibrated_members_use_their_own_scale(ensemble: Path, tmp_path: Path) -> None:
    for i in range(2):
        write_model(tmp_path / member_name(i), seed=i)
    write_ensemble(tmp_path, [member_name(0), member_name(1)], SCALES[:2])
    write_calibration(tmp_path / member_name(0), Calibration(7.0, 3.0, 5))
    assert read_ensemble(tmp_path).scales == tuple(SCALES[:2])  # one of two: no common measure
    write_calibration(tmp_path / member_name(1), Calibration(8.0, 4.0, 5))
    assert [scale.mean for scale in read_ensemble(tmp_path).scales] == [7.0, 8.0]


def test_the_job_writes_a_table_and_json_lines(model: Path, tmp_path: Path, capsys) -> None:
    rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    expected = Scorer(model, dtype="float32")(PROMPTS, RESPONSES)
    common = ("--model", str(model), "--dtype", "float32")
    out = str(tmp_path / "scores.jsonl")
    args = ("--format", "jsonl", "--out", out, "--batch", "2", str(tmp_path / "a.jsonl"))
    assert job_here("score", *common, *args) == 0
    assert "2/3 scored" in capsys.readouterr().err
    written = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [{k: row[k] for k in ("prompt", "response")} for row in written] == rows
    np.testing.assert_allclose([row["score"] for row in written], expected, atol=1e-5)
    assert job_here("score", *common, str(tmp_path / "a.jsonl")) == 0
    table = capsys.readouterr().out.splitlines()
    assert [float(line.split()[0]) for line in table] == [
        pytest.approx(s, abs=1e-4) for s in expected.tolist()
    ]
    assert table[0].endswith("Name a tea.Oolong.")


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Have the standard input hold these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.mark.parametrize("mark", [b"", BOM_UTF8], ids=["no mark", "byte-order mark"])
@pytest.mark.parametrize("form", ["lines", "objects"])
def test_the_job_reads_the_standard_input(
    form: str, mark: bytes, model: Path, monkeypatch, capsys
) -> None:
    lines = RESPONSES if form == "lines" else [json.dumps({"text": text}) for text in RESPONSES]
    feed(monkeypatch, mark + "\n".join(lines).encode())
    common = ("--model", str(model), "--dtype", "float32")
    assert job_here("score", *common, "--format", "jsonl", "-") == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["response"] for row in written] == RESPONSES
    expected = Scorer(model, dtype="float32").texts(RESPONSES)
    np.testing.assert_allclose([row["score"] for row in written], expected, atol=1e-5)


def test_a_bad_row_of_the_standard_input_is_a_bad_row(model: Path, monkeypatch, capsys) -> None:
    content = b"fine\n\xff\xfe\nalso fine\n"
    common = ("--model", str(model), "--format", "jsonl", "-")
    fault = "the standard input:2: not UTF-8 text (byte 0 of the line)"
    feed(monkeypatch, content)
    assert job_here("score", *common) == 2
    said = capsys.readouterr().err
    assert said == f"error: {fault}. Mend the row, or skip such rows: --on-bad-row skip\n"
    feed(monkeypatch, content)
    assert job_here("score", *common, "--on-bad-row", "skip") == 0
    shown = capsys.readouterr()
    assert shown.err == f"1 bad row skipped, the first: {fault}\n"
    written = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["response"] for row in written] == ["fine", "also fine"]
    feed(monkeypatch, b"\xff\n")
    assert job_here("score", *common, "--on-bad-row", "skip") == 2
    assert "error: the standard input holds no text: its one row is bad" in capsys.readouterr().err


def test_calibration_minds_what_is_said_of_bad_rows(tmp_path: Path, capsys) -> None:
    model = write_model(tmp_path / "reward")
    path = tmp_path / "s.jsonl"
    good = json.dumps({"prompt": "", "responses": RESPONSES})
    path.write_text(f'{{"prompt": 3, "responses": ["a"]}}\n{good}\n')
    args = ("--model", str(model), "--calibrate", str(path))
    assert job_here("score", *args) == 2
    said = capsys.readouterr().err
    assert f"{path}:1: 'prompt' is a number" in said and said.endswith(": --on-bad-row skip\n")
    assert job_here("score", *args, "--on-bad-row", "skip") == 0
    assert f"1 bad row skipped, the first: {path}:1: 'prompt' is" in capsys.readouterr().err
    assert read_calibration(model).samples == 3


def test_the_job_scores_conversations_and_columns_of_other_names(tmp_path: Path, capsys) -> None:
    model = write_model(tmp_path / "reward", template=TEMPLATE)
    asked = [{"role": "user", "content": PROMPTS[0]}]
    answered = [*asked, {"role": "assistant", "content": RESPONSES[0]}]
    rows = [{"messages": answered}, {"question": PROMPTS[0], "answer": RESPONSES[0]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ("--model", str(model), "--dtype", "float32", "--format", "jsonl")
    columns = ("--prompt-column", "question", "--response-column", "answer")
    assert job_here("score", *common, *columns, str(tmp_path / "a.jsonl")) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["prompt"], first["response"]) == (
        "\n\nuser: Name a tea.\n\nassistant:",
        " Oolong.",
    )
    expected = Scorer(model, dtype="float32")([PROMPTS[0]], [RESPONSES[0]])[0]
    assert [first["score"], second["score"]] == pytest.approx([expected] * 2, abs=1e-5)


def test_the_job_tells_of_conversations_that_the_template_refuses(tmp_path: Path, capsys) -> None:
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}"
    model = write_model(tmp_path / "reward", template=refusing + "{% endif %}{% endfor %}<a>")
    turns = [{"role": role, "content": "q"} for role in ("system", "user", "assistant")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"messages": part}) for part in (turns[1:], turns)))
    args = ("--model", str(model), str(path))
    assert job_here("score", *args) == 2
    assert f"{path}:2: the chat template refuses" in (said := capsys.readouterr().err)
    assert said.endswith(": --on-bad-row skip\n")
    assert job_here("score", *args, "--on-bad-row", "skip") == 0
    assert f"1 bad row skipped, the first: {path}:2:" in capsys.readouterr().err
    path.write_text(json.dumps({"messages": turns}))
    assert job_here("score", *args, "--on-bad-row", "skip") == 2
    assert "holds no text that can be scored: its one row is bad" in capsys.readouterr().err


def test_the_job_calibrates_with_a_tokenizer_that_runs_its_own_code(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = write_model(tmp_path / "reward")
    (model / "tokenization_own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "s.jsonl").write_text(json.dumps({"prompt": "", "responses": RESPONSES}))
    args = ("--model", str(model), "--calibrate", str(tmp_path / "s.jsonl"))
    assert job_here("score", *args) == 2
    assert "custom code" in capsys.readouterr().err
    assert job_here("score", *args, "--trust-remote-code") == 0
    assert read_calibration(model).samples == 3


def test_the_job_calibrates_and_then_tells_deviations(tmp_path: Path, capsys) -> None:
    model = write_model(tmp_path / "reward")
    samples = [{"prompt": PROMPTS[0], "responses": RESPONSES}, {"prompt": "", "responses": ["a"]}]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, samples)))
    common = ("--model", str(model), "--dtype", "float32")
    assert job_here("score", *common, "--calibrate", str(tmp_path / "s.jsonl")) == 0
    scores = Scorer(model, dtype="float32")([PROMPTS[0]] * 3 + [""], [*RESPONSES, "a"])
    found = read_calibration(model)
    assert found.mean == pytest.approx(scores.mean(), abs=1e-5) and found.samples == 4
    assert found.std == pytest.approx(scores.std(), abs=1e-5)
    (tmp_path / "a.txt").write_text("a")
    capsys.readouterr()
    assert job_here("score", *common, "--format", "jsonl", str(tmp_path / "a.txt")) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["deviations"] == pytest.approx((row["score"] - found.mean) / found.std)


def test_what_the_job_cannot_do_it_says(model: Path, capsys) -> None:
    assert job_here("score", "--model", str(model)) == 2
    assert "give a FILE to score" in capsys.readouterr().err
    assert job_here("score", "--model", str(model.parent), "a.txt") == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert job_here("score", "--model", str(model), "--batch", "0", "a.txt") == 2
    assert "--batch is 0 rows scored at a time: give at least 1" in capsys.readouterr().err
