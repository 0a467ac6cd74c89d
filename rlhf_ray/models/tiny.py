"""A tokenizer and a small decoder made on the spot, where no pretrained model is given."""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEAD_DIM = 64
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>")
SMALLEST_VOCAB = 256 + len(SPECIAL_TOKENS)

# A Han character, kana or full-width mark is a word of its own; the rest splits as in GPT-2.
ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303f\uff00-\uffef"
LETTERS = r"\p{Latin}\p{Cyrillic}\p{Greek}"
WORDS = Regex(
    rf"[{ALONE}]|'s|'t|'re|'ve|'m|'ll|'d| ?[{LETTERS}]+| ?\p{{N}}"
    rf"| ?[^\s\p{{N}}{LETTERS}{ALONE}]+|\s+(?!\S)|\s+"
)


def make_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts` with at most `vocab` tokens; any text round-trips.

    Chinese is split by character before merges are learnt, so a frequent character is one token
    and a prompt cut at any character has the tokens that the whole text has there.
    """
    if vocab < SMALLEST_VOCAB:
        raise ValueError(
            f"model.vocab is {vocab}; bytes and special tokens alone are {SMALLEST_VOCAB}: "
            f"set it to 1024 or more"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    pad, eos, bos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def make_decoder(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, seed: int
) -> LlamaForCausalLM:
    """A Llama-shaped decoder with random float32 weights that depend on `seed` alone.

    Heads of 64, a feed-forward three times the width, tied embeddings, 1,024 positions. Not Qwen2's
    shape: beside a config of that type AutoTokenizer reads any tokenizer as Qwen2's own, with other
    words and ids.
    """
    if hidden < HEAD_DIM or hidden % HEAD_DIM:
        raise ValueError(
            f"model.hidden is {hidden}; it is a multiple of {HEAD_DIM}, the width of a head: "
            f"set {max(HEAD_DIM, round(hidden / HEAD_DIM) * HEAD_DIM)}"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_DIM,
        num_key_value_heads=hidden // HEAD_DIM,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
