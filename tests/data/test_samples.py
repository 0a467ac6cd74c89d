import json

import pytest

from rlhf_ray.data.samples import Samples, load_samples, write_samples


def samples_of(tmp_path, *rows, **options):
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_samples(path, options.pop("tokenizer"), **options)


def test_prompts_are_rendered_unless_they_are_already(tmp_path, chat_tokenizer):
    rows = [
        {"prompt": "q", "responses": ["a", "b"]},
        {"prompt": [{"role": "user", "content": "q"}], "responses": ["a", "b"]},
        {"prompt": "<user>q<assistant>", "responses": ["a", "b"], "rendered": True},
        {"prompt": None, "responses": ["a", "b", ""]},
    ]
    found = samples_of(tmp_path, *rows, tokenizer=chat_tokenizer)
    rendered = Samples("<user>q<assistant>", ("a", "b"))
    assert list(found) == [rendered] * 3 + [Samples("", ("a", "b", ""))]
    write_samples(tmp_path / "t.jsonl", found)
    assert load_samples(tmp_path / "t.jsonl", chat_tokenizer) == found


def test_the_prompt_is_read_from_the_column_that_is_named(tmp_path, tokenizer):
    rows = [{"question": "q", "responses": ["a", "b"]}, {"prompt": "p", "responses": ["a", "b"]}]
    found = samples_of(tmp_path, *rows, tokenizer=tokenizer, prompt_column="question")
    assert [one.prompt for one in found] == ["q", "p"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"responses": ["a", "b"]}, "no column 'prompt'"),
        ({"prompt": "q", "responses": "ab"}, "'responses' is a text: give a list of texts"),
        ({"prompt": "q", "responses": ["a"]}, "'responses' are 1: give at least 2"),
        ({"prompt": " ", "responses": ["a", "b"]}, "'prompt' is empty"),
        ({"prompt": [{"role": "assistant", "content": "a"}], "responses": ["a", "b"]},
         "'prompt' ends with the answer of 'assistant'"),
    ],
)  # fmt: skip
def test_bad_rows_end_the_run_or_are_counted(tmp_path, tokenizer, row, fault):
    good = {"prompt": "q", "responses": ["a", "b"]}
    with pytest.raises(ValueError, match=rf"s\.jsonl:2: {fault}.* such rows: --skip skip$"):
        samples_of(tmp_path, good, row, tokenizer=tokenizer, flag="--skip")
    found = samples_of(tmp_path, good, row, tokenizer=tokenizer, on_bad_row="skip")
    assert len(found) == found.bad_rows == 1 and "s.jsonl:2: " in found.first_bad
    with pytest.raises(ValueError, match=r"s\.jsonl holds no samples: its one row is bad: .*:1: "):
        samples_of(tmp_path, row, tokenizer=tokenizer, on_bad_row="skip")
