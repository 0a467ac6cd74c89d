"""Devices and torch's settings of a learner's process."""

import os
from collections.abc import Iterator

import pytest
import torch

from rlhf_ray.learners.group import set_up_torch, this_device


def test_a_gpu_has_the_index_that_torch_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_device() == torch.device("cpu") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen: list[int] = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    torch.cuda.set_device(this_device())
    assert chosen == [0]


@pytest.fixture
def settings_of_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.set_flush_denormal(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.usefixtures("settings_of_before")
def test_strict_is_more_than_a_warning(strict: bool) -> None:
    set_up_torch(strict=strict)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() == (not strict)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if strict else None)
