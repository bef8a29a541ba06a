# requires: litellm==1.106.2
# manners: completion stream async-stream
# mypy: ignore-errors
"""LiteLLM as a library: `openai/` in front of the model's name, and `api_base`."""

import asyncio

import litellm
from cue import BASE_URL, KEY, MANNER, MODEL, TURNS, heard

PARLEY = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY}


async def pieces(messages):
    return [chunk async for chunk in await litellm.acompletion(**PARLEY, messages=messages, stream=True)]


messages = [{"role": "system", "content": "Be kind."}]
for turn in TURNS:
    messages.append({"role": "user", "content": turn})
    headers = {}
    if MANNER == "completion":
        answer = litellm.completion(**PARLEY, messages=messages)
        headers = answer._hidden_params.get("additional_headers", {})
    else:
        stream = MANNER == "stream"
        chunks = list(litellm.completion(**PARLEY, messages=messages, stream=True)) if stream else None
        answer = litellm.stream_chunk_builder(chunks or asyncio.run(pieces(messages)), messages=messages)
    messages.append(answer.choices[0].message)
    heard(answer.choices[0].message.content, conversation=headers.get("llm_provider-x-parley-conversation"))
