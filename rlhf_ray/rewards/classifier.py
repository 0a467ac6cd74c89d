"""Any AutoModelForSequenceClassification as a reward: it reads prompt + response, as text."""

import itertools
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_ray.models.loading import attention_of, load_config, source_options, tokenizer_class
from rlhf_ray.models.packing import PackedRows
from rlhf_ray.rewards.micro_batches import Compute, score_rows
from rlhf_ray.rewards.protocol import Responses, Scores
from rlhf_ray.rewards.trained import longest_input


class ClassifierReward:
    """`path`: directory or name. One logit is the score; of several, the log-odds of `label`.

    Log-odds: logit_label − logsumexp(the other logits), or logit_label alone where each label is a
    question of its own (`problem_type: multi_label_classification`). label None: the last class.
    Its own tokenizer with its own special tokens, no chat template; a text longer than the model is
    cut from the left. The log-odds are computed in float32. Each score is what transformers gives
    the row alone with the model's own configuration.

    ValueError where there is no such model, its head was never trained, or it lacks the label.
    """

    def __init__(self, path: str, compute: Compute, *, label: int | None = None) -> None:
        trust = compute.trust_remote_code
        config = load_config(path, trust_remote_code=trust)
        self._label = _checked_label(path, label, config)
        self._multi_label = config.problem_type == "multi_label_classification"
        options = source_options(path, trust_remote_code=trust)
        self._tokenizer = tokenizer_class(path, options).from_pretrained(path, **options)
        model = _load(path, config, compute.dtype, options)
        self._model, self._compute = model.to(compute.device).eval(), compute
        self._text_config = model.config.get_text_config()
        pad, known = self._text_config.pad_token_id, self._model.get_input_embeddings()
        self._own_pad = pad if pad is not None and 0 <= pad < known.num_embeddings else None
        self._max_tokens = longest_input(model, self._tokenizer)
        self._padding_shows = self._a_score_changes_beside_a_longer_row()

    def __call__(self, batch: Responses) -> Scores:
        """float32 scores, all valid; they may be non-finite, which the combination refuses."""
        rows = self.token_ids(batch)
        scores = score_rows(rows, self._score, packed=False, compute=self._compute)
        return Scores(scores=scores, valid=np.ones(len(batch), dtype=bool))

    def token_ids(self, batch: Responses) -> list[np.ndarray]:
        """What the model reads: int32 rows, one a response."""
        pairs = zip(batch.prompt_texts(), batch.responses, strict=True)
        return self._rows_of([prompt + response for prompt, response in pairs])

    def close(self) -> None:
        """Nothing to end."""

    def _rows_of(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        self._tokenizer.truncation_side = "left"
        rows = self._tokenizer(texts, truncation=True, max_length=self._max_tokens)["input_ids"]
        return [np.array(row or [self._own_pad or 0], dtype=np.int32) for row in rows]

    def _score(self, rows: PackedRows) -> torch.Tensor:
        logits_BC = self._logits(rows)
        chosen_B = logits_BC[:, self._label]
        if logits_BC.shape[1] == 1 or self._multi_label:
            return chosen_B
        others = [c for c in range(logits_BC.shape[1]) if c != self._label]
        return chosen_B - logits_BC[:, others].logsumexp(dim=1)

    def _logits(self, rows: PackedRows) -> torch.Tensor:
        """float32 [B, C]."""
        if self._padding_shows:
            alone = [self._forward(PackedRows(ids, (len(ids),))) for ids in rows.apart()]
            return torch.cat(alone)
        return self._forward(rows)

    def _forward(self, rows: PackedRows) -> torch.Tensor:
        # A decoder's classifier reads the last token that is not its pad token; without one it
        # reads a lone row's last, as it does where the pad token is one that no row ends in.
        pad = self._own_pad
        if pad is None:
            ends = {int(ids[-1]) for ids in rows.apart()}
            pad = next(token_id for token_id in itertools.count() if token_id not in ends)
            self._text_config.pad_token_id = pad
        input_ids_BT, attention_mask_BT = rows.padded(pad)
        output = self._model(input_ids=input_ids_BT, attention_mask=attention_mask_BT.long())
        return output.logits.float()

    @torch.inference_mode()
    def _a_score_changes_beside_a_longer_row(self) -> bool:
        """By trying: XLNet's, say, is read at the last place, padding or not."""
        rows = self._rows_of(["a", "a longer text, of which the short one takes the length"])
        device = self._compute.device
        alone_1C = self._forward(PackedRows.of(rows[:1], device))
        beside_BC = self._forward(PackedRows.of(rows, device))
        rounding = max(1e-3, 16 * torch.finfo(self._compute.dtype).eps)
        return not torch.allclose(beside_BC[:1], alone_1C, rtol=rounding, atol=rounding)


def _load(path: str, config: Any, dtype: torch.dtype, options: dict[str, bool]) -> Any:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            **options,
            **attention_of(config),
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no sequence classifier could be loaded from {path}: {str(error).splitlines()[0]}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{path} holds {', '.join(config.architectures or ['no architecture'])} and lacks "
            f"weights of a classifier ({', '.join(missing[:3])}): its scores would be random; give "
            f"a model that was trained as a sequence classifier"
        )
    return model


def _checked_label(path: str, label: int | None, config: Any) -> int:
    if label is not None and not 0 <= label < config.num_labels:
        raise ValueError(
            f"classifier {path} has no label {label}: it has {config.num_labels}, "
            f"{dict(config.id2label)}; set label of this source to one of these numbers"
        )
    return config.num_labels - 1 if label is None else label
