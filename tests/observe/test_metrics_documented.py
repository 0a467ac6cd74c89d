"""docs/metrics.md, `KEYS` and what the code emits are one list."""

import re
from pathlib import Path

import pytest

import rlhf_ray
from rlhf_ray.observe.keys import KEYS, row_of

PACKAGE = Path(rlhf_ray.__file__).parent
DOC = PACKAGE.parent / "docs" / "metrics.md"


def documented() -> dict[str, list[str]]:
    """Key → the other cells of its row."""
    rows = {}
    for line in DOC.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if match := re.fullmatch(r"`([^`]+)`", cells[0]):
            assert match[1] not in rows, f"{match[1]} is documented twice"
            rows[match[1]] = cells[1:]
    return rows


def test_every_key_is_documented_and_no_other() -> None:
    assert set(documented()) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_unit_and_place_are_right(key: str) -> None:
    unit, _meaning, places, healthy = documented()[key]
    assert unit == KEYS[key].unit
    assert healthy
    files = re.findall(r"`([^`]+)`", places)
    assert files
    for file in files:
        assert (PACKAGE / file).is_file(), f"{key}: there is no {file}"


# What only some settings have in their rows. Every other key is looked for in those of the
# demonstration: tests/e2e/test_demo.py.
RARE = {"kl/efficiency", "grad/norm_critic"}
RARE |= {"loss/lm", "loss/centring", "loss/contrastive", "meta/difference"}


@pytest.mark.parametrize("key", sorted(RARE | {key for key in KEYS if KEYS[key].live}))
def test_the_code_emits_it(key: str) -> None:
    """A key that nobody writes must not stay in the table. Names are literals."""
    files = PACKAGE.rglob("*.py")
    sources = (f for f in files if f.parent.name != "observe" or f.name == "gauges.py")
    assert any(f'"{key}"' in file.read_text(encoding="utf-8") for file in sources)


def test_families() -> None:
    assert row_of("score/mean") == ("score/mean", None)
    assert row_of("score/polite") == ("score/<component>", "polite")
    for unknown in ("score", "score/", "kl/maen_k1", "loss/<component>"):
        with pytest.raises(ValueError, match=r"docs/metrics\.md"):
            row_of(unknown)
