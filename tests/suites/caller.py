"""Speaks to a proxy through the openai-python it finds; what to do and what happened are JSON, as sdks.py tells.

Must import nothing of ours: it runs beside the packages of another environment.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

PLAN = json.load(sys.stdin)
SSL = ssl.create_default_context()  # made once: it is most of what a client costs
COUNTED = {"stream_options": {"include_usage": True}}
ANSWERS: list[Any] = []  # of the requests that the SDK has sent of late, its repetitions among them

Told = dict[str, Any]


async def recorded(answer: object) -> None:
    ANSWERS.append(answer)


def sync_client(url: str = PLAN["url"], **more: Any) -> Any:
    http = openai.DefaultHttpxClient(verify=SSL, event_hooks={"response": [ANSWERS.append]})
    kept = {"api_key": PLAN["key"], "max_retries": 0, **more}
    return OpenAI(base_url=f"{url}/v1", http_client=http, _strict_response_validation=True, **kept)  # type: ignore[arg-type,unused-ignore]


def async_client(url: str = PLAN["url"], **more: Any) -> Any:
    http = openai.DefaultAsyncHttpxClient(verify=SSL, event_hooks={"response": [recorded]})
    kept = {"api_key": PLAN["key"], "max_retries": 0, **more}
    return AsyncOpenAI(base_url=f"{url}/v1", http_client=http, _strict_response_validation=True, **kept)  # type: ignore[arg-type,unused-ignore]


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


# --- every way of asking puts the pieces of a stream into `pieces`, also of one that fails


def completed(completion: Any, **more: Any) -> Told:
    choice = completion.choices[0]
    usage = completion.usage and completion.usage.model_dump(exclude_none=True)
    return {"message": choice.message, "finish": choice.finish_reason, "usage": usage, **more}


def plain(client: Any, request: Told, pieces: list[str]) -> Told:
    raw = client.chat.completions.with_raw_response.create(**request)
    completion = raw.parse()
    own = raw.headers == ANSWERS[-1].headers and completion._request_id == raw.request_id
    return completed(completion, request=own and raw.request_id)


async def async_plain(client: Any, request: Told, pieces: list[str]) -> Told:
    raw = await client.chat.completions.with_raw_response.create(**request)
    completion = raw.parse()
    own = raw.headers == ANSWERS[-1].headers and completion._request_id == raw.request_id
    return completed(completion, request=own and raw.request_id)


def heard(chunk: Any, pieces: list[str], told: Told) -> None:
    for choice in chunk.choices:
        pieces += [choice.delta.content] if choice.delta.content else []
        told["finish"] = choice.finish_reason or told.get("finish")
    if chunk.usage:
        told["usage"] = {**chunk.usage.model_dump(exclude_none=True), "alone": not chunk.choices}
    told["message"] = {"role": "assistant", "content": "".join(pieces)}


def stream(client: Any, request: Told, pieces: list[str]) -> Told:
    raw = client.chat.completions.with_raw_response.create(**request, **COUNTED, stream=True)
    told: Told = {"request": raw.request_id}
    for chunk in raw.parse():
        heard(chunk, pieces, told)
    return told


async def async_stream(client: Any, request: Told, pieces: list[str]) -> Told:
    raw = await client.chat.completions.with_raw_response.create(**request, **COUNTED, stream=True)
    told: Told = {"request": raw.request_id}
    async for chunk in raw.parse():
        heard(chunk, pieces, told)
    return told


def helper(client: Any, request: Told, pieces: list[str]) -> Told:
    done = []
    with client.chat.completions.stream(**request, **COUNTED) as events:
        for event in events:
            pieces += [event.delta] if event.type == "content.delta" and event.delta else []
            done += [event.content] if event.type == "content.done" else []
        return completed(events.get_final_completion(), done=done)


async def async_helper(client: Any, request: Told, pieces: list[str]) -> Told:
    done = []
    async with client.chat.completions.stream(**request, **COUNTED) as events:
        async for event in events:
            pieces += [event.delta] if event.type == "content.delta" and event.delta else []
            done += [event.content] if event.type == "content.done" else []
        return completed(await events.get_final_completion(), done=done)


WAYS: dict[str, Callable[[Any, Told, list[str]], Any]] = {
    "sync": plain,
    "sync-stream": stream,
    "sync-helper": helper,
    "async": async_plain,
    "async-stream": async_stream,
    "async-helper": async_helper,
}


async def asked(way: str, request: Told, **more: Any) -> tuple[Any, Told]:
    """The message as the SDK would have it kept, and what is told of it."""
    ANSWERS.clear()
    pieces: list[str] = []
    client = (async_client if way.startswith("async") else sync_client)(**more)
    try:
        answer = WAYS[way](client, request, pieces)
        told = await answer if isinstance(answer, Awaitable) else answer
    except openai.OpenAIError as error:
        return None, {"pieces": pieces, "fault": described(error), **heads()}
    finally:
        closed = client.close()
        if closed is not None:
            await closed
    message = told.pop("message")
    text = message["content"] if isinstance(message, dict) else message.content
    return message, {**told, "text": text, "pieces": pieces, **heads()}


def heads() -> Told:
    return {"headers": dict(ANSWERS[-1].headers) if ANSWERS else {}, "attempts": len(ANSWERS)}


def described(error: Any) -> Told:
    names = {"status": "status_code", "request": "request_id"}
    facts = {key: getattr(error, names.get(key, key), None) for key in ("status", "code", "type", "param", "request")}
    return {**facts, "class": type(error).__name__, "message": str(error), "api": isinstance(error, openai.APIError)}


# --- chats


def user(content: str) -> Told:
    return {"role": "user", "content": content}


async def talk(model: str, way: str) -> None:
    label = f"[{PLAN['client']} {model} {way}]"

    async def turn(messages: list[Any]) -> tuple[Any, Told]:
        return await asked(way, {"model": model, "messages": messages, "user": label})

    messages: list[Any] = []
    turns: list[Told] = []
    for content in PLAN["turns"]:
        messages.append(user(content if turns else f"{label}: {content}"))
        message, told = await turn(messages)
        turns.append(told)
        messages.append(message)
    _, edited = await turn([*messages[:2], user(PLAN["edit"])])
    _, again = await turn(messages[: 2 * len(PLAN["turns"]) - 1])
    _, onward = await turn([*messages, user(PLAN["onward"])])
    say(id=f"talk {model} {way}", label=label, turns=turns, edited=edited, again=again, onward=onward)


# --- faults


async def meet(name: str, how: Told, way: str) -> None:
    label = f"[{PLAN['client']} {name} {way}]"
    options = how.get("options", {})
    request = {"model": how["model"], "messages": [user(f"{label}\n\n{how['text']}")], "user": label}
    request |= how.get("more", {})
    key, retries = options.get("key", PLAN["key"]), options.get("retries", 0)
    _, told = await asked(way, request, api_key=key, max_retries=retries)
    say(id=f"fault {name} {way}", **told)


# --- silence: the bot is slower than the proxy's heartbeat


async def wait(way: str) -> None:
    label = f"[{PLAN['client']} waits {way}]"
    told = [
        (await asked(way, {"model": "newoaks", "messages": [user(text)], "user": label}, url=PLAN["slow"]))[1]
        for text in (label, f"{label}\nfault failed")
    ]
    say(id=f"wait {way}", label=label, heard=told[0], failed=told[1])


# --- leaving: the bot stops in the midst of its reply, or before it, and the client does not wait


def closing(request: Told, pieces: list[str]) -> None:
    with sync_client() as client:
        chunks = client.chat.completions.create(**request, stream=True)
        while not "".join(pieces):
            pieces.append(next(chunks).choices[0].delta.content)
        chunks.close()


def leaving(request: Told, pieces: list[str]) -> None:
    with sync_client() as client, client.chat.completions.stream(**request) as events:
        while not "".join(pieces):
            pieces += [event.delta for event in [next(events)] if event.type == "content.delta"]


async def cancelled(request: Told, pieces: list[str]) -> None:
    begun = asyncio.Event()
    async with async_client() as client:

        async def read() -> None:
            async for chunk in await client.chat.completions.create(**request, stream=True):
                pieces.append(chunk.choices[0].delta.content)
                if "".join(pieces):
                    begun.set()

        reading = asyncio.ensure_future(read())
        await begun.wait()
        reading.cancel()
        await asyncio.wait([reading])


async def early(request: Told, pieces: list[str]) -> None:
    async with async_client() as client, asyncio.timeout(PLAN["patience"]):
        await client.chat.completions.create(**request)


def timeout(request: Told, pieces: list[str]) -> None:
    with sync_client(timeout=PLAN["patience"]) as client:
        client.chat.completions.create(**request)


LEAVING: dict[str, Callable[[Told, list[str]], Any]] = {
    "close": closing, "helper": leaving, "cancel": cancelled, "early": early, "timeout": timeout,
}  # fmt: skip


async def leave(manner: str) -> None:
    label = f"[{PLAN['client']} leaves {manner}]"
    messages = [user(f"{label}\nfault {'slow' if manner in ('early', 'timeout') else 'stall'}")]
    request = {"model": "newoaks", "messages": messages, "user": label}
    pieces: list[str] = []
    raised = None
    try:
        left = LEAVING[manner](request, pieces)
        if left is not None:
            await left
    except (openai.OpenAIError, TimeoutError) as error:
        raised = described(error)
    text = "".join(pieces)
    more = [*messages, {"role": "assistant", "content": text}, user(PLAN["onward"])]
    following = (await asked("async", {**request, "messages": more}))[1] if text else None
    say(id=f"leave {manner}", label=label, text=text, fault=raised, next=following)


# --- models


def fault_of(call: Callable[[], object]) -> Told:
    try:
        call()
    except openai.OpenAIError as error:
        return described(error)
    return {}


def models() -> None:
    with sync_client() as client:
        listed = list(client.models.list())
        retrieved = [client.models.retrieve(model.id).to_dict() for model in listed]
        fault = fault_of(lambda: client.models.retrieve("no-such-bot"))
        elsewhere = fault_of(lambda: client.embeddings.create(model="newoaks", input="Hello"))
    told = [model.to_dict() for model in listed]
    say(id="models", listed=told, retrieved=retrieved, fault=fault, elsewhere=elsewhere)


async def main() -> None:
    for model in PLAN["models"]:
        for way in WAYS:
            await talk(model, way)
    for name, how in PLAN["faults"].items():
        for way in list(WAYS)[: how.get("ways")]:
            await meet(name, how, way)
    for way in WAYS:
        await wait(way)
    for manner in LEAVING:
        await leave(manner)
    models()
    say(id="end")


if __name__ == "__main__":
    asyncio.run(main())
