"""The two forms of an answer, to the byte."""

import re
from collections.abc import AsyncIterator

import pytest

from proxy.errors import VendorFailed, VendorRefused
from proxy.messages import Finish, Usage
from proxy.openai.delivery import ignored_names
from tests.doors import Doors
from tests.scripted import Cue

GOLDEN = """\
data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":TIME,"model":"shop","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":TIME,"model":"shop","choices":[{"index":0,"delta":{"content":"Hé "},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":TIME,"model":"shop","choices":[{"index":0,"delta":{"content":"\\"you\\"\\n"},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":TIME,"model":"shop","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}

data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":TIME,"model":"shop","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}

data: [DONE]

"""  # noqa: E501 - bytes as they are on the wire


def masked(text: str) -> str:
    text = re.sub(r"chatcmpl-[0-9a-f]{32}", "chatcmpl-ID", text)
    return re.sub(r'"created":\d+', '"created":TIME', text)


async def test_a_stream_is_golden(doors: Doors) -> None:
    """A stream is, byte for byte: role, deltas, finish, usage when asked for, [DONE]."""
    doors.bot.cues.append(Cue(pieces=("Hé ", '"you"\n'), finish=Finish(usage=Usage(10))))

    answer = await doors.ask(stream=True, stream_options={"include_usage": True})

    assert masked(answer.text) == GOLDEN
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert len(set(re.findall(r"chatcmpl-[0-9a-f]{32}", answer.text))) == 1


async def test_usage_is_only_for_who_asks(doors: Doors) -> None:
    """Without `include_usage` a stream has no usage chunk."""
    answer = await doors.ask(stream=True)

    assert "usage" not in answer.text
    assert answer.text.endswith('"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


async def test_a_plain_answer_is_the_folded_stream(doors: Doors) -> None:
    """A plain answer holds the same text in OpenAI's fields, no more and no less."""
    doors.bot.cues.append(Cue(pieces=(" Hé\n", "you ")))

    answer = (await doors.ask()).json()

    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "shop",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " Hé\nyou ", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


async def test_the_source_of_usage_is_told(doors: Doors) -> None:
    """A plain answer says whether its usage is the vendor's, and that the bot knew no answer."""
    doors.bot.cues.append(Cue(finish=Finish(usage=Usage(9), extra={"no_answer": True})))

    theirs, ours = await doors.ask(), await doors.ask()

    assert (theirs.headers["x-parley-usage"], ours.headers["x-parley-usage"]) == ("vendor", "estimated")
    assert theirs.headers["x-parley-no-answer"] == "true"
    assert "x-parley-no-answer" not in ours.headers


async def test_a_fault_before_the_first_piece_has_its_own_status(doors: Doors) -> None:
    """A stream that fails before it begins is no stream."""
    doors.bot.cues.append(Cue(fault=VendorRefused("It refused")))

    answer = await doors.ask(stream=True)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "vendor_refused"


async def test_a_fault_in_the_stream_ends_it_without_done(doors: Doors) -> None:
    """A stream that breaks ends with one error object and no [DONE]."""
    doors.bot.cues.append(Cue(pieces=("a", "b"), fault=VendorFailed("It broke off")))

    answer = await doors.ask(stream=True)

    assert answer.status_code == 200
    last = answer.text.removesuffix("\n\n").rpartition("\n\n")[2]
    assert last == (
        'data: {"error":{"message":"It broke off (parley: vendor_failed)","type":"api_error","param":null,'
        '"code":"vendor_failed"}}'
    )
    assert "[DONE]" not in answer.text


async def test_a_body_over_the_limit_is_refused(doors: Doors) -> None:
    """A body over `max_body_bytes` gets 413, also when its length was not announced, and the connection closes."""

    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield b" " * 1000

    bodies: list[bytes | AsyncIterator[bytes]] = [b" " * 5001, unannounced()]
    for content in bodies:
        answer = await doors.http.post(
            "/v1/chat/completions",
            content=content,
            headers={"content-type": "application/json", "authorization": "Bearer sk-all"},
        )

        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert answer.headers["connection"] == "close"


async def test_only_json_is_read(doors: Doors) -> None:
    """A body of another content type is refused: a web page may not post to an open proxy unasked."""
    for kind in ("text/plain", ""):
        answer = await doors.send(b"{}", content_type=kind, authorization="Bearer sk-all")

        assert answer.status_code == 400
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "usage", "split"),
    [("x" * 8, Usage(10), (8, 2, 10)), ("x" * 80, Usage(10), (0, 10, 10)), ("x", None, (2, 1, 3))],
)
async def test_a_vendors_total_is_split_by_our_estimate(
    doors: Doors, text: str, usage: Usage | None, split: tuple[int, ...]
) -> None:
    """Usage adds up to the vendor's total; the completion's share is never more than that."""
    doors.bot.cues.append(Cue(pieces=(text,), finish=Finish(usage=usage)))

    assert tuple((await doors.ask("hello")).json()["usage"].values()) == split


def test_a_header_never_holds_what_a_client_made_up() -> None:
    """Names that are not plain words are left out of a header."""
    assert ignored_names(["a", "b c", "d\r\ne", "f", "a"]) == "a, f"
