"""A small world with good and bad words, in files, for tests that train."""

import random
from pathlib import Path

from rlhf_ray.config import RM, SFT, Config, Data, Model, Run

GOOD = ["good", "great", "lovely", "kind", "clean"]
BAD = ["bad", "awful", "rude", "dirty", "cold"]
NOUNS = ["room", "food", "staff", "bed", "view"]


def sentence(rng: random.Random, goodness: int) -> str:
    """Four opinions, `goodness` of them good; different for each draw, nearly always."""
    words = [rng.choice(GOOD) for _ in range(goodness)] + [
        rng.choice(BAD) for _ in range(4 - goodness)
    ]
    rng.shuffle(words)
    return " ".join(f"the {rng.choice(NOUNS)} was {word}." for word in words)


def write_lists(path: Path, n: int, seed: int = 0) -> Path:
    """Lists of three, best first."""
    rng = random.Random(seed)
    lines = ["\t".join(sentence(rng, goodness) for goodness in (4, 2, 0)) for _ in range(n)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config_for(tmp_path: Path, lists: int = 60, **sections: object) -> Config:
    """A run in `tmp_path` on a fresh file of lists: a decoder of 64, float32."""
    data = str(write_lists(tmp_path / "lists.tsv", lists))
    known = {
        "run": Run(name="small", root=str(tmp_path)),
        "data": Data(texts=data, preferences=data),
        "model": Model(hidden=64, layers=1, vocab=320, dtype="float32"),
        "sft": SFT(epochs=2, lr=3e-3, batch_tokens=512),
        "rm": RM(epochs=3, lr=3e-3, batch_lists=8),
    }
    return Config(**(known | sections))
