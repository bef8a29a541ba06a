"""The configuration file: YAML, ${ENV}, pydantic; every fault at once, with its path in the file.

It must not know the vendors: whoever loads a file hands in the classes of their options. No fault shows a value.
"""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo
from pydantic.functional_validators import AfterValidator, BeforeValidator, field_validator, model_validator
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

# What chat UIs send behind the user's back: it must not take over the user's conversation. Each is looked for at the
# beginning of the newest text. Open WebUI's *retrieval* prompt begins `### Task:` too ("Respond to the user query
# using the provided context") and holds a real question, so the first word of the task decides.
UTILITY_PROMPTS = (
    r"^### Task:\s+(Generate|Suggest|Analyze the chat history|You are an autocompletion system)\b",  # Open WebUI
    r"^Your task is to reflect the speaker's likely facial expression through a fitting emoji",  # Open WebUI
    r"^Provide a concise, 5-word-or-less title for the conversation",  # LibreChat
    r"^Please generate a concise title \(max 40 characters\) for a conversation",  # LibreChat
    r"^Analyze this conversation and provide:\s+1\. The detected language of the conversation",  # LibreChat
    r"^Please generate a four to five word title summarizing our conversation",  # NextChat
    r"^Summarize the discussion briefly in 200 words or less to use as a prompt for future context",  # NextChat
)

Place = tuple[str | int, ...]
Fault = tuple[Place, str]


class ConfigError(Exception):
    """Everything that is wrong with a configuration; its text is a list to show to a person."""

    def __init__(self, where: str, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
        super().__init__("\n  ".join([f"{where}: {count}", *self.faults]))


def _matching(pattern: str, message: str) -> AfterValidator:
    """Pydantic's own words for a pattern that does not match are the pattern; these are for people."""

    def check(value: str | SecretStr) -> str | SecretStr:
        if not re.fullmatch(pattern, value if isinstance(value, str) else value.get_secret_value()):
            raise ValueError(message)
        return value

    return AfterValidator(check)


Name = Annotated[str, _matching(r"\S+", "must be a name without blanks")]
Label = Annotated[str, _matching(r"\S(.*\S)?", "must be one line of text, without blanks around it")]
Glob = Annotated[str, _matching(r"([^\s\[\]]|\[[^\s\]]+\])+", "is no pattern: * ? [abc], without blanks")]
Header = Annotated[str, _matching(r"[\w!#$%&'*+.^`|~-]+", "is no name of a header"), AfterValidator(str.lower)]
HeaderSecret = Annotated[SecretStr, _matching("[!-~]+", "must be visible ASCII without blanks, and not empty")]
HeaderValue = Annotated[str, _matching(r"[\t -~]*", "must hold visible ASCII and blanks only")]
Origin = Annotated[str, _matching(r"\*|null|[a-z][\w+.-]*://[^/\s]+", "must be like https://host:port, without a path")]
Digest = Annotated[str, _matching("[0-9a-fA-F]{64}", "must be 64 hexadecimal digits")]
_TRUTH = {"true": True, "false": False}  # a variable gives text, which a Literal would not take for these
TruthOrAuto = Annotated[Literal[True, False, "auto"], BeforeValidator(lambda it: _TRUTH.get(str(it).lower(), it))]
_URL = "must be like https://host/path, without user, password, query or fragment"
Url = Annotated[str, _matching(r"(https?://[^\s/?#@]+[^\s?#@]*)?", _URL)]
_STORE = "must be memory://, sqlite:///relative.db, sqlite:////absolute/path.db, redis://… or rediss://…"
StoreUrl = Annotated[str, _matching(r"memory://|sqlite:///[^?#]+|rediss?://\S+", _STORE)]

_WORDS = {
    "missing": "required key is missing",
    "string_type": "must be text; put quotes around a number",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "too_short": "must not be empty",
}


def _worded(fault: ErrorDetails, known: Iterable[str]) -> str:
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0)
        return f"unknown key; did you mean {near[0]}?"
    return _WORDS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _refusal(faults: Iterable[Fault]) -> ValidationError:
    """What a validator raises for faults that lie deeper than its value."""
    details = [InitErrorDetails(type=PydanticCustomError("fault", text), loc=at, input=None) for at, text in faults]
    return ValidationError.from_exception_data("configuration", details)


class Section(BaseModel):
    """A part of the file: unknown keys are faults, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, data: Any, build: Callable[[Any], Self]) -> Self:
        """Faults are worded here, where it is known which keys an unknown one may stand for."""
        try:
            return build(data)
        except ValidationError as error:
            raise _refusal((fault["loc"], _worded(fault, cls.model_fields)) for fault in error.errors()) from None


class Breaker(Section):
    """When a bot that keeps failing is left alone: consecutive faults (0 = never), and for how many seconds."""

    failures: int = Field(default=5, ge=0)
    pause: float = Field(default=10, gt=0)


class ModelOptions(Section):
    """Keys that every model may have; a vendor's `Options` adds its own. Times are seconds, sizes bytes."""

    vendor: str
    description: str = ""
    aliases: tuple[Name, ...] = ()
    base_url: Url = ""
    headers: dict[Header, HeaderValue] = Field(default_factory=dict, repr=False)
    timeout: float = Field(default=120, gt=0)
    connect_timeout: float = Field(default=5, gt=0)
    first_byte_timeout: float = Field(default=120, gt=0)
    idle_timeout: float = Field(default=60, gt=0)
    max_connections: int = Field(default=100, ge=1)
    max_concurrency: int = Field(default=100, ge=1)
    queue: int = Field(default=100, ge=0)
    max_reply_bytes: int = Field(default=2 * 1024 * 1024, ge=1)
    breaker: Breaker = Breaker()
    idle_ttl: float | None = Field(default=None, gt=0)
    system_prompt: Literal["forward", "ignore"] = "forward"
    recap: Literal["forward", "ignore", "refuse"] = "forward"
    recap_max_chars: int = Field(default=8000, ge=0)
    recap_text: str = ""
    html: Literal["keep", "markdown"] = "keep"
    tools: Literal["ignore", "emulate"] = "ignore"
    max_tokens: Literal["cut", "ignore"] = "cut"
    strict: bool = False

    @field_validator("*")
    @classmethod
    def _required_means_not_empty(cls, value: object, info: ValidationInfo) -> object:
        """`${NAME:-}` and a variable that is set to nothing pass for text, but not for a credential."""
        if value in ("", SecretStr("")) and cls.model_fields[info.field_name or ""].is_required():
            raise ValueError("must not be empty")
        return value


class Log(Section):
    """How a turn is logged; `content` lets message text in."""

    format: Literal["json", "text"] = "json"
    content: bool = False


class Server(Section):
    """Where and how the proxy listens. Port 0 picks a free one."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    max_body_bytes: int = Field(default=10 * 1024 * 1024, ge=1)
    shutdown_grace: float = Field(default=30, ge=0)
    heartbeat: float = Field(default=10, gt=0)
    cors_origins: tuple[Origin, ...] = ()
    metrics: bool = True
    playground: TruthOrAuto = "auto"
    log: Log = Log()


class Key(Section):
    """Who may call, by a secret or by its digest."""

    name: Label
    key: HeaderSecret | None = None
    key_sha256: Digest | None = Field(default=None, repr=False)
    models: tuple[Glob, ...] = ("*",)
    requests_per_minute: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError("needs either key or key_sha256, and not both")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the secret: what a presented key's digest is compared with."""
        if self.key is None:
            return bytes.fromhex(self.key_sha256 or "")
        return hashlib.sha256(self.key.get_secret_value().encode()).digest()


class Conversation(Section):
    """How a history finds its vendor conversation. An empty `secret` means that none was set."""

    idle_ttl: float = Field(default=3600, gt=0)
    secret: SecretStr = SecretStr("")
    scope_headers: tuple[Header, ...] = ("x-conversation-id", "x-openwebui-chat-id")
    scope_metadata: tuple[Name, ...] = ("conversation_id", "chat_id", "thread_id")
    user_headers: tuple[Header, ...] = ("x-openwebui-user-id",)
    linger: float = Field(default=10, ge=0)
    max_parked: int = Field(default=100_000, ge=1)
    marks: bool = True
    utility_prompts: tuple[re.Pattern[str], ...] = tuple(re.compile(prompt) for prompt in UTILITY_PROMPTS)


class Responses(Section):
    """Whether what `store: true` asks for is kept."""

    transcripts: bool = False


def _of_its_vendor(entry: object, info: ValidationInfo[Mapping[str, type[ModelOptions]]]) -> object:
    """A bot's entry as its vendor's own options; their classes are the validation's context."""
    if not isinstance(entry, dict):
        return entry
    try:
        kind = info.context[str(entry.get("vendor"))]
    except KeyError:
        problem = f"must be one of {', '.join(sorted(info.context))}"
    except (ImportError, AttributeError) as error:  # from an entry point of somebody else's
        problem = f"its adapter cannot be loaded: {error}"
    else:
        return kind.model_validate(entry)
    raise _refusal([(("vendor",), problem)])


class Config(Section):
    """The whole file. The values of `models` are instances of their vendors' own options."""

    server: Server = Server()
    keys: tuple[Key, ...] = ()
    store: StoreUrl = Field(default="memory://", repr=False)
    conversation: Conversation = Conversation()
    responses: Responses = Responses()
    models: dict[Name, Annotated[ModelOptions, BeforeValidator(_of_its_vendor)]] = Field(default={}, min_length=1)

    @field_validator("store")
    @classmethod
    def _usable(cls, url: str) -> str:
        try:
            _ = urlsplit(url).port
        except ValueError:
            raise ValueError(_STORE) from None
        return url

    @field_validator("keys")
    @classmethod
    def _one_rate_a_name(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        """Keys of one name are counted together."""
        rates: dict[str, int | None] = {}
        for key in keys:
            if rates.setdefault(key.name, key.requests_per_minute) != key.requests_per_minute:
                raise ValueError(f"the keys named {key.name} must all have the same requests_per_minute")
        return keys

    @property
    def store_shown(self) -> str:
        """The store's URL, fit to be seen: without user, password and options."""
        parts = urlsplit(self.store)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def read(path: Path, vendors: Mapping[str, type[ModelOptions]], environ: Mapping[str, str]) -> Config:
    """The configuration in a file, or ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = "no such file: make one with `cp config.example.yaml config.yaml`, or try `parley demo` without one"
        raise ConfigError(str(path), [hint]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    return load(text, vendors=vendors, environ=environ, path=str(path))


def load(
    text: str, *, vendors: Mapping[str, type[ModelOptions]], environ: Mapping[str, str], path: str = "config.yaml"
) -> Config:
    """The configuration that a text describes, or ConfigError with all that is wrong with it.

    Of `vendors` only those are looked up that the text names: the mapping may be one that imports on demand.
    """
    unset: list[Fault] = []
    filled = _filled(_parsed(text, path), (), environ, unset)
    faults: list[Fault] = []
    try:
        config = Config.model_validate(filled, context=vendors)
    except ValidationError as error:
        faults = [(fault["loc"], fault["msg"]) for fault in error.errors()]
    faults += _twins(filled)
    # A value that could not be filled in is not judged as well.
    faults = unset + [fault for fault in faults if not any(fault[0][: len(at)] == at for at, _ in unset)]
    if faults:
        raise ConfigError(path, [f"{_shown(at)}: {message}" for at, message in faults])
    return config


def _twins(data: Mapping[Any, Any]) -> Iterator[Fault]:
    """Names of keys may be shared, secrets may not: the name decides whose conversations a caller gets.

    Looked for in the values as they came, so that it is told beside all other faults.
    """
    models = _items(data.get("models"))
    marks: dict[Place, str] = {("models", name): str(name) for name, _ in models}
    for name, bot in models:
        marks |= {("models", name, "aliases", i): str(alias) for i, alias in _items(dict(_items(bot)).get("aliases"))}
    for index, key in _items(data.get("keys")):
        secret = dict(_items(key))
        hashed = (
            hashlib.sha256(str(secret["key"]).encode()).hexdigest() if "key" in secret else secret.get("key_sha256")
        )
        marks["keys", index] = f"{hashed or index}".lower()
    first: dict[str, Place] = {}
    for at, mark in marks.items():
        if (twin := first.setdefault(f"{at[0]} {mark}", at)) != at:
            yield at, f"{'is the same name as' if at[0] == 'models' else 'has the same secret as'} {_shown(twin)}"


def _items(part: object) -> list[tuple[Any, Any]]:
    return list(part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ())


def _shown(place: Place) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if part != "[key]")
    return "".join(parts).removeprefix(".")


class _Loader(yaml.SafeLoader):
    """Of two equal keys in one mapping PyYAML silently keeps the last; for this one that is a fault."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _parsed(text: str, path: str) -> dict[Any, Any]:
    try:
        data = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "is not YAML: a control character, or a date that is none"
        # Other quotes than those of tokens hold the file's own text, maybe a secret that begins with * or !.
        raise ConfigError(path, [at + re.sub(" '(?!<)[^']{2,}'", "", problem)]) from None
    if not isinstance(data, dict):
        raise ConfigError(path, ["must be a mapping with the key models; see config.example.yaml"])
    # A section whose keys are all commented out is null, and meant as left out.
    kept = {key: value for key, value in data.items() if value is not None or key not in Config.model_fields}
    return {**kept, "models": kept.get("models", {})}


_VARIABLE = re.compile(r"\$(\$\{)|\$\{(?:([A-Za-z_]\w*)(?::-([^}]*))?\})?")


def _filled(value: Any, at: Place, environ: Mapping[str, str], unset: list[Fault]) -> Any:
    """`${NAME}` and `${NAME:-default}` replaced in texts, never in keys; `$${` is how to write `${`."""

    def variable(found: re.Match[str]) -> str:
        escaped, name, default = found.groups()
        if escaped or name in environ or default is not None:
            # Like a shell's, the default also stands in for a variable that is set to nothing.
            return escaped or environ.get(name) or default or ""
        malformed = "holds ${ without a NAME} or NAME:-default} after it; write $${ for the characters"
        unset.append((at, f"the environment variable {name} is not set" if name else malformed))
        return found[0]

    if isinstance(value, dict):
        return {_whole(key, at, unset): _filled(part, (*at, key), environ, unset) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, (*at, index), environ, unset) for index, part in enumerate(value)]
    return _whole(_VARIABLE.sub(variable, value), at, unset) if isinstance(value, str) else value


def _whole(text: Any, at: Place, faults: list[Fault]) -> Any:
    """What can be sent and compared: escapes in the file, and variables that are not UTF-8, may be half a character."""
    if not isinstance(text, str) or (whole := text.encode(errors="replace").decode()) == text:
        return text
    faults.append((at, "holds half a character (a surrogate), or bytes that are not UTF-8"))
    return whole


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listening address. A name, localhost apart, may lead anywhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_PLANNED: Mapping[type[Section], Sequence[str]] = {
    Server: ("playground",),
    Responses: ("transcripts",),
    ModelOptions: ("tools",),
}


def without_effect(config: Config) -> Iterator[str]:
    """The keys that were set to something else than their default, but that nothing in this version looks at."""
    parts: list[tuple[str, Section]] = [("server", config.server), ("responses", config.responses)]
    parts += [(f"models.{name}", bot) for name, bot in config.models.items()]
    for place, part in parts:
        for name in next(names for kind, names in _PLANNED.items() if isinstance(part, kind)):
            if getattr(part, name) != type(part).model_fields[name].get_default(call_default_factory=True):
                yield f"{place}.{name}"


def check_exposure(config: Config, host: str) -> None:
    """ConfigError for a proxy that anybody in the network could use."""
    if not config.keys and not is_loopback(host):
        sentence = "would let everyone in who can reach it: add a key under `keys:` or listen on 127.0.0.1"
        raise ConfigError(f"host {host or '(all)'}", [sentence])


def schema(vendors: Mapping[str, type[ModelOptions]]) -> dict[str, Any]:
    """JSON Schema of the file, for editors. Each vendor's models are told apart by their `vendor`."""
    kinds: list[type[BaseModel]] = [Config, *vendors.values()]
    refs, parts = models_json_schema([(kind, "validation") for kind in kinds])
    file, *bots = (refs[kind, "validation"] for kind in kinds)
    whole = parts["$defs"].pop(file["$ref"].rpartition("/")[2])
    # `${NAME}` may stand where the file wants a number, a truth value or one of a few words.
    variable = {"type": "string", "pattern": r"\$\{"}
    for part in (whole, *parts["$defs"].values()):
        for key, own in part.get("properties", {}).items():
            if own.keys() & {"enum", "anyOf"} or own.get("type") in {"integer", "number", "boolean"}:
                part["properties"][key] = {"anyOf": [own, variable]}
    whole["properties"]["models"] = {"type": "object", "minProperties": 1, "additionalProperties": {"anyOf": bots}}
    return {"$schema": GenerateJsonSchema.schema_dialect, **whole, **parts, "required": ["models"]}
