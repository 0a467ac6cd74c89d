"""The learner's optimizer against torch's AdamW, after torch's clipping."""

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.config import PPO
from rlhf_ray.learners.group import Group
from rlhf_ray.learners.optimizer import Optimizer
from rlhf_ray.learners.sharding import own
from tests.learners.toys import learner, table


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 1))


def gradients(step: int) -> list[Tensor]:
    """What bfloat16 holds exactly. The norm is about 8 in the first two steps, then 0.08."""
    generator = torch.Generator().manual_seed(step)
    size = 1.0 if step < 2 else 0.01
    return [
        (size * torch.randn(p.shape, generator=generator)).bfloat16().float()
        for p in small().parameters()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_adamw_after_clipping(dtype: torch.dtype) -> None:
    """With an epsilon of the gradients' size, so that their scale shows."""
    module, theirs = small(), small()
    weights = own(module, group=Group(), dtype=dtype, shard=False)
    ours = Optimizer(weights, lr=0.01, eps=1e-2)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.01, eps=1e-2, weight_decay=0.0)
    for step in range(3):
        for p, grad in zip(module.parameters(), gradients(step), strict=True):
            (p * grad.to(dtype)).sum().backward()
        norm, grads = ours.norm_and_grads()
        ours.step(grads, norm=float(norm), max_norm=0.25)
        for p, grad in zip(theirs.parameters(), gradients(step), strict=True):
            p.grad = grad
        assert float(norm) == pytest.approx(
            float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.25))
        )
        adamw.step()
        masters = [slice_.local for slice_ in weights.slices()]
        for p, master, want in zip(module.parameters(), masters, theirs.parameters(), strict=True):
            torch.testing.assert_close(master, want.detach(), rtol=0, atol=1e-7)
            assert torch.equal(p, master.to(dtype)), "what is computed with follows the master"


@pytest.mark.parametrize(
    ("critic", "role", "trunk", "head"),
    [
        ("separate", "policy", 1e-3, None),
        ("separate", "critic", 3e-3, 3e-3),
        ("shared", "policy", 1e-3, 5e-3),
    ],
)
def test_an_annealed_step_goes_as_far_as_adamw_at_that_rate(
    critic: str, role: str, trunk: float, head: float | None
) -> None:
    """Step 3 of 4: half of the peak rates `trunk` and `head`."""
    settings = PPO(
        prompts=8, epochs=1, minibatches=1, iterations=4, lr_schedule="linear", lr=1e-3,
        critic_lr=3e-3, value_head_lr=5e-3, adam_eps=1e-4, max_grad_norm=0.02,
    )  # fmt: skip
    one = learner(settings=settings, critic=critic)
    moments = one.optimizers()[role].moments()
    theirs = [slice_.local.clone() for slice_, _, _ in moments]
    one.update(2, table(step=2))
    firsts = [exp_avg for _, exp_avg, _ in moments]
    norm = torch.cat([x.flatten() for x in firsts]).norm() / 0.1  # after one step, (1 − β₁)·grad
    assert float(norm) == pytest.approx(0.02, rel=1e-3)
    for (slice_, _, _), want, first in zip(moments, theirs, firsts, strict=True):
        peak = head if slice_.name.startswith("value_head.") else trunk
        want.grad = first / 0.1
        torch.optim.AdamW([want], lr=peak / 2, eps=1e-4, weight_decay=0.0).step()
        torch.testing.assert_close(slice_.local, want, rtol=0, atol=1e-6)
