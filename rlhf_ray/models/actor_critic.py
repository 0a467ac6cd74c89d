"""The policy, and the critic: a model of its own, or a value head on the policy's trunk.

Rows are prompt + response without its last token, end to end. `index_N` names the positions, among
all of them, that predict the N response tokens: log π(a_t) and V_t are both read there, before a_t.

Shapes: N response tokens, D features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_ray.models.indexing import take
from rlhf_ray.models.loading import features_of
from rlhf_ray.models.logprobs import HeadShape, response_logprobs
from rlhf_ray.models.packing import PackedRows, hidden_states


@dataclass(frozen=True)
class ActorOutput:
    """Of one forward pass: float32 [N] each; values only with a shared trunk."""

    logprobs_N: Tensor
    entropies_N: Tensor
    values_N: Tensor | None


class ValueHead(nn.Linear):
    """One number a position, computed in float32. Zero at first: V = 0."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """values_N, float32."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.linear(hidden_ND.float(), weight, bias).squeeze(1)


class Actor(nn.Module):
    """A causal language model, with a value head where the trunk is shared."""

    def __init__(self, model: Any, *, value_head: ValueHead | None = None) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head
        self.head_shape = HeadShape.of(model.config)

    def forward(
        self,
        rows: PackedRows,
        index_N: Tensor,
        targets_N: Tensor,
        *,
        temperature: float,
        entropy: bool = False,
        detach_trunk: bool = False,
    ) -> ActorOutput:
        """Log-probabilities of the response tokens, and values with a shared trunk.

        `detach_trunk` keeps the gradient of the values in the value head.
        """
        hidden_ND = take(hidden_states(self.model.base_model, rows), index_N)
        logprobs_N, entropies_N = response_logprobs(
            hidden_ND,
            self.model.get_output_embeddings(),
            targets_N,
            shape=self.head_shape,
            temperature=temperature,
            entropy=entropy,
        )
        values_N = None
        if self.value_head is not None:
            values_N = self.value_head(hidden_ND.detach() if detach_trunk else hidden_ND)
        return ActorOutput(logprobs_N, entropies_N, values_N)


class Critic(nn.Module):
    """A trunk of its own and a value head: V = (head − mean) / std, at first with 0 and 1."""

    def __init__(self, backbone: Any, value_head: ValueHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.value_head = value_head
        self._mean, self._std = 0.0, 1.0

    def calibrate(self, *, mean: float, std: float) -> None:
        """Values are of calibrated rewards from now on, where the head's are of raw scores."""
        self._mean, self._std = mean, std

    def forward(self, rows: PackedRows, index_N: Tensor) -> Tensor:
        """values_N, float32."""
        raw_N = self.value_head(take(hidden_states(self.backbone, rows), index_N))
        return (raw_N - self._mean) / self._std


def value_head_for(
    backbone: Any, *, weight_D: Tensor | None = None, bias: Tensor | None = None
) -> ValueHead:
    """A head for this trunk: zero, or a copy of a reward model's."""
    head = ValueHead(features_of(backbone.config))
    with torch.no_grad():
        if weight_D is not None:
            head.weight.copy_(weight_D.reshape(1, -1))
        if bias is not None:
            head.bias.copy_(bias.reshape(1))
    return head


@torch.no_grad()
def check_head(actor: Actor, *, tolerance: float = 1e-3) -> None:
    """Raise ValueError where this model's logits are not what `Actor` computes from its trunk.

    Compares log-probabilities of four tokens with those of the model's own forward pass.
    """
    device = next(actor.parameters()).device
    vocab = actor.model.get_output_embeddings().weight.shape[0]
    ids_L = (torch.arange(5, device=device) * 7 + 3) % vocab
    own_LV = actor.model(ids_L[None, :-1], use_cache=False).logits[0].float().log_softmax(1)
    own_N = own_LV.gather(1, ids_L[1:, None]).squeeze(1)
    rows, index_N = PackedRows(ids_L[:-1], (4,)), torch.arange(4, device=device)
    ours_N = actor(rows, index_N, ids_L[1:], temperature=1.0).logprobs_N
    if (worst := float((own_N - ours_N).abs().max())) > tolerance:
        raise ValueError(
            f"{type(actor.model).__name__}: log-probabilities from the trunk and the output "
            f"embeddings differ by {worst:.3g} from the model's own; its logits go through a step "
            f"that rlhf_ray.models.logprobs.HeadShape does not know"
        )
