"""The loop that the README shows is the loop."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_loop_shown_is_the_loop():
    shown = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    lines = [line.strip() for line in shown.splitlines() if line.strip() not in ("", "...")]
    source = (ROOT / "rlhf_ray" / "training" / "ppo.py").read_text()
    code = [line.strip() for line in source.splitlines()]
    start = code.index(lines[0])
    assert code[start : start + len(lines)] == lines
