"""Sizes rounded up, so that few shapes occur.

oneDNN compiles code for each shape of a bfloat16 product on a CPU, and rows that lie end to end
have a new one in nearly every pass. With sizes rounded up, four epochs over 128 rows of 1 to 128
tokens (3.9 M parameters and a critic, 2 cores with AMX) took 3.7 s instead of 5.3.
"""

import torch
from torch import Tensor

TOKENS = 128  # of a pass
LENGTH = 16  # of the longest row of a block, in attention


def compiles_each(like: Tensor) -> bool:
    """Whether code is compiled for each shape of products with `like`."""
    return like.dtype == torch.bfloat16 and like.device.type == "cpu"
