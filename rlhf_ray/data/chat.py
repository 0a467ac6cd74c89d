"""Conversations: messages checked, rendered with a chat template, or merged into a transcript."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rlhf_ray.config import ChatTemplate
from rlhf_ray.data.faults import RowFault, filled_text_of, kind_of, text_of

Messages = tuple[tuple[str, str], ...]  # (role, text), in order

ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "text", "value")
ANSWERER = "assistant"
CHAT_ROLES = {"human": "user", "用户": "user", "gpt": ANSWERER, "助手": ANSWERER}
ROLES = ("system", "user", ANSWERER, *CHAT_ROLES)
ANSWERERS = [role for role in ROLES if CHAT_ROLES.get(role, role) == ANSWERER]
# What templates that ask for the date get (Llama 3.2's write it into each prompt): with the day's
# own a run that is resumed on the next would have other prompts.
NO_DAY = datetime(2025, 1, 1)
TURN = re.compile(rf"\n\n({'|'.join(ROLES)}): ?", re.IGNORECASE)
ANSWER_OPENING = re.compile(rf"(?:\A|\n\n)(?:{'|'.join(ANSWERERS)}):", re.IGNORECASE)


def as_message(value: Any, what: str = "a message") -> tuple[str, str]:
    """(role, text) of `{role, text}`, `{role, content}`, `{from, content}` or `{from, value}`."""
    if not isinstance(value, Mapping):
        raise RowFault(
            f"{what} is {kind_of(value)} ({value!r:.60}); a message is an object with role and "
            f"content"
        )
    roles = [key for key in ROLE_KEYS if value.get(key) is not None]
    texts = [key for key in TEXT_KEYS if value.get(key) is not None]
    if len(roles) != 1 or len(texts) != 1:
        raise RowFault(
            f"a message has one of {ROLE_KEYS} and one of {TEXT_KEYS}; this one has "
            f"{sorted(map(str, value))}"
        )
    role = text_of(value[roles[0]], f"{roles[0]!r} of a message")
    return role, text_of(value[texts[0]], f"{texts[0]!r} of a message")


def as_messages(value: Any, what: str) -> Messages:
    """Messages of a list of them; RowFault where it is none or empty."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowFault(f"{what} is {kind_of(value)}: give a list of messages")
    if not value:
        raise RowFault(f"{what} is an empty list: a conversation has at least one message")
    return tuple(as_message(message) for message in value)


def text_or_messages(value: Any, what: str) -> str | Messages:
    """What a column holds that may be of either kind; RowFault where it is of neither."""
    if isinstance(value, str):
        return text_of(value, what)
    if not isinstance(value, Sequence):
        raise RowFault(f"{what} is {kind_of(value)}: give a text or a list of messages")
    return as_messages(value, what)


def as_prompt(value: Any, what: str) -> str | Messages:
    """A text, or messages before the answer; RowFault where they end with one."""
    prompt = text_or_messages(value, what)
    return prompt if isinstance(prompt, str) else unanswered(prompt, what)


def unanswered(messages: Messages, what: str) -> Messages:
    """`messages`; RowFault where the assistant has the last word."""
    if role_of(messages[-1]) == ANSWERER:
        raise RowFault(f"{what} ends with the answer of {messages[-1][0]!r}: leave that out")
    return messages


def role_of(message: tuple[str, str]) -> str:
    """Its role as chat templates know it."""
    role = message[0].lower()
    return CHAT_ROLES.get(role, role)


def chat_roles(messages: Messages) -> Messages:
    """`messages` with the roles that chat templates know."""
    return tuple((role_of(message), message[1]) for message in messages)


def transcript(messages: Messages) -> str:
    r"""`"\n\n<role>: <text>"` for each message, end to end, with the roles of chat templates."""
    return "".join(f"\n\n{role}: {text}" for role, text in chat_roles(messages))


def before_answer(messages: Messages) -> str:
    """Their transcript, up to where the answer begins."""
    return f"{transcript(messages)}\n\n{ANSWERER}:"


def asked_turns(text: str) -> Messages:
    r"""The turns of a transcript up to an answer, `"\n\nHuman: …\n\nAssistant:"`; else none."""
    openings = [match for match in ANSWER_OPENING.finditer(text) if match.end() == len(text)]
    if not openings:
        return ()
    start, *parts = TURN.split(text[: openings[0].start()])
    if start.strip():
        return ()
    return chat_roles(tuple(zip(parts[::2], parts[1::2], strict=True)))


def asked(prompt: str | Messages) -> tuple[str, Messages]:
    """What is read before the answer without a template, and its turns if a conversation."""
    if isinstance(prompt, str):
        return prompt, asked_turns(prompt)
    return before_answer(prompt), chat_roles(prompt)


def asked_in_turns(prompt: str | Messages, what: str) -> tuple[str, Messages]:
    """`asked` of what messages answer: a text that is no transcript is the user's turn.

    RowFault: it is empty. what: its name there.
    """
    text, turns = asked(prompt)
    return (text, turns) if turns else asked((("user", filled_text_of(text, what)),))


def uses_template(tokenizer: PreTrainedTokenizerBase, chat_template: ChatTemplate) -> bool:
    """Whether prompts are rendered. ValueError: `always`, and the tokenizer has none."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat_template == "always" and not has_template:
        raise ValueError(
            f"data.chat_template is always, and the tokenizer {tokenizer.name_or_path!r} has no "
            f"chat template: set --data.chat-template auto"
        )
    return has_template and chat_template != "never"


def render(
    prompt: str | Messages, tokenizer: PreTrainedTokenizerBase, chat_template: ChatTemplate
) -> str:
    """The text that the model reads before it answers.

    With a template (auto: where the tokenizer has one) a text is the user's message, or the turns
    of a transcript up to an answer. Without one a text stays as it is, and messages become a
    transcript that ends with the answerer's role. RowFault: the template refuses these messages.
    """
    text, turns = asked(prompt)
    if not uses_template(tokenizer, chat_template):
        return text
    messages = turns or (("user", text),)
    try:
        rendered: str = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages],
            tokenize=False,
            add_generation_prompt=True,
            strftime_now=NO_DAY.strftime,
        )
    except TemplateSyntaxError as error:  # of every row
        raise ValueError(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} is broken: {error}; "
            f"correct it, or do without it: --data.chat-template never"
        ) from None
    except TemplateError as error:
        roles = ", ".join(role for role, _ in messages)
        raise RowFault(f"the chat template refuses messages by {roles}: {error}") from None
    return rendered
