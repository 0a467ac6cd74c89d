"""The device that a process computes on."""

import os

import torch

GPUS = "RLHF_RAY_GPUS"  # environment variable of a run's actors and tasks: GPUs that each was given


def gpus_given() -> float:
    """GPUs that the run gave this process, or a part of one. 0: none, or nobody said."""
    return float(os.environ.get(GPUS, 0))


def device_here() -> str:
    """cuda where this process has a GPU, else cpu.

    Raises ValueError where it was given one and torch sees none.
    """
    if torch.cuda.is_available():
        return "cuda"
    if given := gpus_given():
        cuda = torch.version.cuda
        fix = f"update the driver to one for CUDA {cuda}" if cuda else "install the `gpu` extra"
        raise ValueError(
            f"this process was given {given:g} GPU, and torch {torch.__version__} sees none: "
            f"{fix} on the nodes, or give --cluster.generator-gpus, --cluster.learner-gpus and "
            f"--cluster.scorer-gpus 0"
        )
    return "cpu"
