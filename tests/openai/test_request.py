"""Which requests are understood, which are refused, and how the field at fault is named."""

from typing import Any

import orjson
import pytest

from proxy.errors import InvalidRequest
from proxy.messages import Attachment, Message, ToolCall
from proxy.openai.request import LONGEST_KEPT, ChatRequest, parse, parse_completion

HELLO = [{"role": "user", "content": "hello"}]


def parsed(**fields: Any) -> ChatRequest:
    return parse(orjson.dumps({"model": "m", "messages": HELLO, **fields}))


def message(**fields: Any) -> Message:
    (only,) = parsed(messages=[fields]).messages
    return only


REFUSED = [
    ({"model": None}, "model", "missing_required_parameter"),
    ({"model": ""}, "model", "missing_required_parameter"),
    ({"model": 1}, "model", "invalid_type"),
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "missing_required_parameter"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "robot"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": []}]}, "messages[0].role", "invalid_value"),
    ({"messages": [*HELLO, {"role": "user", "content": 1}]}, "messages[1].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]", "invalid_type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]},
        "messages[0].content[0].type",
        "unsupported_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages[0].content[0].image_url",
        "invalid_type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
        "messages[0].content[0].image_url.url",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]}]},
        "messages[0].content[0].image_url.url",
        "invalid_value",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": {}}]}, None, ""),
    ({"messages": [{"role": "assistant", "tool_calls": 1}]}, "messages[0].tool_calls", "invalid_type"),
    ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls[0].function", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream": 1}, "stream", "invalid_type"),
    ({"stream_options": []}, "stream_options", "invalid_type"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"n": 9}, "n", "invalid_value"),
    ({"stop": "x" * 1001}, "stop", "invalid_value"),
    ({"stop": 5}, "stop", "invalid_type"),
    ({"n": 0}, "n", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop", "invalid_type"),
    ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
    ({"user": 7}, "user", "invalid_type"),
    ({"logprobs": True}, "logprobs", "unsupported_parameter"),
    ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "unsupported_parameter"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True}}},
        "response_format",
        "unsupported_parameter",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), [row for row in REFUSED if row[1]])
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    """A bad field is refused with its path as `param` and a code that says what kind of fault it is."""
    with pytest.raises(InvalidRequest) as refused:
        parsed(**fields)

    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"a": NaN}', b"\xff"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """A body that is not a JSON object is invalid JSON."""
    with pytest.raises(InvalidRequest) as refused:
        parse(body)

    assert refused.value.code == "invalid_json"


def test_null_is_absent() -> None:
    """A null means that the field is not there, whatever its type."""
    nulls = dict.fromkeys(
        [
            "stream",
            "stream_options",
            "user",
            "metadata",
            "n",
            "stop",
            "max_tokens",
            "temperature",
            "tools",
            "tool_choice",
            "logprobs",
            "top_logprobs",
            "audio",
            "modalities",
            "response_format",
            "functions",
            "function_call",
            "seed",
        ]
    )

    request = parsed(**nulls)

    assert not request.stream
    assert request.ignored == []


def test_what_cannot_be_honoured_is_listed() -> None:
    """Fields that no bot can honour, known or not, are accepted and listed."""
    fields = {
        "temperature": 0.5,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "chat_id": "x",
    }
    unused = {"modalities": ["text"], "store": False, "functions": [], "logprobs": False, "function_call": "none"}

    assert parsed(n=1, user="u", stream=False, **unused, **fields).ignored == list(fields)


def test_what_cuts_a_reply() -> None:
    """A reply may be cut by texts, one or up to four, and by a number of tokens, under either name."""
    assert parsed(stop="x").stop == ("x",)
    assert parsed(stop=["x", "", "y"]).stop == ("x", "y")
    assert parsed(max_tokens=5).max_tokens == parsed(max_completion_tokens=5, max_tokens=9).max_tokens == 5
    nothing = parsed(stop=None, max_tokens=None, max_completion_tokens=None, n=None)
    assert (nothing.stop, nothing.max_tokens, nothing.n, nothing.ignored) == ((), None, 1, [])


def completion(**fields: Any) -> ChatRequest:
    return parse_completion(orjson.dumps({"model": "m", "prompt": "hello", **fields}))


@pytest.mark.parametrize("prompt", ["hello", ["hello"]])
def test_the_old_shape_is_one_message(prompt: object) -> None:
    """A prompt is one message of a user; what bots have no knob for is listed."""
    request = completion(prompt=prompt, max_tokens=5, suffix="s", best_of=1, logprobs=None, echo=False)

    assert request.messages == [Message("user", "hello")]
    assert completion(max_completion_tokens=5).ignored == ["max_completion_tokens"]
    assert (request.max_tokens, request.ignored) == (5, ["suffix", "best_of"])


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "missing_required_parameter"),
        ({"prompt": ["a", "b"]}, "prompt", "unsupported_value"),
        ({"prompt": [1, 2]}, "prompt", "unsupported_value"),
        ({"prompt": {}}, "prompt", "unsupported_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"prompt": " "}, "prompt", "invalid_value"),
        ({"logprobs": 2}, "logprobs", "unsupported_parameter"),
        ({"logprobs": 0}, "logprobs", "unsupported_parameter"),
        ({"logprobs": "2"}, "logprobs", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
    ],
)
def test_what_is_wrong_in_the_old_shape_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    """What the old shape may hold and a bot cannot give is refused with its name."""
    with pytest.raises(InvalidRequest) as refused:
        completion(**fields)

    assert (refused.value.param, refused.value.code) == (param, code)


def test_roles_become_four() -> None:
    """`developer` is a system message and `function` a tool's."""
    roles = ["system", "developer", "user", "assistant", "tool", "function"]

    messages = parsed(messages=[{"role": role, "content": "x", "name": "n"} for role in roles]).messages

    assert [m.role for m in messages] == ["system", "system", "user", "assistant", "tool", "tool"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, ""),
        ({"content": None}, ""),
        ({"content": []}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "no"),
        ({"content": None, "refusal": "no"}, "no"),
        ({"content": "a", "refusal": None, "audio": None, "metadata": None, "options": None, "parsed": None}, "a"),
    ],
)
def test_content_comes_in_many_shapes(fields: dict[str, Any], text: str) -> None:
    """A message's text is read from a string, from parts, or from a refusal."""
    assert message(role="assistant", **fields) == Message("assistant", text)


def test_tool_calls_come_in_three_shapes() -> None:
    """Tool calls are read in today's form, as custom tools, and as the old function call."""
    calls = [
        {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}},
        {"id": "2", "type": "custom", "custom": {"name": "sql", "input": "select"}},
    ]

    read = message(role="assistant", tool_calls=calls, function_call={"name": "old", "arguments": "{}"})

    assert read.tool_calls == (ToolCall("add", "{}"), ToolCall("sql", "select"), ToolCall("old", "{}"))
    assert message(role="assistant", content="x", tool_calls=None, function_call=None).tool_calls == ()


def test_attachments_are_read_with_their_place() -> None:
    """Images, audio and files are read as bytes or as an URL, and know where they stood."""
    content = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"type": "image_url", "image_url": {"url": "https://x.test/y.png", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]

    at = "messages[0].content"
    assert message(role="user", content=content).attachments == (
        Attachment("image", "image/png", b"hi", path=f"{at}[1].image_url"),
        Attachment("image", url="https://x.test/y.png", path=f"{at}[2].image_url"),
        Attachment("audio", "audio/wav", b"hi", path=f"{at}[3].input_audio"),
        Attachment("file", "application/pdf", b"hi", path=f"{at}[4].file"),
        Attachment("file", url="file-id:file-1", path=f"{at}[5].file"),
    )


def test_the_end_user_is_the_safety_identifier_first() -> None:
    """`safety_identifier` names the person before `user` does."""
    both = parsed(user="u", safety_identifier="s")

    assert (both.end_user, both.user) == ("s", "u")
    assert parsed(user="u").end_user == "u"


def test_prompt_tokens_are_bytes_by_four_rounded_up() -> None:
    """The estimate counts the UTF-8 bytes of all messages."""
    assert parsed(messages=[{"role": "user", "content": "é" * 3}, *HELLO]).prompt_tokens == 3


@pytest.mark.parametrize("size", [1, LONGEST_KEPT])
def test_a_body_too_deep_to_be_written_again_is_compared_by_its_bytes(size: int) -> None:
    """A body that can be read but not be written again is answered, and known again when it comes unchanged."""
    deep = b"[" * 300 + b"]" * 300
    body = b'{"model": "m", "messages": [{"role": "user", "content": "%b"}], "tools": %b}' % (b"a" * size, deep)

    assert parse(body).digest() == parse(body).digest()
    assert parse(body).digest() != parse(body.replace(b'"m"', b'"n"')).digest()
    assert len(parse(body).digest()) == 16
