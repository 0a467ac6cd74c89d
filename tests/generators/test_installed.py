"""A backend whose package is missing is refused by name, before anything is started."""

import importlib.util

import pytest

from rlhf_ray.generators.registry import BACKENDS, check_installed


def test_what_is_installed_is_accepted() -> None:
    check_installed("transformers")


def test_without_vllm_the_flag_that_does_without_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name)
    )
    with pytest.raises(ValueError, match=r"--rollout\.backend transformers") as refused:
        check_installed("vllm")
    assert "package vllm is not installed" in str(refused.value)
    check_installed("transformers")


def test_the_package_of_each_backend_is_one_that_pip_installs() -> None:
    assert {name: row.package for name, row in BACKENDS.items()} == {
        "vllm": "vllm", "transformers": "transformers",
    }  # fmt: skip
