"""The doors: what the bot is asked, and the headers of the answer."""

import asyncio
from typing import Any

import pytest

from proxy.config import ModelOptions
from tests.doors import Doors, open_doors
from tests.scripted import Cue


async def test_the_model_is_the_name_that_was_asked_for(doors: Doors) -> None:
    """An answer names the alias it was asked under."""
    assert (await doors.ask(model="gpt-4o-mini")).json()["model"] == "gpt-4o-mini"


async def test_a_model_may_be_hidden_from_a_key(doors: Doors) -> None:
    """A model that a key may not use looks as if it did not exist."""
    hidden = await doors.ask(model="it/help", key="sk-few")
    unknown = await doors.ask(model="it/halp", key="sk-few")

    assert hidden.status_code == unknown.status_code == 404
    assert hidden.json()["error"]["code"] == "model_not_found"
    assert hidden.text.replace("help", "halp") == unknown.text


async def test_ignored_fields_are_listed(doors: Doors) -> None:
    """Well-formed names of ignored fields are listed in a header, at most 20, others not at all."""
    odd: dict[str, Any] = {"temperature": 1, "evil\r\nname": 1, "x" * 65: 1} | {f"extra{i}": 1 for i in range(30)}

    names = (await doors.ask(**odd)).headers["x-parley-ignored"].split(", ")

    assert names == ["temperature", *(f"extra{i}" for i in range(19))]


async def continued(doors: Doors, one: dict[str, Any], other: dict[str, Any]) -> bool:
    first = await doors.ask(**one)
    chat = [
        {"role": "user", "content": "hello"},
        first.json()["choices"][0]["message"],
        {"role": "user", "content": "again"},
    ]
    return (await doors.ask(**{"messages": chat, **other})).headers["x-parley-conversation"] == "continued"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"user": "ada"}, {"user": "ada"}, True),
        ({"user": "ada"}, {"user": "bob"}, False),
        ({"user": "ada"}, {"user": "ada", "safety_identifier": "x"}, False),
        ({"metadata": {"chat_id": "1"}}, {"metadata": {"chat_id": "1"}}, True),
        ({"metadata": {"chat_id": "1"}}, {"metadata": {"chat_id": "2"}}, False),
        ({"metadata": {"chat_id": "1"}}, {}, False),
        ({"metadata": {"trace": "1"}}, {"metadata": {"trace": "2"}}, True),
        ({"model": "shop"}, {"model": "gpt-4o-mini"}, True),
        ({"model": "shop"}, {"model": "it/help"}, False),
        ({"key": "sk-all"}, {"key": "sk-few"}, False),
    ],
)
async def test_who_shares_a_conversation(doors: Doors, one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    """A conversation is continued for the same person, scope, model and key only; unforwarded metadata is nothing."""
    assert await continued(doors, one, other) == same


@pytest.mark.parametrize(
    ("header", "repeated"),
    [
        ({"x_stainless_retry_count": "1"}, True),
        ({"x_stainless_retry_count": "02"}, True),
        ({"x_stainless_retry_count": "10"}, True),
        ({"x_stainless_retry_count": "0"}, False),
        ({"x_stainless_retry_count": "-1"}, False),
        ({"x_stainless_retry_count": "often"}, False),
        ({}, False),
    ],
)
async def test_a_client_says_that_it_tries_again(doors: Doors, header: dict[str, str], repeated: bool) -> None:
    """A retry is known by the SDKs' header, and asks for the reply to the first try; else the bot is asked anew."""
    body = b'{"model": "shop", "messages": [{"role": "user", "content": "hi"}]}'
    doors.bot.cues.append(Cue(pieces=("a", "b"), wait=asyncio.Event()))
    first = asyncio.create_task(doors.send(body, authorization="Bearer sk-all"))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(doors.send(body, authorization="Bearer sk-all", **header))
    await asyncio.sleep(0.02)

    assert len(doors.bot.turns) == (1 if repeated else 2)
    for task in (first, second):
        task.cancel()


async def test_an_odd_idempotency_key_is_ignored(doors: Doors) -> None:
    """A key that is too long or not of visible ASCII is listed as ignored."""
    body = b'{"model": "shop", "messages": [{"role": "user", "content": "hi"}]}'

    answer = await doors.send(body, authorization="Bearer sk-all", idempotency_key="k" * 257)

    assert answer.headers["x-parley-ignored"] == "idempotency-key"


async def test_a_scope_may_come_in_a_header(doors: Doors) -> None:
    """A configured header names the conversation before the metadata does, and an odd one is ignored and listed."""
    body = b'{"model": "shop", "messages": [{"role": "user", "content": "hi"}]}'

    answer = await doors.send(body, authorization="Bearer sk-all", x_openwebui_chat_id="a b")

    assert answer.headers["x-parley-ignored"] == "x-openwebui-chat-id"


@pytest.mark.parametrize("content", [False, True])
async def test_words_are_logged_only_when_asked(content: bool, caplog: pytest.LogCaptureFixture) -> None:
    """With `log: {content: true}` a request's line holds what was said; without it does not."""
    with caplog.at_level("INFO", "parley"):
        async with open_doors(log={"content": content}) as doors:
            await doors.ask("my words")

    (line,) = (vars(record)["parley"] for record in caplog.records if record.name == "parley")
    assert (line.get("messages"), line.get("reply")) == (
        (["user: my words"], "reply 1 to my words") if content else (None, None)
    )


async def test_contact_and_scope_are_not_forwarded_as_metadata(doors: Doors) -> None:
    """A bot is told contact data as such, and of the metadata only the rest."""
    metadata = {"email": "a@b.test", "chat_id": "1", "plan": "gold"}

    await doors.ask(user="ada", metadata=metadata)

    (turn,) = doors.bot.turns
    assert (turn.contact, turn.metadata) == ({"email": "a@b.test", "nickname": "ada"}, {"plan": "gold"})


async def asked(options: ModelOptions, **body: Any) -> Any:
    async with open_doors(options=options) as doors:
        doors.bot.cues.append(Cue(pieces=("one two three",)))
        return await doors.ask(**body)


async def test_a_reply_may_be_cut_by_tokens() -> None:
    """`max_tokens` cuts a reply at four bytes a token, unless the bot's configuration leaves that to its client."""
    cut = await asked(ModelOptions(vendor="scripted"), max_tokens=1)
    whole = await asked(ModelOptions(vendor="scripted", max_tokens="ignore"), max_completion_tokens=1)

    assert cut.json()["choices"][0]["message"]["content"] == "one "
    assert (cut.json()["choices"][0]["finish_reason"], "x-parley-ignored" in cut.headers) == ("length", False)
    assert whole.json()["choices"][0]["message"]["content"] == "one two three"
    assert whole.headers["x-parley-ignored"] == "max_completion_tokens"


async def test_a_strict_bot_ignores_nothing() -> None:
    """With `strict: true` what a bot cannot honour is refused by its name; null still means absent."""
    strict = ModelOptions(vendor="scripted", strict=True)
    refused = await asked(strict, temperature=0.5)

    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (
        "temperature",
        "unsupported_parameter",
    )
    assert (await asked(strict, temperature=None, stop="x", n=1, metadata={"plan": "gold"})).status_code == 200


async def test_choices_need_room() -> None:
    """More choices than a bot takes at a time, or than `recap: refuse` has conversations for, are refused."""
    small = await asked(ModelOptions(vendor="scripted", max_concurrency=1, queue=0), n=2)
    chat = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    alone = await asked(ModelOptions(vendor="scripted", recap="refuse"), n=2, messages=chat)

    for refused in (small, alone):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
