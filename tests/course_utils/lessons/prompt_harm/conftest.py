"""A tokenizer of words whose end token may come in the middle of an answer."""

import pytest
from tiny import word_tokenizer


@pytest.fixture
def tokenizer():
    found = word_tokenizer()
    found.eos_token = "w1"
    return found
