"""Callers who know each vendor's address and credential, for tests that need a call in order."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from proxy.simulator import askhandle, misterturing, newoaks, quickchat

Soon = Callable[[Callable[[], object]], Awaitable[None]]
"""The fixture `soon`: waits until something holds."""
Speak = Callable[..., Awaitable[httpx2.Response]]

OPEN, ASK = "/newoaks/chat/Chatbot/GetSession", "/newoaks/chat/Chat/ClientAsk"
KEY = {"Authorization": newoaks.SECRET_KEY}
SERIAL = {"serialNumber": newoaks.CHATBOT_ID}
ROOMS, MESSAGES = "/askhandle/api/v1/rooms/", "/askhandle/api/v1/messages/"
TOKEN = {"Authorization": f"Token {askhandle.TOKEN}"}
TURING = "/misterturing/v4.0/assistant"
BEARER = {"Authorization": f"Bearer {misterturing.API_KEY}"}


async def session(client: httpx2.AsyncClient) -> int:
    """A new NewOaks session."""
    reply = await client.post(OPEN, json=SERIAL, headers=KEY)
    handle = reply.json()["Data"]["SessionID"]
    assert isinstance(handle, int)
    return handle


async def ask(client: httpx2.AsyncClient, content: str = "Hello!", **fields: Any) -> httpx2.Response:
    """A message to NewOaks, in a session of its own unless `sessionID` is given."""
    fields = {"content": content, **fields}
    fields.setdefault("sessionID", await session(client))
    return await client.post(ASK, json=fields, headers=KEY)


async def current(client: httpx2.AsyncClient, text: str = "Hello!", **fields: Any) -> httpx2.Response:
    """A message to Quickchat's current endpoint."""
    body = {"scenario_id": quickchat.SCENARIO_ID, "text": text, **fields}
    return await client.post("/quickchat/chat", json=body, headers={"Authorization": f"Bearer {quickchat.TOKEN}"})


async def legacy(client: httpx2.AsyncClient, text: str = "Hello!", **fields: Any) -> httpx2.Response:
    """A message to Quickchat's legacy endpoint."""
    body = {"api_key": quickchat.API_KEY, "scenario_id": quickchat.SCENARIO_ID, "text": text, **fields}
    return await client.post("/quickchat-legacy/chat", json=body)


async def room(client: httpx2.AsyncClient) -> str:
    """A new AskHandle room, opened without a body as the public client does."""
    reply = await client.post(ROOMS, headers=TOKEN)
    return str(reply.json()["uuid"])


async def write(client: httpx2.AsyncClient, body: str = "Hello!", **fields: Any) -> httpx2.Response:
    """A message to AskHandle, in a room of its own unless `room` is given."""
    fields = {"body": body, "nickname": "api", **fields}
    fields.setdefault("room", {"uuid": await room(client)})
    return await client.post(MESSAGES, json=fields, headers=TOKEN)


async def talk(client: httpx2.AsyncClient) -> str:
    """A new conversation with Mister Turing's demo assistant."""
    body = {"assistant_id": misterturing.ASSISTANT_ID}
    reply = await client.post(f"{TURING}/conversation/", json=body, headers=BEARER)
    return str(reply.json()["conversation_id"])


async def chat(client: httpx2.AsyncClient, message: str = "Hello!", **fields: Any) -> httpx2.Response:
    """A message to Mister Turing, in a conversation of its own unless `conversation_id` is given."""
    fields = {"message": message, **fields}
    fields.setdefault("conversation_id", await talk(client))
    return await client.post(f"{TURING}/chat/", json=fields, headers=BEARER)


EVERYBODY: list[Speak] = [ask, current, legacy, write, chat]
"""A message to each vendor: speak(client, text)."""
