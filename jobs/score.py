"""Scores of texts, or of prompts with responses, by a reward model that was trained here.

python jobs/score.py --model runs/demo/reward FILE
python jobs/score.py --model runs/demo/reward --format jsonl - < FILE > scores.jsonl
python jobs/score.py --model runs/demo/reward --calibrate samples.jsonl

FILE: .txt (a text a line), .tsv (a text a cell), .jsonl or .parquet (`text`, `prompt` and
`response`, or `messages`); - is the standard input, JSON objects or plain lines. --calibrate stores
mean and deviation of reference samples (`prompt` and `responses`) with the model.
"""

import json
import sys
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from transformers import PreTrainedTokenizerBase

from rlhf_ray import cli
from rlhf_ray.config import ChatTemplate, Combination, Dtype
from rlhf_ray.data.faults import BadRows, OnBadRow, RowFault, skipped
from rlhf_ray.data.samples import load_samples
from rlhf_ray.data.texts import Text, TextSet, as_read, load_texts
from rlhf_ray.files import replacing
from rlhf_ray.models.ensemble import first_member
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.reward_model import write_calibration
from rlhf_ray.observe.tables import printable
from rlhf_ray.rewards.scorer import Scorer

WIDTH = 72
FLAG = "--on-bad-row"


@dataclass(frozen=True)
class Options:
    model: str
    """Directory of a reward model, or of an ensemble."""
    file: Annotated[str | None, tyro.conf.Positional] = None
    """Texts to score; - is the standard input."""
    format: Literal["table", "jsonl"] = "table"
    """What to write: a table to read, or JSON lines with `score` beside what was read."""
    out: Path | None = None
    """Write to this file instead of the standard output."""
    batch: int = 512
    """Rows scored at a time; progress is told after each."""
    combine: Combination = "mean"
    """Ensemble: mean, smallest, or mean less `caution` deviations."""
    caution: float = 1.0
    """λ of `--combine cautious`."""
    dtype: Dtype = "auto"
    """Compute type."""
    chat_template: ChatTemplate = "auto"
    """Render prompts with the tokenizer's chat template: auto is `where it has one`."""
    text_column: str = "text"
    """Column of a plain text."""
    prompt_column: str = "prompt"
    """Column of a prompt."""
    response_column: str = "response"
    """Column of the response to it."""
    on_bad_row: OnBadRow = "fail"
    """A bad row ends the job with file, line and fault, or is skipped and counted."""
    calibrate: Path | None = None
    """Reference samples: their mean and deviation are stored with the model."""
    trust_remote_code: bool = False
    """Let a model's repository run its own Python code."""


def main() -> int:
    options = tyro.cli(Options, prog="jobs/score.py", description=cli.described(__doc__))
    if options.batch < 1:
        raise ValueError(f"--batch is {options.batch} rows scored at a time: give at least 1")
    if (options.file is None) == (options.calibrate is None):
        raise ValueError("give a FILE to score (- for the standard input), or --calibrate SAMPLES")
    scorer = Scorer(
        options.model,
        dtype=options.dtype,
        chat_template="never",  # prompts come rendered
        combine=options.combine,
        caution=options.caution,
        trust_remote_code=options.trust_remote_code,
    )
    tokenizer = load_tokenizer(
        first_member(options.model), trust_remote_code=options.trust_remote_code
    )
    if options.calibrate is not None:
        return calibrate(scorer, tokenizer, options)
    pairs = read(tokenizer, options)
    if options.out is None:
        return write(scorer, pairs, options, sys.stdout)
    with replacing(options.out) as aside, aside.open("w", encoding="utf-8") as file:
        return write(scorer, pairs, options, file)


def calibrate(scorer: Scorer, tokenizer: PreTrainedTokenizerBase, options: Options) -> int:
    """Store the calibration of reference samples with the model."""
    assert options.calibrate is not None
    samples = load_samples(
        options.calibrate,
        tokenizer,
        chat_template=options.chat_template,
        least=1,
        on_bad_row=options.on_bad_row,
        prompt_column=options.prompt_column,
        flag=FLAG,
    )
    tell_bad(samples.bad_rows, samples.first_bad)
    pairs = [(one.prompt, text) for one in samples for text in one.responses]
    found = scorer.calibrate([prompt for prompt, _ in pairs], [text for _, text in pairs])
    write_calibration(options.model, found)
    print(f"mean {found.mean:.4f}, deviation {found.std:.4f} over {found.samples} samples: stored "
          f"with {options.model}")  # fmt: skip
    return 0


def read(tokenizer: PreTrainedTokenizerBase, options: Options) -> list[tuple[Text, Text]]:
    """What is to be scored: each text as it was given, and as the model reads it."""
    assert options.file is not None
    load = partial(
        load_texts,
        text_column=options.text_column,
        prompt_column=options.prompt_column,
        response_column=options.response_column,
        on_bad_row=options.on_bad_row,
        flag=FLAG,
    )
    texts = standard_input(load) if options.file == "-" else load(options.file)
    bad = BadRows(options.on_bad_row, FLAG)
    pairs = []
    for text in texts:
        try:
            pairs.append((text, as_read(text, tokenizer, options.chat_template)))
        except RowFault as fault:
            bad.add(text.source, text.line, str(fault))
    if not pairs:
        raise bad.none_left(options.file, "text that can be scored")
    tell_bad(texts.bad_rows + bad.count, texts.first_bad or bad.first)
    return pairs


def standard_input(load: Callable[..., TextSet]) -> TextSet:
    """The texts there: JSON lines where the first line is an object."""
    content = sys.stdin.buffer.read()
    is_json = content.removeprefix(BOM_UTF8).lstrip().startswith(b"{")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"stdin{'.jsonl' if is_json else '.txt'}"
        path.write_bytes(content)
        return load(path, called="the standard input")


def tell_bad(count: int, first: str | None) -> None:
    """Say on the standard error what was skipped."""
    if count:
        print(skipped(count, first), file=sys.stderr, flush=True)


def write(scorer: Scorer, pairs: list[tuple[Text, Text]], options: Options, out) -> int:
    """Score batch by batch and write as they come; progress on the standard error."""
    calibration = scorer.calibration
    written, rows = 0, iter(pairs)
    while some := list(islice(rows, options.batch)):
        scores = scorer([read.prompt for _, read in some], [read.response for _, read in some])
        for (text, _), score in zip(some, scores.tolist(), strict=True):
            row = {"prompt": text.prompt, "response": text.response, "score": score}
            if calibration is not None:
                row["deviations"] = (score - calibration.mean) / calibration.std
            print(line_of(row, options.format), file=out)
        written += len(some)
        if len(pairs) > options.batch:
            print(f"{written}/{len(pairs)} scored", file=sys.stderr, flush=True)
    return 0


def line_of(row: dict, form: str) -> str:
    """One row as JSON, or as score and the beginning of the text."""
    if form == "jsonl":
        return json.dumps(row, ensure_ascii=False)
    text = printable(row["prompt"] + row["response"])
    shown = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    in_std = f"  {row['deviations']:+6.2f}σ" if "deviations" in row else ""
    return f"{row['score']:+9.4f}{in_std}  {shown}"


if __name__ == "__main__":
    cli.run(main)
