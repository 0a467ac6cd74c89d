"""A file is the old one or the new one, never a part of one."""

import json
import os
from pathlib import Path

import pytest

from rlhf_ray.files import replacing, write_json, write_text


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.json"
    write_text(path, "很好\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(OSError), replacing(path) as aside:
        aside.write_text("half")
        raise OSError("disk full")
    assert path.read_text(encoding="utf-8") == "很好\n"
    assert os.listdir(path.parent) == ["a.json"]


def test_it_is_whole_before_it_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as aside:
        aside.write_text("new")
        assert not path.exists() and aside.parent == path.parent
    assert path.read_text() == "new"
    write_json(path, {"名": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"名": [1, 2]}


def test_a_device_is_written_to_and_stays_one() -> None:
    write_text("/dev/null", "nothing")
    assert Path("/dev/null").is_char_device()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "a.txt", tmp_path / "far" / "b.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "far"]
