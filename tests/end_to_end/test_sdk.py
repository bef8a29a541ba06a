"""Chats through the official SDK, and afterwards what each vendor says it heard: nothing lost, doubled or mixed."""

import asyncio
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from openai.types.chat import ChatCompletionMessage
from pytest import FixtureRequest  # noqa: PT013 - a type

from proxy.simulator import Vendor
from tests.conftest import Stage, stage
from tests.end_to_end.callers import (
    MODELS,
    WAYS,
    Chat,
    Way,
    async_client,
    async_plain,
    async_stream,
    heard_by,
    sync_client,
)

TURNS = ("Hello, my name is Ada.", "What is my name?", "And what did I say first?")


@pytest.fixture
def person() -> str:
    """Somebody nobody else is: whatever earlier tests have parked on the shared stage is out of reach."""
    return f"person-{uuid4().hex}"


@pytest.fixture(params=MODELS)
def model(request: FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def vendor(on_stage: Stage, model: str) -> Vendor:
    """The pretended vendor behind the model."""
    return on_stage.simulator.vendors[model]


@pytest.fixture
def chat(on_stage: Stage, model: str, person: str) -> Chat:
    """A chat without the SDK, unless a test gives it one of its ways."""
    return Chat(on_stage.url, model, more={"user": person})


@pytest.fixture(scope="module")
def keyed() -> Iterator[Stage]:
    """A stage with two tenants, and a name that two keys share."""
    keys = [
        {"name": "red", "key": "key-of-red"},
        {"name": "blue", "key": "key-of-blue"},
        {"name": "red", "key": "new-key-of-red"},
    ]
    models = {"newoaks": {"aliases": ["gpt-4o-mini", "team/gpt"], "description": "Knows the shop"}}
    with stage(models=models, keys=keys) as built:
        yield built


def other_texts(texts: list[str], question: str) -> str:
    """What stands in front of the question in a conversation's only message."""
    (text,) = texts
    assert text.endswith(f"\n\n{question}"), "the question stands alone and last"
    return text.removesuffix(question)


# --- turns, edits, regenerations


@pytest.mark.parametrize("way", WAYS)
async def test_three_turns_are_one_vendor_conversation(on_stage: Stage, vendor: Vendor, chat: Chat, way: str) -> None:
    """A chat of three turns is opened once, continued exactly, and heard by the vendor word for word, once."""
    chat.way = WAYS[way]
    heard = [await chat.say(text) for text in TURNS]
    assert [answer.how for answer in heard] == ["opened", "continued exact", "continued exact"]
    assert heard_by(vendor) == [list(TURNS)]
    assert "Ada" in heard[1].text
    assert {answer.finish for answer in heard} == {"stop"}


async def test_ways_of_asking_may_change_between_turns(vendor: Vendor, chat: Chat) -> None:
    """A chat goes on in the same vendor conversation when its client changes between plain and streaming."""
    hows = []
    for number, way in enumerate([*WAYS.values(), *WAYS.values()]):
        chat.way = way
        hows.append((await chat.say(f"Turn {number}")).how)
    assert hows == ["opened"] + ["continued exact"] * 7
    assert heard_by(vendor) == [[f"Turn {number}" for number in range(8)]]


async def test_stream_helper_keeps_a_chat(on_stage: Stage, model: str, vendor: Vendor, person: str) -> None:
    """The SDK's `.stream()` helper gives a final message that continues the conversation when sent back."""
    messages: list[Any] = []
    async with async_client(on_stage.url) as client:
        for text in TURNS:
            messages.append({"role": "user", "content": text})
            async with client.chat.completions.stream(model=model, messages=messages, user=person) as events:
                contents = [event.delta async for event in events if event.type == "content.delta"]
                completion = await events.get_final_completion()
            message = completion.choices[0].message
            assert message.content == "".join(contents)
            messages.append(message)
    assert heard_by(vendor) == [list(TURNS)]


async def test_edit_is_told_by_recap(vendor: Vendor, chat: Chat) -> None:
    """An edited turn goes to a new vendor conversation with what came before it, and the first branch lives on."""
    chat.way = async_plain
    for text in TURNS:
        await chat.say(text)
    edited = chat.back_to(1)
    answer = await edited.say("Which day is it?")
    assert answer.how == "rebuilt unknown-history"
    assert (await edited.say("And tomorrow?")).how == "continued exact"
    assert (await chat.say("Are you still there?")).how == "continued exact"
    first, second = heard_by(vendor)
    assert first == [*TURNS, "Are you still there?"]
    assert second[1:] == ["And tomorrow?"]
    told = other_texts(second[:1], "Which day is it?")
    assert TURNS[0] in told
    assert str(chat.messages[1]["content"]) in told
    assert TURNS[1] not in told


async def test_edit_of_the_first_message_opens_a_conversation(vendor: Vendor, chat: Chat) -> None:
    """An edited first message has no history: a new conversation that is told nothing but the message."""
    await chat.say(TURNS[0])
    assert (await chat.back_to(0).say("Hello, my name is Bob.")).how == "opened"
    assert heard_by(vendor) == [[TURNS[0]], ["Hello, my name is Bob."]]


@pytest.mark.parametrize("way", ["async", "sync-stream"])
async def test_regenerated_reply_has_a_conversation_of_its_own(vendor: Vendor, chat: Chat, way: str) -> None:
    """The same request once more is rebuilt: its vendor conversation has spoken already and must not hear it twice."""
    chat.way = WAYS[way]
    for text in TURNS:
        await chat.say(text)
    again = chat.back_to(2)
    answer = await again.say(TURNS[2])
    assert answer.how == "rebuilt unknown-history"
    assert (await again.say("Of the second version")).how == "continued exact"
    assert (await chat.say("Of the first version")).how == "continued exact"
    first, second = heard_by(vendor)
    assert first == [*TURNS, "Of the first version"]
    told = other_texts(second[:1], TURNS[2])
    assert all(text in told for text in TURNS[:2])
    assert second[1:] == ["Of the second version"]


async def test_recap_keeps_the_order(vendor: Vendor, chat: Chat) -> None:
    """A recap tells user and bot in the order they spoke."""
    texts = ["one apple", "two pears", "three plums", "four figs"]
    for text in texts:
        await chat.say(text)
    chat.more = {"user": f"another {uuid4().hex}"}
    assert (await chat.say("five nuts")).how == "rebuilt unknown-history"
    (told,) = heard_by(vendor)[1]
    said = [str(message["content"]).split("\n")[0] for message in chat.messages[:8]]
    places = [told.index(f"{('User', 'Assistant')[i % 2]}: {text}") for i, text in enumerate(said)]
    assert places == sorted(places)
    assert told.endswith("\n\nfive nuts")


# --- parallel chats


async def test_text_identical_chats_never_mix(vendor: Vendor, chat: Chat) -> None:
    """Eight chats of one person with the same words, all at once, have a vendor conversation each."""
    chats = [chat.back_to(0) for _ in range(8)]
    for index, one in enumerate(chats):
        one.way = list(WAYS.values())[index % len(WAYS)]

    async def lead(one: Chat) -> list[str]:
        return [(await one.say(text)).how for text in TURNS]

    hows = await asyncio.gather(*map(lead, chats))
    assert hows == [["opened", "continued exact", "continued exact"]] * 8
    assert heard_by(vendor) == [list(TURNS)] * 8


async def test_chats_part_where_their_words_part(vendor: Vendor, chat: Chat) -> None:
    """Two chats of the same words that part at the third turn stay with one of the two conversations each."""
    pair = [chat.back_to(0), chat.back_to(0)]
    for text in TURNS[:2]:
        await asyncio.gather(*(one.say(text) for one in pair))
    for round_ in range(3):
        answers = await asyncio.gather(*(one.say(f"Fruit {i}, round {round_}") for i, one in enumerate(pair)))
        assert [answer.how for answer in answers] == ["continued exact"] * 2
    expected = [[*TURNS[:2], *(f"Fruit {i}, round {r}" for r in range(3))] for i in range(2)]
    assert sorted(heard_by(vendor)) == expected


async def test_fork_in_flight_gets_a_conversation_of_its_own(vendor: Vendor, chat: Chat) -> None:
    """Many different turns on one history at once: one continues it, the others are rebuilt because it is in use."""
    await chat.say(TURNS[0])
    vendor.latency = 0.2
    try:
        forks = [chat.back_to(1) for _ in range(5)]
        answers = await asyncio.gather(*(fork.say(f"Fork {i}") for i, fork in enumerate(forks)))
    finally:
        vendor.latency = 0
    assert Counter(answer.how for answer in answers) == {"continued exact": 1, "rebuilt in-use": 4}
    asked = Counter(text.rpartition("\n\n")[2] for texts in heard_by(vendor) for text in texts)
    assert asked == Counter([TURNS[0], *(f"Fork {i}" for i in range(5))])
    assert sorted(map(len, heard_by(vendor))) == [1, 1, 1, 1, 2]
    for fork in forks:
        assert (await fork.say("Go on")).how == "continued exact"


async def test_equal_requests_at_once_are_never_said_twice(vendor: Vendor, chat: Chat) -> None:
    """The same request many times at once reaches no vendor conversation twice."""
    await chat.say(TURNS[0])
    await asyncio.gather(*(chat.back_to(1).say(TURNS[1]) for _ in range(6)))
    for texts in heard_by(vendor):
        assert Counter(text.rpartition("\n\n")[2] for text in texts).most_common(1)[0][1] == 1


# --- who must never share


async def goes_astray(owner: Chat, other: Chat) -> list[str]:
    """The owner speaks; the other sends the very same history with a turn of its own; the owner speaks again."""
    await owner.say(TURNS[0])
    other.messages = [dict(message) for message in owner.messages]
    return [(await other.say("I am somebody else")).how, (await owner.say("It is me again")).how]


@pytest.mark.parametrize(
    "difference",
    [
        {"user": "mallory"},
        {"safety_identifier": "mallory"},
        {"extra_headers": {"x-openwebui-user-id": "mallory"}},
        {"extra_headers": {"x-conversation-id": "another"}},
        {"metadata": {"chat_id": "another"}},
    ],
    ids=lambda difference: next(iter(difference)),
)
async def test_other_people_and_scopes_never_share(
    vendor: Vendor, chat: Chat, person: str, difference: dict[str, Any]
) -> None:
    """Another user, or the same in another named conversation, cannot speak into a conversation with its history."""
    more = {"user": person} if "user" not in difference and "safety" not in next(iter(difference)) else {}
    if "x-openwebui-user-id" in difference.get("extra_headers", {}):
        chat.more = {"extra_headers": {"x-openwebui-user-id": person}}
        more = {}
    other = Chat(chat.url, chat.model, more={**more, **difference})
    assert await goes_astray(chat, other) == ["rebuilt unknown-history", "continued exact"]
    assert heard_by(vendor)[0] == [TURNS[0], "It is me again"]


async def test_keys_never_share(keyed: Stage, model: str, person: str) -> None:
    """Another key cannot speak into a conversation with its history, but another key of the same name can."""
    owner = Chat(keyed.url, model, key="key-of-red", more={"user": person})
    other = Chat(keyed.url, model, key="key-of-blue", more={"user": person})
    assert await goes_astray(owner, other) == ["rebuilt unknown-history", "continued exact"]
    owner.key = "new-key-of-red"
    assert (await owner.say("With my next key")).how == "continued exact"
    assert keyed.simulator.vendors[model].violations == []


async def test_models_never_share(on_stage: Stage, person: str) -> None:
    """A chat that changes the model is told to the other bot by recap, and its first conversation stays whole."""
    chat = Chat(on_stage.url, "quickchat", more={"user": person})
    await chat.say(TURNS[0])
    chat.model = "quickchat-legacy"
    assert (await chat.say(TURNS[1])).how == "rebuilt unknown-history"
    assert heard_by(on_stage.simulator.quickchat) == [[TURNS[0]]]
    assert len(heard_by(on_stage.simulator.quickchat_legacy)) == 1


async def test_aliases_are_the_same_model(keyed: Stage, person: str) -> None:
    """A chat goes on under another name of its model; each answer bears the name that was asked for."""
    chat = Chat(keyed.url, "newoaks", key="key-of-red", more={"user": person})
    await chat.say(TURNS[0])
    chat.model = "gpt-4o-mini"
    assert (await chat.say(TURNS[1])).how == "continued exact"
    async with async_client(keyed.url, "key-of-red") as client:
        for name in ("newoaks", "gpt-4o-mini", "team/gpt"):
            completion = await client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Hello"}]
            )
            assert completion.model == name
            stream = await client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Hello"}], stream=True
            )
            assert {chunk.model async for chunk in stream} == {name}


async def test_models_are_listed(keyed: Stage) -> None:
    """`models.list()` and `models.retrieve()` know every model, aliases included, also with a slash in its name."""
    with sync_client(keyed.url, "key-of-blue") as client:
        listed = {model.id: model for model in client.models.list()}
        assert set(listed) == {*MODELS, "gpt-4o-mini", "team/gpt"}
        for name, model in listed.items():
            assert client.models.retrieve(name) == model
            assert model.object == "model"
            assert model.created > 1_600_000_000
            assert model.owned_by in ("askhandle", "misterturing", "newoaks", "quickchat")
    async with async_client(keyed.url, "key-of-blue") as client:
        assert {model.id async for model in client.models.list()} == set(listed)


# --- what goes along with the messages

PROMPT = "Answer like a pirate."


def history(chat: Chat, *, prompt: str) -> None:
    chat.messages.insert(0, {"role": "system", "content": prompt})


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_system_prompt_goes_ahead_of_the_first_message(on_stage: Stage, person: str, role: str) -> None:
    """A system prompt stands in front of the first message of a conversation, and of no later one."""
    for model in ("newoaks", "quickchat"):
        chat = Chat(on_stage.url, model, more={"user": person}, messages=[{"role": role, "content": PROMPT}])
        for text in TURNS:
            assert (await chat.say(text)).how.startswith(("opened", "continued"))
        assert heard_by(on_stage.simulator.vendors[model]) == [[f"{PROMPT}\n\n{TURNS[0]}", *TURNS[1:]]]


async def test_system_prompt_goes_into_the_context_field(on_stage: Stage, person: str) -> None:
    """Quickchat's legacy endpoint gets the system prompt beside every message, at most 1000 characters of it."""
    chat = Chat(on_stage.url, "quickchat-legacy", more={"user": person})
    long = PROMPT + " Arr." * 300
    history(chat, prompt=long)
    for text in TURNS:
        await chat.say(text)
    (conversation,) = on_stage.simulator.quickchat_legacy.conversations.values()
    assert [entry.text for entry in conversation.heard] == list(TURNS)
    assert [entry.fields["message_context"] for entry in conversation.heard] == [long[:1000]] * 3


async def test_system_prompts_are_joined_and_empty_ones_left_out(on_stage: Stage, person: str) -> None:
    """Several system messages in front are one prompt; one without text is none."""
    chat = Chat(on_stage.url, "newoaks", more={"user": person})
    for prompt in ("", "Second.", "First."):
        history(chat, prompt=prompt)
    await chat.say("Hello")
    bare = Chat(on_stage.url, "newoaks", more={"user": person}, messages=[{"role": "system", "content": " "}])
    await bare.say("Hello")
    assert heard_by(on_stage.simulator.newoaks) == [["First.\n\nSecond.\n\nHello"], ["Hello"]]


async def test_changed_system_prompt_is_another_chat(vendor: Vendor, chat: Chat) -> None:
    """The same history under another system prompt is rebuilt with that, and under the first one continued."""
    history(chat, prompt=PROMPT)
    await chat.say(TURNS[0])
    changed = chat.back_to(0)
    changed.messages = [{"role": "system", "content": "Answer like a nun."}, *map(dict, chat.messages[1:])]
    assert (await changed.say(TURNS[1])).how == "rebuilt unknown-history"
    assert (await chat.say(TURNS[1])).how == "continued exact"
    (rebuilt,) = list(vendor.conversations.values())[1].heard
    assert "nun" in rebuilt.text + rebuilt.fields.get("message_context", "")
    assert "pirate" not in rebuilt.text + rebuilt.fields.get("message_context", "")


async def test_system_message_in_a_turn_goes_with_it(vendor: Vendor, chat: Chat) -> None:
    """A system message in the midst of a chat is sent with its turn as context, once, the question last."""
    await chat.say(TURNS[0])
    chat.messages.append({"role": "system", "content": "The user has moved to Rome."})
    assert (await chat.say("Where do I live?")).how == "continued exact"
    assert (await chat.say("Really?")).how == "continued exact"
    assert heard_by(vendor) == [[TURNS[0], "The user has moved to Rome.\n\nWhere do I live?", "Really?"]]


async def test_metadata_goes_to_quickchat(on_stage: Stage, person: str) -> None:
    """A request's metadata is sent as `client_metadata` with every message; contact and scope keys are not."""
    for model in ("quickchat", "quickchat-legacy"):
        metadata = {"page": "/cart", "email": "ada@example.com", "chat_id": person, "plan": "gold"}
        chat = Chat(on_stage.url, model, more={"metadata": metadata})
        for text in TURNS[:2]:
            await chat.say(text)
        (conversation,) = on_stage.simulator.vendors[model].conversations.values()
        sent = [entry.fields["client_metadata"] for entry in conversation.heard]
        assert sent == [{"page": "/cart", "plan": "gold"}] * 2


async def test_metadata_is_cut_at_five(on_stage: Stage, person: str) -> None:
    """More metadata than Quickchat takes is cut at five, in the order it came."""
    metadata = {f"key{number}": str(number) for number in range(9)}
    chat = Chat(on_stage.url, "quickchat", more={"user": person, "metadata": metadata})
    await chat.say("Hello")
    (conversation,) = on_stage.simulator.quickchat.conversations.values()
    assert list(conversation.heard[0].fields["client_metadata"]) == [f"key{number}" for number in range(5)]


async def test_configured_metadata_is_never_overridden() -> None:
    """What the configuration puts into `client_metadata` comes first and stays."""
    more: dict[str, Any] = {"client_metadata": {"website": "ours", "tier": 1}, "kb_topic": "billing"}
    with stage(models={"quickchat": more}) as built:
        metadata = {"website": "theirs", "kb_topic": "secrets", "a": "1", "b": "2", "c": "3"}
        chat = Chat(built.url, "quickchat", more={"metadata": metadata})
        await chat.say("Hello")
        await chat.say("Again")
        vendor = built.simulator.quickchat
        assert vendor.violations == []
        (conversation,) = vendor.conversations.values()
        expected = {"website": "ours", "tier": 1, "kb_topic": "billing", "a": "1", "b": "2"}
        assert [entry.fields["client_metadata"] for entry in conversation.heard] == [expected] * 2


@pytest.mark.parametrize(
    "prompt",
    [
        "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n### Guidelines:\n-",
        "### Task:\nSuggest 3-5 relevant follow-up questions or prompts\n### Chat History:\n...",
        "Provide a concise, 5-word-or-less title for the conversation, using title case conventions.",
    ],
    ids=["title", "follow-ups", "librechat"],
)
async def test_utility_prompt_leaves_the_chat_alone(vendor: Vendor, chat: Chat, prompt: str) -> None:
    """A chat UI's title prompt, alone or at the end of the chat, gets a conversation of its own and parks nothing."""
    await chat.say(TURNS[0])
    aside = chat.back_to(0)
    first = await aside.say(prompt)
    assert first.how == "utility"
    behind = chat.back_to(1)
    assert (await behind.say(prompt)).how == "utility"
    assert (await aside.say("Now a real question")).how == "rebuilt unknown-history"
    assert (await chat.say(TURNS[1])).how == "continued exact"
    assert heard_by(vendor)[0] == list(TURNS[:2])
    assert prompt not in "\n".join(heard_by(vendor)[0])


async def test_retrieval_prompt_is_no_utility(vendor: Vendor, chat: Chat) -> None:
    """Open WebUI's retrieval prompt begins like a task but holds a real question, so it is continued."""
    await chat.say(TURNS[0])
    prompt = "### Task:\nRespond to the user query using the provided context.\n<user_query>\nWhere?\n</user_query>"
    assert (await chat.say(prompt)).how == "continued exact"
    assert heard_by(vendor) == [[TURNS[0], prompt]]


# --- renditions of a history


def rendered(message: ChatCompletionMessage, way: str) -> Any:
    """An assistant message as different programs send it back."""
    content = message.content or ""
    return {
        "object": message,
        "to_dict": message.to_dict(),
        "model_dump": message.model_dump(),
        "exclude_none": message.model_dump(exclude_none=True),
        "parts": {"role": "assistant", "content": [{"type": "text", "text": content}]},
        "cut parts": {
            "role": "assistant",
            "content": [{"type": "text", "text": content[:9]}, {"type": "text", "text": content[9:]}],
        },
        "stripped": {"role": "assistant", "content": content.strip()},
        "padded": {"role": "assistant", "content": f"\n \t{content}\r\n\r\n"},
        "carriage returns": {"role": "assistant", "content": content.replace("\n", "\r\n")},
        "decomposed": {"role": "assistant", "content": unicodedata.normalize("NFD", content)},
        "dedented": {"role": "assistant", "content": "\n".join(line.strip() for line in content.split("\n"))},
        "no thoughts": {"role": "assistant", "content": content.partition("</think>")[2]},
        "invisible": {"role": "assistant", "content": "\ufeff" + content.replace("b", "\u200bb")},
        "named": {"role": "assistant", "content": content, "name": "bot", "id": "1", "timestamp": 12345},
        "gradio": {
            "role": "assistant",
            "metadata": None,
            "content": [{"text": content, "type": "text"}],
            "options": None,
        },
        "litellm": {**message.to_dict(), "provider_specific_fields": {"refusal": None}, "reasoning_content": "hm"},
    }[way]


RENDITIONS = (
    "object", "to_dict", "model_dump", "exclude_none", "parts", "cut parts", "stripped", "padded", "carriage returns",
    "decomposed", "dedented", "no thoughts", "invisible", "named", "gradio", "litellm",
)  # fmt: skip
REPLY = "recite <think>\nhm\n</think>\n\nCaf\u00e9:\n    indented \U0001f469\u200d\U0001f4bb\n\n\tbye  \n"


@pytest.mark.parametrize("way", RENDITIONS)
async def test_renditions_of_a_reply_are_recognised(on_stage: Stage, person: str, way: str) -> None:
    """A reply full of hard cases is recognised in every form that a client was seen to send back."""
    messages: list[Any] = [{"role": "user", "content": REPLY}]
    async with async_client(on_stage.url) as client:
        first = await client.chat.completions.create(model="newoaks", messages=messages, user=person)
        assert (first.choices[0].message.content or "").startswith("<think>")
        messages += [rendered(first.choices[0].message, way), {"role": "user", "content": "Go on"}]
        raw = await client.chat.completions.with_raw_response.create(model="newoaks", messages=messages, user=person)
    assert (raw.headers["x-parley-conversation"], raw.headers["x-parley-reason"]) == ("continued", "exact")
    assert heard_by(on_stage.simulator.newoaks) == [[REPLY, "Go on"]]


async def test_text_reaches_the_bot_unchanged(vendor: Vendor, chat: Chat) -> None:
    """What is sent to the vendor is the client's own text, white space, emoji and quotes included."""
    texts = [
        '  "quoted" \\ and\ttabbed\n\n\nlines  ',
        "e\u0301 \U0001f469\u200d\U0001f4bb \u2028 \u00a0",
        "</b>&amp;<br>",
    ]
    for text in texts:
        await chat.say(text)
    assert heard_by(vendor) == [texts]


async def test_parts_are_joined(vendor: Vendor, chat: Chat) -> None:
    """A user's message in text parts is sent as one text and is the same message as that text."""
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "my name is Ada."}]
    chat.messages = [{"role": "user", "content": parts}]
    heard = await chat.ask()
    chat.messages = [{"role": "user", "content": TURNS[0]}, {"role": "assistant", "content": heard.text}]
    assert (await chat.say(TURNS[1])).how == "continued exact"
    assert heard_by(vendor) == [list(TURNS[:2])]


@pytest.mark.parametrize("nothing", [None, "", " \n", [], "absent"], ids=repr)
async def test_messages_that_say_nothing_are_dropped(vendor: Vendor, chat: Chat, nothing: Any) -> None:
    """Empty messages anywhere in the history change nothing."""
    await chat.say(TURNS[0])
    empty: dict[str, Any] = {"role": "assistant"} if nothing == "absent" else {"role": "assistant", "content": nothing}
    chat.messages += [empty, {**empty, "role": "user"}, empty]
    assert (await chat.say(TURNS[1])).how == "continued exact"
    assert heard_by(vendor) == [list(TURNS[:2])]


async def test_two_texts_of_one_turn_are_joined(vendor: Vendor, chat: Chat) -> None:
    """Several user messages without a reply between them are one turn, parted by a blank line."""
    await chat.say(TURNS[0])
    chat.messages.append({"role": "user", "content": "I have two questions."})
    assert (await chat.say("What is my name?")).how == "continued exact"
    assert (await chat.say("Thanks")).how == "continued exact"
    assert heard_by(vendor) == [[TURNS[0], "I have two questions.\n\nWhat is my name?", "Thanks"]]


async def test_our_error_texts_are_no_replies(vendor: Vendor, chat: Chat) -> None:
    """An error text of ours that a chat UI has kept as a reply neither spoils the match nor is told to a bot."""
    await chat.say(TURNS[0])
    vendor.fail("limited")
    chat.way = async_plain
    chat.messages.append({"role": "user", "content": TURNS[1]})
    with pytest.raises(Exception, match=r"\(parley: vendor_rate_limited\)") as fault:
        await chat.ask()
    chat.messages.append({"role": "assistant", "content": f"Error: {fault.value.body['message']}"})  # type: ignore[attr-defined]
    answer = await chat.say("Once more, please")
    assert answer.how == "continued exact"
    assert heard_by(vendor) == [[TURNS[0], f"{TURNS[1]}\n\nOnce more, please"]]
    chat.more = {"user": f"another {uuid4().hex}"}
    await chat.say("Last one")
    assert "(parley:" not in json.dumps(vendor.transcript())


async def test_user_text_that_looks_like_our_error_is_kept(vendor: Vendor, chat: Chat) -> None:
    """A user who quotes one of our error texts is heard: only an assistant's message can be one."""
    text = "What does this mean: The bot failed (parley: vendor_failed)"
    await chat.say(text)
    assert (await chat.say("Well?")).how == "continued exact"
    assert heard_by(vendor) == [[text, "Well?"]]


async def test_tool_messages_are_part_of_a_turn(vendor: Vendor, chat: Chat) -> None:
    """An agent's tool result is sent to the bot as what is new, and recognised in later histories."""
    await chat.say(TURNS[0])
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"b": 1, "a": 2}'}}
    chat.messages += [
        {"role": "user", "content": "What is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 21 degrees"},
    ]
    first = await chat.ask()
    assert first.how == "caught-up", "it knows half of the history, and is told the other half"
    chat.messages.append({"role": "assistant", "content": first.text})
    call["function"] = {"name": "weather", "arguments": '{"a":2,"b":1}'}
    assert (await chat.say("Thanks")).how == "continued exact"
    assert heard_by(vendor)[0][1].endswith("\n\nSunny, 21 degrees")
    assert "What is the weather?" in heard_by(vendor)[0][1]
    assert TURNS[0] not in heard_by(vendor)[0][1]


# --- usage, headers


@pytest.mark.parametrize("way", [async_plain, async_stream], ids=["plain", "stream"])
async def test_usage_adds_up(vendor: Vendor, chat: Chat, way: Way) -> None:
    """Usage is the vendor's total where it tells one, else an estimate; it adds up, and is the same in a stream."""
    chat.way = way
    if way is async_stream:
        chat.more = {**chat.more, "stream_options": {"include_usage": True}}
    for text in TURNS:
        usage = (await chat.say(text)).usage
        assert usage is not None
        assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
        assert usage.completion_tokens > 0
    assert usage is not None
    reply = str(chat.messages[-1]["content"])
    assert usage.completion_tokens == -(-len(reply.encode()) // 4)
    if chat.model == "newoaks":
        (conversation,) = vendor.conversations.values()
        assert usage.total_tokens == 1 + sum(len(entry.text) for entry in conversation.entries) // 4
    else:
        sent = sum(len(str(message["content"]).encode()) for message in chat.messages[:-1])
        assert usage.prompt_tokens == -(-sent // 4)


async def test_usage_is_sent_only_when_asked_for(chat: Chat) -> None:
    """A stream holds no usage unless the request asks for it."""
    chat.way = async_stream
    for more in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None}):
        chat.more = {**chat.more, **more}
        assert (await chat.say("Hello")).usage is None


async def test_usage_header_says_whose_figures_they_are(on_stage: Stage, person: str) -> None:
    """`x-parley-usage` tells the vendor's figures from estimates."""
    for model, whose in (("newoaks", "vendor"), ("quickchat", "estimated"), ("quickchat-legacy", "estimated")):
        answer = await Chat(on_stage.url, model, more={"user": person}).say("Hello")
        assert answer.headers["x-parley-usage"] == whose


async def test_request_id_is_taken_over(chat: Chat) -> None:
    """A well-formed `x-request-id` comes back as it was sent; another is replaced; the SDK finds it."""
    async with async_client(chat.url) as client:
        for sent, kept in (("my-id_1.2:3", True), ("not well formed", False), ("x" * 129, False)):
            completion = await client.chat.completions.create(
                model=chat.model,
                messages=[{"role": "user", "content": "Hello"}],
                extra_headers={"x-request-id": sent},
            )
            assert completion._request_id
            assert (completion._request_id == sent) is kept
        raw = await client.models.with_raw_response.list()
        assert raw.headers["x-request-id"].startswith("req_")
        assert int(raw.headers["openai-processing-ms"]) >= 0


async def test_no_answer_is_told(on_stage: Stage, person: str) -> None:
    """NewOaks' `noAnswer` is passed on as a header of the plain reply, and its text as the reply."""
    chat = Chat(on_stage.url, "newoaks", more={"user": person})
    answer = await chat.say("This is unanswerable")
    assert answer.headers["x-parley-no-answer"] == "true"
    assert "no answer" in answer.text
    assert "x-parley-no-answer" not in (await chat.say("Hello")).headers


async def test_ids_are_never_repeated(on_stage: Stage, person: str) -> None:
    """Every completion has an id of its own."""
    async with async_client(on_stage.url) as client:
        ids = [
            (
                await client.chat.completions.create(
                    model="newoaks", messages=[{"role": "user", "content": "Hello"}], user=person
                )
            ).id
            for _ in range(5)
        ]
    assert len(set(ids)) == 5
    assert all(id_.startswith("chatcmpl-") for id_ in ids)
