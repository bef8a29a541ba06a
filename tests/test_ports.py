"""Every member of a family fits its plug."""

from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING

import pytest

from proxy.stores.memory import MemoryStore
from proxy.vendors import load
from tests.scripted import ScriptedBot

if TYPE_CHECKING:  # mypy holds each against the protocol, signatures and all
    from proxy.ports import Bot, ConversationStore
    from proxy.vendors.newoaks import NewOaks
    from proxy.vendors.quickchat import Quickchat

    def bots(newoaks: NewOaks, quickchat: Quickchat, scripted: ScriptedBot) -> list[Bot]:
        return [newoaks, quickchat, scripted]

    def stores(memory: MemoryStore) -> list[ConversationStore]:
        return [memory]


@pytest.mark.parametrize("bot", [load("newoaks"), load("quickchat"), ScriptedBot])
def test_a_bot_has_one_verb(bot: type) -> None:
    """A bot speaks in an asynchronous generator and closes in a coroutine."""
    assert isasyncgenfunction(bot.reply)  # type: ignore[attr-defined]
    assert iscoroutinefunction(bot.aclose)  # type: ignore[attr-defined]
