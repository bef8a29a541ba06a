"""A crowd at random: forks, edits, regenerations, faults, forgetful vendors and clients that leave, all at once.

Every question is a token of its own. Afterwards the vendors' transcripts are held against what the clients sent: each
turn in a vendor conversation must have been asked by somebody whose history is just what that conversation had heard.
"""

import asyncio
import random
import re
from collections import Counter
from dataclasses import dataclass, field

from proxy.simulator import Vendor
from proxy.simulator.bot import Conversation
from tests.conftest import stage
from tests.end_to_end.callers import MODELS, Chat, Message, Refused, call, calling, question, raw_plain, raw_stream

WORKERS, STEPS = 4, 16
SEED = 1
FAULTS = (
    "limited",
    "failed",
    "cut-off",
    "garbled",
    "unauthorized",
    "forgotten",
    "refused",
    "empty",
    "html",
    "truncated",
)
LINE = re.compile(r"^(User|Assistant): (.*)$", re.MULTILINE)

Past = tuple[tuple[str, str], ...]  # questions and the answers they got


@dataclass
class Person:
    """Somebody with chats on one model, and everything that was asked in their name: history and question."""

    name: str
    model: str
    chats: list[Chat]
    asked: set[tuple[Past, str]] = field(default_factory=set)
    count: int = 0

    def token(self) -> str:
        self.count += 1
        return f"ask {self.name}-{self.count}"


def past(messages: list[Message]) -> Past:
    """A history as pairs of question and answer."""
    texts = [" ".join(str(message["content"]).split()) for message in messages]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


async def step(person: Person, chance: random.Random, url: str) -> None:
    """One thing that a client may do with one of its chats."""
    chat = chance.choice(person.chats)
    turns = len(chat.messages) // 2
    again = chance.random() < 0.2 and turns > 0
    cut = turns - 1 if again else turns if chance.random() < 0.7 else chance.randint(0, turns)
    branch = chat.back_to(cut)
    text = str(chat.messages[2 * cut]["content"]) if again else person.token()
    person.asked.add((past(branch.messages), text))
    if chance.random() < 0.25:
        await leave(person, branch, text, chance, url)
        return
    branch.way = chance.choice([raw_plain, raw_stream])
    try:
        await branch.say(text)
    except Refused:
        return
    person.chats.append(branch)


async def leave(person: Person, branch: Chat, text: str, chance: random.Random, url: str) -> None:
    """Ask, and hang up at some moment; what was heard by then may be kept as if it were the reply."""
    messages = [*branch.messages, {"role": "user", "content": text}]
    body = {"model": person.model, "messages": messages, "user": person.name, "stream": True}
    heard = b""
    async with calling(url, body) as line:
        try:
            async with asyncio.timeout(chance.random() * 0.06):
                answer = await line.begin()
                async for piece in line.pieces(answer):
                    heard += piece
        except (TimeoutError, asyncio.IncompleteReadError):
            pass
        line.leave()
    pieces = re.findall(rb'"delta":\{"content":"((?:[^"\\]|\\.)*)"', heard)
    partial = b"".join(pieces).decode().replace('\\"', '"').replace("\\n", "\n")
    if len(partial.split()) > 3:
        person.chats.append(Chat(url, person.model, more=branch.more, messages=[*messages, reply_of(partial)]))


def reply_of(text: str) -> Message:
    return {"role": "assistant", "content": text}


def told(text: str) -> tuple[list[str], str]:
    """The lines of a recap in front of a question, and the question."""
    block, _, asked = text.rpartition("\n\n")
    return [found[2] for found in LINE.finditer(block)], asked or text


def is_same(client: Past, vendor: Past) -> bool:
    """Whether a client's history is what a vendor conversation stands for; an interrupted answer is a beginning."""
    return len(client) == len(vendor) and all(
        one[0] == other[0] and other[1].startswith(one[1]) for one, other in zip(client, vendor, strict=True)
    )


def check(conversation: Conversation, person: Person) -> None:
    """Hold one vendor conversation against what its person has asked."""
    stands_for: list[str] = []
    direct: Counter[str] = Counter()
    for entry in conversation.entries:
        if entry.role == "bot":
            stands_for.append(" ".join(entry.text.split()))
            continue
        recap, asked = told(entry.text)
        stands_for += recap
        pairs = tuple(zip(stands_for[::2], stands_for[1::2], strict=True))
        assert any(asked == text and is_same(history, pairs) for history, text in person.asked), (asked, pairs)
        direct[asked] += 1
        stands_for.append(asked)
    assert set(direct.values()) <= {1}, "a turn was said twice into one conversation"
    names = {re.sub(r"\Aask (.*)-\d+\Z", r"\1", text) for text in stands_for[::2]}
    assert names == {person.name}, "two people met in one conversation"


async def trouble(vendors: list[Vendor], chance: random.Random, over: asyncio.Event) -> None:
    """Faults now and then, and a vendor that forgets everything."""
    while not over.is_set():
        vendor = chance.choice(vendors)
        if chance.random() < 0.1:
            vendor.forget()
        else:
            vendor.fail(chance.choice(FAULTS))
        await asyncio.sleep(0.03)


async def test_crowd_never_mixes() -> None:
    """Whatever a crowd does, every vendor conversation stands for one person's history, and holds no turn twice."""
    models = {model: {"breaker": {"failures": 0}, "html": "keep"} for model in MODELS}
    with stage(models=models, conversation={"linger": 0.05}, server={"shutdown_grace": 0.2}) as built:
        vendors = list(built.simulator.vendors.values())
        people = []
        for index, model in enumerate([*MODELS, "newoaks"]):
            name = f"p{index}"
            chats = [Chat(built.url, model, raw_plain, more={"user": name}) for _ in range(2)]
            people.append(Person(name, model, chats))
        built.simulator.newoaks.gap = 0.001

        async def work(person: Person, number: int) -> None:
            chance = random.Random(f"{SEED} {person.name} {number}")
            for _ in range(STEPS):
                await step(person, chance, built.url)

        over = asyncio.Event()
        troubling = asyncio.create_task(trouble(vendors, random.Random(SEED), over))
        await asyncio.gather(*(work(person, number) for person in people for number in range(WORKERS)))
        over.set()
        await troubling
        by_name = {person.name: person for person in people}
        spoken = 0
        for vendor in vendors:
            assert vendor.violations == []
            for conversation in vendor.conversations.values():
                if conversation.entries:
                    first = told(conversation.entries[0].text)[1]
                    check(conversation, by_name[re.sub(r"\Aask (.*)-\d+\Z", r"\1", first)])
                    spoken += len(conversation.heard) > 1
        assert spoken > 10, "conversations were continued"
        for vendor in vendors:
            vendor.reset()
        assert (await call(built.url, question("newoaks", "Still well?"))).status == 200
