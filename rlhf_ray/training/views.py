"""Two views of each text's features, and the contrastive loss that compares them.

Shapes: N texts, P pairs, D features, K prototypes.
"""

import torch
from torch import Tensor, nn

from rlhf_ray.algos.contrastive import difference_features, simcse_loss, swav_loss
from rlhf_ray.algos.ranked_pairs import Pairs
from rlhf_ray.config import Contrastive

# β and the number of prototypes of Wang et al. 2024, by method and by what is compared.
WEIGHTS = {
    ("simcse", "pairs"): 1.0,
    ("simcse", "differences"): 1.0,
    ("swav", "pairs"): 0.1,
    ("swav", "differences"): 0.5,
}
PROTOTYPES = {"pairs": 50, "differences": 20}


class Views:
    """Feature dropout and the loss that `settings` ask for. weight: β.

    `prototypes` holds the clusters' directions [K, D] where the method has them; whoever builds a
    `Views` lets them train.
    """

    def __init__(self, settings: Contrastive, features: int, *, seed: int) -> None:
        if not 0 < settings.dropout < 1:
            raise ValueError(
                f"rm.contrastive.dropout is {settings.dropout}: two views of a text differ by it "
                f"alone, so give a number between 0 and 1 (usual: .05)"
            )
        self._settings = settings
        wanted = settings.weight
        self.weight = WEIGHTS[settings.method, settings.on] if wanted is None else wanted
        self._generator = torch.Generator().manual_seed(seed)
        self.prototypes: nn.Linear | None = None
        if settings.method == "swav":
            clusters = settings.prototypes or PROTOTYPES[settings.on]
            self.prototypes = nn.Linear(features, clusters, bias=False)
            with torch.no_grad():
                self.prototypes.weight.normal_(0.0, features**-0.5, generator=self._generator)

    def draw(self, features_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Two views: each with dropout of its own, scaled to keep the mean."""
        keep = 1 - self._settings.dropout
        one, other = (
            (torch.rand(features_ND.shape, generator=self._generator) < keep).to(features_ND) / keep
            for _ in range(2)
        )
        return features_ND * one, features_ND * other

    def loss(
        self, one_ND: Tensor, other_ND: Tensor, pairs: Pairs, aside: nn.ModuleDict
    ) -> tuple[Tensor, int]:
        """(mean contrastive loss, number of terms) over the texts of the pairs, or differences.

        A text that is in several pairs of its list is there once: beside itself it could never be
        told apart. aside: holds `prototypes`, as they compute, where the method has them.
        """
        first_P, second_P = pairs.first_P, pairs.second_P
        if self._settings.on == "pairs":
            texts = torch.cat([first_P, second_P]).unique()
            views = [one_ND[texts], other_ND[texts]]
        else:
            views = [
                difference_features(view_ND[first_P], view_ND[second_P])
                for view_ND in (one_ND, other_ND)
            ]
        if self._settings.method == "simcse":
            value, _ = simcse_loss(views[0], views[1])
        else:
            directions_KD = aside["prototypes"].get_parameter("weight")
            value, _ = swav_loss(views[0], views[1], directions_KD)
        return value, len(views[0])
