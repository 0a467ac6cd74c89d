import pytest

from tests.data.characters import TEMPLATE, character_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer():
    return character_tokenizer(opens_with_bos=True)


@pytest.fixture(scope="session")
def chat_tokenizer():
    return character_tokenizer(template=TEMPLATE)
