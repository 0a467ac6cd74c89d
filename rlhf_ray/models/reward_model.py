"""A scalar head on a decoder or an encoder: text in, one score out.

B rows, T positions, N tokens of all rows end to end, D features.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from rlhf_ray.config import Pooling
from rlhf_ray.files import write_json
from rlhf_ray.models.loading import (
    attention_of,
    cast_parameters,
    features_of,
    is_causal,
    load_causal_lm,
    load_config,
    loading,
    source_options,
)
from rlhf_ray.models.lora import add_lora, has_adapter, load_adapter, merged
from rlhf_ray.models.norms import use_short_norms
from rlhf_ray.models.packing import PackedRows, hidden_states, use_packing

HEAD_FILE, SETTINGS_FILE = "head.safetensors", "reward_model.json"
CALIBRATION_FILE = "calibration.json"
ADAPTER_DIR = "adapter"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean and deviation of raw scores on samples of the reference policy, and their number."""

    mean: float
    std: float
    samples: int

    def __call__(self, scores_B: Tensor) -> Tensor:
        """(scores − mean) / std: deviations from what the reference policy writes."""
        return (scores_B - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class Encoded:
    """One forward pass: pooled features, and what they were pooled from."""

    features_BD: Tensor
    hidden_ND: Tensor


class RewardModel(nn.Module):
    """`head(pooled features)` of a backbone; raw scores, calibrated by who asks for it.

    Padding never changes a score: it is taken away first.
    """

    def __init__(self, backbone: PreTrainedModel, pooling: Pooling, *, seed: int = 0) -> None:
        """Give `backbone` a new head: weights of deviation 1/sqrt(D + 1), bias 0.

        (Stiennon et al. 2020.) Raises ValueError for `pooler` on a backbone that has none.
        """
        super().__init__()
        if pooling == "pooler" and getattr(backbone, "pooler", None) is None:
            raise ValueError(
                f"pooling is `pooler`, and {type(backbone).__name__} has no pooler: "
                f"set rm.pooling to cls or mean for an encoder, to last or mean for a decoder"
            )
        self.backbone = backbone
        self.pooling = pooling
        self.is_causal = is_causal(backbone.config)
        features = features_of(backbone.config)
        self.head = nn.Linear(features, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.normal_(0.0, (features + 1) ** -0.5, generator=generator)
            self.head.bias.zero_()
        # What trains along and is not saved: a language model's head, prototypes.
        self.aside = nn.ModuleDict()
        use_short_norms(backbone)
        use_packing(backbone)

    @classmethod
    def from_backbone(
        cls,
        path: str | Path,
        pooling: Pooling,
        *,
        seed: int = 0,
        lm_head: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """A new float32 reward model on the decoder or encoder at `path`, without its head.

        With `lm_head` the decoder's own head stays beside it, for a language model loss; it is not
        saved. ValueError where there is no causal language model then.
        """
        if not lm_head:
            backbone = _load_backbone(path, pooling, trust_remote_code=trust_remote_code)
            return cls(backbone, pooling, seed=seed)
        whole = load_causal_lm(path, trust_remote_code=trust_remote_code)
        model = cls(whole.base_model, pooling, seed=seed)
        model.aside["lm_head"] = whole.get_output_embeddings()
        return model

    def add_lora(self, **settings: Any) -> None:
        """Freeze the backbone and put adapters beside its weights: `lora.add_lora`'s arguments."""
        self.backbone = add_lora(self.backbone, **settings)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        merge: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """What `save_pretrained` wrote, in eval mode. ValueError where there is no reward model.

        merge: put adapters that were saved apart into the weights; scores then differ by rounding.
        """
        path = Path(path)
        settings = _read_settings(path)
        base = settings.get("base")
        pooling = settings["pooling"]
        backbone = _load_backbone(base or path, pooling, trust_remote_code=trust_remote_code)
        model = cls(backbone, pooling)
        if base:
            with loading("adapters", path / ADAPTER_DIR):
                model.backbone = load_adapter(backbone, path / ADAPTER_DIR)
            model.backbone = merged(model.backbone) if merge else model.backbone
        with loading("reward model", path):
            model.head.load_state_dict(load_file(path / HEAD_FILE))
        return cast_parameters(model, dtype).eval()

    def save_pretrained(self, path: str | Path, *, base: str | Path | None = None) -> None:
        """Write the backbone as AutoModel loads it, the head and the settings beside it.

        Adapters are merged into the weights; with `base`, where the weights beside them came from,
        they are written apart, into `adapter/`. A base that begins with `..` is seen from the
        directory that holds the model, and moves with it.
        """
        path = Path(path)
        apart = base is not None and has_adapter(self.backbone)
        if apart:
            self.backbone.save_pretrained(path / ADAPTER_DIR)
        else:
            merged(self.backbone).save_pretrained(path)
        head = {name: x.detach().cpu().contiguous() for name, x in self.head.state_dict().items()}
        save_file(head, path / HEAD_FILE)
        settings: dict[str, Any] = {"format": 1, "pooling": self.pooling}
        if base is not None and apart:
            stays = Path(base).is_dir() and not str(base).startswith(os.pardir)
            settings["base"] = str(Path(base).absolute() if stays else base)
        (path / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Raw scores_B, float32 and with gradient.

        input_ids_BT int64; attention_mask_BT is not 0 where a token counts; padding on either side,
        any amount. Raises ValueError for a row without a token.
        """
        rows = PackedRows.of_padded(input_ids_BT, attention_mask_BT)
        return self.score_features(self.encode(rows).features_BD)

    def encode(self, rows: PackedRows) -> Encoded:
        """Pooled features, before the head."""
        hidden_ND = hidden_states(self.backbone, rows)
        return Encoded(self._pool(hidden_ND, rows), hidden_ND)

    def score_features(self, features_BD: Tensor) -> Tensor:
        """The head alone: raw scores_B, float32."""
        # In float32 whatever the backbone computes in: bfloat16 would tie scores that are close.
        return F.linear(features_BD.float(), self.head.weight.float(), self.head.bias.float())[:, 0]

    @torch.inference_mode()
    def score(self, rows: PackedRows) -> Tensor:
        """Raw scores_B, float32, without gradient and without dropout."""
        assert not self.training, "call eval() before scoring: dropout would change scores"
        return self.score_features(self.encode(rows).features_BD)

    def _pool(self, hidden_ND: Tensor, rows: PackedRows) -> Tensor:
        starts_B1 = torch.from_numpy(rows.starts).to(hidden_ND.device)
        if self.pooling == "cls":
            return hidden_ND[starts_B1[:-1]]
        if self.pooling == "pooler":
            return self.backbone.pooler(hidden_ND[starts_B1[:-1], None])
        if self.pooling == "last":
            return hidden_ND[starts_B1[1:] - 1]
        return torch.segment_reduce(hidden_ND.float(), "mean", offsets=starts_B1)


def backbone_config(path: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of the backbone that the reward model at `path` has.

    Raises ValueError where there is no reward model.
    """
    base = _read_settings(Path(path)).get("base")
    return load_config(base or path, trust_remote_code=trust_remote_code)


def read_calibration(path: str | Path) -> Calibration | None:
    """The calibration stored with the reward model at `path`; None where it has none yet."""
    file = Path(path) / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        return Calibration(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): take it away, or measure it again "
            f"(jobs/score.py --calibrate)"
        ) from None


def write_calibration(path: str | Path, calibration: Calibration) -> None:
    """Store `calibration` with the reward model at `path`, whole or not at all."""
    write_json(Path(path) / CALIBRATION_FILE, asdict(calibration))


def calibrate(scores_N: Tensor) -> Calibration:
    """Mean and population deviation of scores. ValueError unless finite and varied."""
    scores_N = scores_N.double()
    mean, std = float(scores_N.mean()), float(scores_N.std(correction=0))
    if not std > 1e-8:
        raise ValueError(
            f"{len(scores_N)} scores have mean {mean:g} and deviation {std:g}: a reward model "
            f"whose scores do not vary, or are not finite, cannot guide a policy; train it again"
        )
    return Calibration(mean, std, len(scores_N))


def _load_backbone(
    path: str | Path, pooling: Pooling, *, trust_remote_code: bool
) -> PreTrainedModel:
    config = load_config(path, trust_remote_code=trust_remote_code)
    options = source_options(path, trust_remote_code=trust_remote_code)
    with loading("model", path):
        model, info = AutoModel.from_pretrained(
            str(path),
            dtype=torch.float32,
            output_loading_info=True,
            **options,
            **attention_of(config),
        )
    random = [name for name in info["missing_keys"] if name.startswith("pooler.")]
    if pooling == "pooler" and random:
        raise ValueError(
            f"{path} has no weights of a pooler ({', '.join(sorted(random))}): its features would "
            f"be random; give --rm.pooling cls or mean"
        )
    return model


def _read_settings(path: Path) -> dict[str, Any]:
    """What `save_pretrained` noted. ValueError where it is not that."""
    file, known = path / SETTINGS_FILE, get_args(Pooling)
    if not file.is_file():
        raise ValueError(
            f"{path} holds no reward model ({SETTINGS_FILE} is missing): train one with "
            f"jobs/rm.py, or give another model as reward source `classifier`"
        )
    with loading("reward model", path):
        settings = json.loads(file.read_text(encoding="utf-8"))
    pooling = settings.get("pooling") if isinstance(settings, dict) else None
    if pooling not in known:
        raise ValueError(
            f"{file} gives pooling as {pooling!r}, which is none of {', '.join(known)}: it is not "
            f"what jobs/rm.py wrote; copy the reward model again"
        )
    base = settings.get("base", "")
    if base.startswith(os.pardir):
        settings["base"] = os.path.normpath(path.absolute() / base)
    return settings
