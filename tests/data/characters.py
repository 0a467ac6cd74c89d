"""Tokenizers of one token a character, so that a test can say by hand what the tokens are."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:!?\n<|>/水壶好很不错"
EOS, BOS, UNKNOWN = 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def ids(text: str) -> list[int]:
    """What the character tokenizer must give for `text`."""
    return [ALPHABET.index(c) + 3 if c in ALPHABET else UNKNOWN for c in text]


def character_tokenizer(*, opens_with_bos: bool = False, template: str | None = None):
    """pad == eos on purpose: nothing may take an EOS for padding."""
    vocab = {"[eos]": EOS, "[bos]": BOS, "[unk]": UNKNOWN}
    vocab |= {character: i for i, character in enumerate(ALPHABET, 3)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    if opens_with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[bos] $A", special_tokens=[("[bos]", BOS)]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="[eos]",
        pad_token="[eos]",
        bos_token="[bos]",
        unk_token="[unk]",
    )
    wrapped.chat_template = template
    return wrapped
