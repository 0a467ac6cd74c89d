"""Rollouts to look at: `rollouts/step-000010.parquet` (training) and `heldout-000010.parquet`.

Columns: prompt_id, prompt, response, score, gold, kl, tokens, finish_reason, `score/<component>`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_ray.files import replacing

Split = Literal["step", "heldout"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One response as text. `kl`: Σ k1 to the reference, in nats; `gold`: where truth is known."""

    prompt_id: int
    prompt: str
    response: str
    score: float
    kl: float = 0.0
    gold: float | None = None
    tokens: int = 0
    finish_reason: str = ""
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """The same held-out prompt, before and after."""

    prompt: str
    before: Sample
    after: Sample


def write_sample_file(
    run_dir: Path, step: int, samples: Sequence[Sample], *, split: Split = "step"
) -> Path:
    """Write one file for one step; it is complete or absent.

    Samples of one file have the same components.
    """
    plain = ("prompt_id", "prompt", "response", "score", "kl", "gold", "tokens", "finish_reason")
    columns = {name: [getattr(sample, name) for sample in samples] for name in plain}
    names = samples[0].components if samples else {}
    for name in names:
        columns[f"score/{name}"] = [sample.components[name] for sample in samples]
    table = pa.table(columns)
    if table.schema.field("gold").type == pa.null():
        gold = table.schema.get_field_index("gold")
        table = table.set_column(gold, "gold", table["gold"].cast(pa.float64()))
    path = Path(run_dir) / "rollouts" / f"{split}-{step:06d}.parquet"
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd")
    return path


def read_samples(path: Path) -> list[Sample]:
    """Samples of one file, in the order written."""
    plain = {name for name in Sample.__dataclass_fields__ if name != "components"}
    samples = []
    for row in pq.read_table(path).to_pylist():
        components = {k.removeprefix("score/"): v for k, v in row.items() if k.startswith("score/")}
        known = {name: value for name, value in row.items() if name in plain}
        samples.append(Sample(**known, components=components))
    return samples


def steps_written(run_dir: Path, split: Split) -> dict[int, Path]:
    """Step → file, ascending."""
    files = sorted((Path(run_dir) / "rollouts").glob(f"{split}-*.parquet"))
    return {int(file.stem.rpartition("-")[2]): file for file in files}


def rewind_samples(run_dir: Path, step: int) -> None:
    """Remove the files of later steps."""
    for split in get_args(Split):
        for written, path in steps_written(run_dir, split).items():
            if written > step:
                path.unlink()


def before_after(run_dir: Path) -> list[Pair]:
    """Held-out prompts of the first and last evaluation side by side; [] with fewer than two."""
    files = list(steps_written(run_dir, "heldout").values())
    if len(files) < 2:
        return []
    before = {sample.prompt_id: sample for sample in read_samples(files[0])}
    after = read_samples(files[-1])
    return [Pair(s.prompt, before[s.prompt_id], s) for s in after if s.prompt_id in before]
