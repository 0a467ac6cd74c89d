"""Which device a process computes on, and what it says where it was given one that is not there."""

import pytest
import torch

from rlhf_ray.models.device import GPUS, device_here, gpus_given


@pytest.mark.parametrize("given", [None, "0"])
def test_a_process_without_a_gpu_computes_on_the_cpu(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(GPUS, raising=False)
    if given is not None:
        monkeypatch.setenv(GPUS, given)
    assert device_here() == "cpu" and gpus_given() == 0.0


@pytest.mark.parametrize(
    ("cuda", "fix"),
    [(None, "install the `gpu` extra"), ("13.0", "the driver to one for CUDA 13.0")],
)
def test_a_gpu_that_was_given_and_is_not_there_is_said(
    cuda: str | None, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv(GPUS, "0.25")
    with pytest.raises(ValueError, match=rf"given 0\.25 GPU, and torch .* sees none: .*{fix}"):
        device_here()


def test_a_gpu_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_here() == "cuda"
