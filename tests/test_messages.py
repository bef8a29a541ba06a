"""The words are values."""

import dataclasses

import pytest

from proxy import messages

WORDS = [word for word in vars(messages).values() if dataclasses.is_dataclass(word)]
WORDS.remove(messages.TurnRecord)  # it is filled in while its turn runs


@pytest.mark.parametrize("word", WORDS)
def test_a_word_never_changes(word: type) -> None:
    """Every word is frozen and slotted."""
    assert word.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(word)


def test_equal_words_are_equal() -> None:
    """Words are compared by what they hold."""
    assert messages.Message("user", "a") == messages.Message("user", "a")
    assert messages.Handle({"id": 1}) != messages.Handle({"id": 2})
