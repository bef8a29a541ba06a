"""What a client sends, checked and put into our words: every field is honoured, refused by name, or listed as ignored.

Written by hand and not as a schema: a union of roles and part kinds gives a schema's errors no usable `param`, and
unknown extras must pass. Source: OpenAI's API reference for chat completions, and what clients were seen to send.
"""

import binascii
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence, Set
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from proxy.errors import InvalidRequest
from proxy.messages import Attachment, Message, Role, ToolCall
from proxy.openai.delivery import estimated_tokens, size_of

Check = Callable[[Any], str]  # what is wrong with a value, "" if nothing

MOST_CHOICES = 8  # conversations with a bot that one request may open
LONGEST_KEPT = 1 << 20  # bytes of a body that is kept for as long as its reply runs, to be compared at need
LONGEST_STOP = 1000  # characters of a stop sequence: each piece of a reply is compared with all of its beginnings
MOST_MESSAGES = 20_000  # each costs this process a little time, in which it does nothing else

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class ChatRequest(NamedTuple):
    """A checked request. `ignored` names the fields that were accepted but that no bot here can honour.

    `digest` gives a digest of the whole body, the form of the answer apart: equal when a client asks once more. `limit`
    is the name under which `max_tokens` was sent.
    """

    model: str
    messages: Sequence[Message]
    stream: bool
    include_usage: bool
    end_user: str
    user: str
    metadata: Mapping[str, str]
    ignored: Sequence[str]
    digest: Callable[[], bytes]
    n: int = 1
    stop: Sequence[str] = ()
    max_tokens: int | None = None
    limit: str = ""

    @property
    def prompt_tokens(self) -> int:
        """An estimate over all messages the client sent."""
        return estimated_tokens(sum([size_of(message.text) for message in self.messages]))


def parse(body: bytes) -> ChatRequest:
    """Check the body of a chat request. Raises InvalidRequest with the `param` at fault."""
    fields = _checked(body, _CHECKS)
    return _request(fields, _messages(_required(fields, "messages", [])), HONOURED, _Digest(body))


def parse_completion(body: bytes) -> ChatRequest:
    """Check a body in the old shape, whose prompt is one message of a user. Raises InvalidRequest likewise."""
    fields = _checked(body, _COMPLETION_CHECKS)
    prompt = _required(fields, "prompt", "")
    if isinstance(prompt, str) and not prompt.strip():
        raise InvalidRequest("`prompt` is blank", param="prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        told = "`prompt` must be one string: a bot reads text, not tokens, and is asked one thing at a time"
        raise InvalidRequest(told, param="prompt", code="unsupported_value")
    return _request(fields, [Message("user", prompt)], HONOURED_IN_COMPLETIONS, _Digest(body))


def _checked(body: bytes, checks: Mapping[str, Check]) -> dict[str, Any]:
    fields = _object(body)
    for name, value in fields.items():
        check = checks.get(name)
        if value is not None and check is not None and (wrong := check(value)):
            raise InvalidRequest(f"`{name}` {wrong}", param=name, code=_code(wrong))
    _refuse(fields)
    usage = (fields.get("stream_options") or {}).get("include_usage")
    if usage is not None and not isinstance(usage, bool):
        at = "stream_options.include_usage"
        raise InvalidRequest(f"`{at}` must be a boolean", param=at, code="invalid_type")
    return fields


def _request(
    fields: Mapping[str, Any], messages: Sequence[Message], honoured: Set[str], digest: Callable[[], bytes]
) -> ChatRequest:
    stop = fields.get("stop") or ()
    limit = next((name for name in LIMITS if name in honoured and fields.get(name) is not None), "")
    return ChatRequest(
        model=_required(fields, "model", ""),
        messages=messages,
        stream=bool(fields.get("stream")),
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
        end_user=fields.get("safety_identifier") or fields.get("user") or "",
        user=fields.get("user") or "",
        metadata=fields.get("metadata") or {},
        ignored=[name for name, value in fields.items() if name not in honoured and not _asks_nothing(value)],
        digest=digest,
        n=fields.get("n") or 1,
        stop=tuple(filter(None, [stop] if isinstance(stop, str) else stop)),
        max_tokens=fields[limit] if limit else None,
        limit=limit,
    )


def _asks_nothing(value: Any) -> bool:
    """Whether a value says of its field that it is not used."""
    return value is None or value is False or value in ([], {}, ["text"], {"type": "text"}, "none")


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"The body is not valid JSON: {fault.msg} at {fault.pos}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object", code="invalid_json")
    return fields


class _Digest:
    """What tells bodies apart, whatever they say of streaming. Few are ever compared, so it waits to be asked."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._digest = b""
        if len(body) > LONGEST_KEPT:
            self()

    def __call__(self) -> bytes:
        if not self._digest:
            fields = orjson.loads(self._body)
            asked = {name: value for name, value in fields.items() if name not in ("stream", "stream_options")}
            try:
                written = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
            except TypeError:  # nested more deeply than it writes: only the same bytes are the same
                written = self._body
            self._digest = blake2b(written, digest_size=16).digest()
            self._body = b""
        return self._digest


def _required(fields: Mapping[str, Any], name: str, empty: object) -> Any:
    value = fields.get(name)
    if value is None or value == empty:
        raise InvalidRequest(f"`{name}` is required and must not be empty", param=name, code=_MISSING)
    return value


_MISSING = "missing_required_parameter"


def _code(wrong: str) -> str:
    return "invalid_type" if wrong.startswith("must be a") else "invalid_value"


# --- single values


def _of(kind: type | tuple[type, ...], name: str) -> Check:
    def check(value: Any) -> str:
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return "" if right else f"must be {name}"

    return check


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return "must be a number"
        return "" if low <= value <= high else f"is out of range: {low:g} to {high:g}"

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, int) or isinstance(value, bool):
            return "must be an integer"
        return "" if low <= value <= high else f"is out of range: {low} to {high}"

    return check


def _strings(value: Any) -> str:
    if not isinstance(value, dict):
        return "must be an object"
    return "" if all(isinstance(text, str) for text in value.values()) else "must be an object of strings"


def _stop(value: Any) -> str:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return "must be a string or an array of strings"
    if any(len(text) > LONGEST_STOP for text in value):
        return f"holds a sequence of more than {LONGEST_STOP} characters"
    return "" if len(value) <= 4 else "holds more than 4 sequences"


def _up_to(most: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, list):
            return "must be an array"
        return "" if len(value) <= most else f"holds more than {most} messages"

    return check


_STRING, _BOOLEAN = _of(str, "a string"), _of(bool, "a boolean")
_OBJECT, _ARRAY = _of(dict, "an object"), _of(list, "an array")
_WORD_OR_OBJECT = _of((str, dict), "a string or an object")
_MOST = 2**53

_CHECKS: Mapping[str, Check] = {
    "model": _STRING,
    "messages": _up_to(MOST_MESSAGES),
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "user": _STRING,
    "safety_identifier": _STRING,
    "metadata": _strings,
    "n": _integer(1, MOST_CHOICES),
    "stop": _stop,
    "max_tokens": _integer(1, _MOST),
    "max_completion_tokens": _integer(1, _MOST),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "logit_bias": _OBJECT,
    "seed": _integer(-_MOST * 1024, _MOST * 1024),
    "prompt_cache_key": _STRING,
    "prompt_cache_retention": _STRING,
    "store": _BOOLEAN,
    "service_tier": _STRING,
    "verbosity": _STRING,
    "reasoning_effort": _STRING,
    "prediction": _OBJECT,
    "modalities": _ARRAY,
    "audio": _OBJECT,
    "parallel_tool_calls": _BOOLEAN,
    "logprobs": _BOOLEAN,
    "echo": _BOOLEAN,
    "top_logprobs": _integer(0, 20),
    "response_format": _OBJECT,
    "tools": _ARRAY,
    "functions": _ARRAY,
    "tool_choice": _WORD_OR_OBJECT,
    "function_call": _WORD_OR_OBJECT,
    "web_search_options": _OBJECT,
}

_COMPLETION_CHECKS: Mapping[str, Check] = {**_CHECKS, "logprobs": _integer(0, 5)}  # it was a number then

LIMITS = ("max_completion_tokens", "max_tokens")
_HONOURED = {"model", "stream", "stream_options", "user", "safety_identifier", "metadata", "n", "stop", "max_tokens"}
HONOURED = frozenset({*_HONOURED, "messages", "max_completion_tokens"})
HONOURED_IN_COMPLETIONS = frozenset({*_HONOURED, "prompt"})


def _is_strict(response_format: Any) -> bool:
    schema = (response_format or {}).get("json_schema")
    return isinstance(schema, dict) and schema.get("strict") is True


_REFUSED: Mapping[str, Callable[[Any], bool]] = {  # whether a value asks for what no bot here can give
    "logprobs": lambda value: not _asks_nothing(value),
    "echo": lambda value: value is True,
    "top_logprobs": lambda value: value is not None,
    "audio": lambda value: value is not None,
    "modalities": lambda value: any(kind != "text" for kind in value or ()),
    "tool_choice": lambda value: value == "required" or isinstance(value, dict),
    "function_call": lambda value: isinstance(value, dict),
    "response_format": _is_strict,
}


def _refuse(fields: Mapping[str, Any]) -> None:
    """Refuse what would change the answer's form or meaning in a way that a client relies on."""
    for name, asks in _REFUSED.items():
        if name in fields and asks(fields[name]):
            raise InvalidRequest(
                f"`{name}` asks for something that the bots behind this proxy cannot give; leave it out",
                param=name,
                code="unsupported_parameter",
            )


# --- messages


def _messages(values: Sequence[Any]) -> list[Message]:
    return [_plain(value) or _message(value, f"messages[{i}]") for i, value in enumerate(values)]


def _plain(value: Any) -> Message | None:
    """A message that is nothing but a role and a text, as nearly all are: a long history is looked at in every turn."""
    if type(value) is dict and len(value) == 2:
        role, text = value.get("role"), value.get("content")
        if type(text) is str and type(role) is str and role in ROLES:
            return tuple.__new__(Message, (ROLES[role], text, (), ()))  # half the time of Message(...)
    return None


def _message(value: Any, path: str) -> Message:
    if not isinstance(value, dict):
        raise InvalidRequest(f"`{path}` must be an object", param=path, code="invalid_type")
    role = value.get("role")
    if role is None:
        raise InvalidRequest(f"`{path}.role` is required", param=f"{path}.role", code=_MISSING)
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"`{path}.role` is none of {', '.join(ROLES)}", param=f"{path}.role")
    content = value.get("content")
    if content is None and isinstance(value.get("refusal"), str):
        content = value["refusal"]
    text, attachments = _content(content, f"{path}.content")
    calls = _tool_calls(value, path) if role == "assistant" else ()
    return Message(ROLES[role], text, attachments, calls)


def _content(content: Any, path: str) -> tuple[str, Sequence[Attachment]]:
    if content is None or isinstance(content, str):
        return content or "", ()
    if not isinstance(content, list):
        raise InvalidRequest(f"`{path}` must be a string or an array of parts", param=path, code="invalid_type")
    texts: list[str] = []
    attachments: list[Attachment] = []
    for i, part in enumerate(content):
        at = f"{path}[{i}]"
        if not isinstance(part, dict):
            raise InvalidRequest(f"`{at}` must be an object", param=at, code="invalid_type")
        kind = part.get("type")
        if kind in ("text", "refusal"):
            texts.append(_text(part, kind, at))
        elif isinstance(kind, str) and kind in _ATTACHMENTS:
            attachments.append(_ATTACHMENTS[kind](part.get(kind), f"{at}.{kind}"))
        else:
            known = ", ".join(["text", "refusal", *_ATTACHMENTS])
            raise InvalidRequest(f"`{at}.type` is none of {known}", param=f"{at}.type", code="unsupported_value")
    return "".join(texts), tuple(attachments)


def _text(part: Mapping[str, Any], name: str, path: str) -> str:
    value = part.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"`{path}.{name}` must be a string", param=f"{path}.{name}", code="invalid_type")
    return value


def _field(value: Any, name: str, path: str) -> str:
    if not isinstance(value, dict):
        raise InvalidRequest(f"`{path}` must be an object", param=path, code="invalid_type")
    return _text(value, name, path)


def _image(value: Any, path: str) -> Attachment:
    url = _field(value, "url", path)
    if not url.startswith("data:"):
        if not url.startswith(("https://", "http://")):
            raise InvalidRequest(f"`{path}.url` must be an https: or data: URL", param=f"{path}.url")
        return Attachment("image", url=url, path=path)
    head, comma, data = url[5:].partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidRequest(f"`{path}.url` is no base64 data: URL", param=f"{path}.url")
    return Attachment("image", head.partition(";")[0], data=_decoded(data, f"{path}.url"), path=path)


def _audio(value: Any, path: str) -> Attachment:
    return Attachment(
        "audio", f"audio/{_field(value, 'format', path)}", _decoded(_field(value, "data", path), path), path=path
    )


def _file(value: Any, path: str) -> Attachment:
    if isinstance(value, dict) and isinstance(value.get("file_id"), str):
        return Attachment("file", url=f"file-id:{value['file_id']}", path=path)
    data = _field(value, "file_data", path)
    head, comma, rest = data.partition(",")
    media_type = head.removeprefix("data:").partition(";")[0] if comma else ""
    return Attachment("file", media_type, _decoded(rest if comma else data, f"{path}.file_data"), path=path)


def _decoded(data: str, path: str) -> bytes:
    try:
        return b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"`{path}` is not valid base64", param=path) from None


_ATTACHMENTS: Mapping[str, Callable[[Any, str], Attachment]] = {
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
}


def _tool_calls(value: Mapping[str, Any], path: str) -> Sequence[ToolCall]:
    calls = value.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InvalidRequest(f"`{path}.tool_calls` must be an array", param=f"{path}.tool_calls", code="invalid_type")
    found = [_tool_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if (old := value.get("function_call")) is not None:
        found.append(ToolCall(_field(old, "name", f"{path}.function_call"), _arguments(old, "arguments")))
    return tuple(found)


def _tool_call(call: Any, path: str) -> ToolCall:
    if isinstance(call, dict) and call.get("type") == "custom":
        custom = call.get("custom")
        return ToolCall(_field(custom, "name", f"{path}.custom"), _arguments(custom, "input"))
    function = call.get("function") if isinstance(call, dict) else None
    return ToolCall(_field(function, "name", f"{path}.function"), _arguments(function, "arguments"))


def _arguments(call: Any, name: str) -> str:
    arguments = call.get(name)
    return arguments if isinstance(arguments, str) else ""
