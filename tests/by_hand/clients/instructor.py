# requires: instructor==1.17.0
# manners: plain stream
# mypy: ignore-errors
"""instructor: as a plain chat (`response_model=None`).

What it is made for rests on tools, which are refused as long as they are not emulated (400, `tool_choice`), or in its
JSON modes on a bot that happens to answer with JSON alone.
"""

import instructor
from cue import BASE_URL, KEY, MANNER, MODEL, TURNS, heard
from openai import OpenAI

client = instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=KEY), mode=instructor.Mode.JSON)
messages = [{"role": "system", "content": "Be kind."}]
for turn in TURNS:
    messages.append({"role": "user", "content": turn})
    if MANNER == "stream":
        chunks = client.chat.completions.create(response_model=None, model=MODEL, messages=messages, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        messages.append({"role": "assistant", "content": text})
    else:
        answer = client.chat.completions.create(response_model=None, model=MODEL, messages=messages)
        messages.append(answer.choices[0].message.model_dump())  # it reads dicts only
        text = answer.choices[0].message.content
    heard(text)
