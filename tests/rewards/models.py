"""Small models with random weights, and batches of responses in their tokens."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf_ray.models.reward_model import RewardModel
from rlhf_ray.models.tiny import make_decoder, make_tokenizer
from rlhf_ray.rewards.protocol import Responses

TEXTS = ["the food was good and the room was clean", "the staff was rude", "菜很好吃", "房间很干净"]
WORDS = sorted({word for text in TEXTS[:2] for word in text.split()})


def policy_tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE over TEXTS and `extra`."""
    return make_tokenizer([*TEXTS, *extra], vocab=400)


def save_reward_model(
    path: Path, tokenizer: PreTrainedTokenizerFast, *, pooling: str = "mean", positions: int = 64
) -> RewardModel:
    """A reward model on a small decoder, with its tokenizer beside it."""
    decoder = make_decoder(tokenizer, hidden=64, layers=2, seed=3)
    decoder.config.max_position_embeddings = positions
    model = RewardModel(decoder.model, pooling, seed=4).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def word_tokenizer(*, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token a word, `[CLS] … [SEP]` around a text, as BERT's."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if pad:
        special["pad_token"] = "[PAD]"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_classifier(
    path: Path, *, decoder: bool, labels: int, positions: int = 32, **settings
) -> None:
    """A BERT or a Llama with a classifier on top; the Llama's tokenizer has no pad token."""
    tokenizer = word_tokenizer(pad=not decoder)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "num_labels": labels,
        "initializer_range": 0.5,
        **settings,
    }
    torch.manual_seed(labels)
    if decoder:
        model = LlamaForSequenceClassification(LlamaConfig(**shape))
    else:
        model = BertForSequenceClassification(BertConfig(**shape))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def batch_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> Responses:
    """Responses in the tokens of `tokenizer`; one that ends in `</s>` ended with the EOS."""
    prompt_ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    texts = [r.removesuffix("</s>") for r in responses]
    response_ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        + [tokenizer.eos_token_id] * response.endswith("</s>")
        for text, response in zip(texts, responses, strict=True)
    ]
    ended = [response.endswith("</s>") for response in responses]
    return Responses(prompt_ids, response_ids, list(prompts), texts, ended)
