"""The old shape, plain and as a stream."""

import orjson
import pytest

from tests.doors import Doors
from tests.scripted import Cue

PATH = "/v1/completions"


async def test_a_prompt_is_completed(doors: Doors) -> None:
    """A prompt is asked as a user's message, and the reply is the completion."""
    doors.bot.cues.append(Cue(pieces=("Hi ", "there")))
    answer = await doors.post(PATH, model="shop", prompt="hello")
    body = answer.json()

    assert answer.status_code == 200
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["choices"] == [{"text": "Hi there", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert doors.bot.conversations == {1: ["hello", "Hi there"]}
    assert answer.headers["x-parley-conversation"] == "opened"


async def test_a_completion_is_streamed(doors: Doors) -> None:
    """Pieces come as chunks of the same shape, then the reason of the end, usage where it is wanted, and [DONE]."""
    doors.bot.cues.append(Cue(pieces=("Hi ", "there")))
    answer = await doors.post(PATH, model="shop", prompt="hello", stream=True, stream_options={"include_usage": True})
    events = answer.text.removesuffix("\n\n").split("\n\n")
    chunks = [orjson.loads(event.removeprefix("data: ")) for event in events[:-1]]

    assert events[-1] == "data: [DONE]"
    assert [(chunk["choices"] or [{}])[0].get("text") for chunk in chunks] == ["Hi ", "there", "", None]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, "stop"]
    assert chunks[-1]["usage"]["total_tokens"] == 4
    assert len({(chunk["id"], chunk["object"]) for chunk in chunks}) == 1


async def test_completions_know_the_same_limits(doors: Doors) -> None:
    """`stop`, `max_tokens` and `n` mean the same in the old shape."""
    doors.bot.cues += [Cue(pieces=("one two three",)), Cue(pieces=("one two three",))]
    answer = (await doors.post(PATH, model="shop", prompt="hello", n=2, stop=" three", max_tokens=1)).json()

    assert [choice["text"] for choice in answer["choices"]] == ["one ", "one "]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]


@pytest.mark.parametrize("prompt", [["a", "b"], [15, 16], None])
async def test_what_no_bot_can_complete_is_refused(doors: Doors, prompt: object) -> None:
    """Several prompts and tokens are refused by the field's name."""
    answer = await doors.post(PATH, model="shop", prompt=prompt)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/speech", "/v1/images/generations", "/v1/files"])
async def test_what_no_bot_can_serve_is_said_so(doors: Doors, path: str) -> None:
    """Other paths of OpenAI's API are told apart from paths that nobody knows."""
    answer = await doors.post(path, model="shop")

    assert answer.status_code == 404
    assert "nothing that a hosted chat bot can serve" in answer.json()["error"]["message"]
    assert "There is nothing at" in (await doors.post("/v1/embedding")).json()["error"]["message"]
