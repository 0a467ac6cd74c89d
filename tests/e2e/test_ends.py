"""When a run ends before its last iteration, and that asking it to go on then changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running.jobs import TINY, fingerprint, rows, succeed, summary

Make = Callable[[str], tuple[Path, tuple[str, ...]]]


@pytest.mark.slow
def test_a_run_ends_at_its_limit_of_kl(new_run: Make):
    run, place = new_run("limited")
    # Of an untrained policy's first iterations some mean is above nothing.
    out = succeed("ppo", *place, *TINY, "--ppo.iterations=50", "--ppo.kl-limit=1e-9")
    assert "ppo.kl_limit is 1e-09: the run ends" in out
    ended, weights = summary(run), fingerprint(run)
    kls = [row["kl/mean_k1"] for row in rows(run)[1:]]
    assert 1 <= ended["iterations"] == len(kls) < 50
    assert kls[-1] > 1e-9 >= max(kls[:-1], default=0.0)
    assert (run / "evaluations" / f"step-{len(kls):06d}.json").exists(), "the last is evaluated"
    succeed("ppo", *place, "--resume")
    again = summary(run)
    assert (again["iterations"], again["heldout"]) == (len(kls), ended["heldout"])
    assert fingerprint(run) == weights
    succeed("ppo", *place, "--resume", "--ppo.kl-limit=1e9", f"--ppo.iterations={len(kls) + 1}")
    assert summary(run)["iterations"] == len(kls) + 1
