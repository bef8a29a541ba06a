"""The configuration file: YAML, ${ENV}, pydantic; every fault at once, with its path in the file.

It must not know the vendors: whoever loads a file hands in the classes of their options. No fault shows a value.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import ErrorDetails

# What chat UIs send behind the user's back: it must not take over the user's conversation. Each is looked for at the
# beginning of the newest text. Open WebUI's *retrieval* prompt begins `### Task:` too ("Respond to the user query
# using the provided context") and holds a real question, so the first word of the task decides.
UTILITY_PROMPTS = (
    r"^### Task:\s+(Generate|Suggest|Analyze the chat history|You are an autocompletion system)\b",  # Open WebUI
    r"^Your task is to reflect the speaker's likely facial expression through a fitting emoji",  # Open WebUI
    r"^Provide a concise, 5-word-or-less title for the conversation",  # LibreChat
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

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(message)
        return text

    return AfterValidator(check)


def _compiled(value: object) -> object:
    try:
        return re.compile(value) if isinstance(value, str) else value
    except re.error as fault:
        raise ValueError(f"is no regular expression: {fault.msg} at position {fault.pos}") from None


def _truth(value: object) -> object:
    """`${NAME}` gives text, which a Literal would not take for true or false."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _visible(secret: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]+", secret.get_secret_value()):
        raise ValueError("must be visible ASCII characters without blanks, and not empty")
    return secret


Name = Annotated[str, _matching(r"\S+", "must be a name without blanks")]
Label = Annotated[str, _matching(r"\S(.*\S)?", "must be one line of text, without blanks around it")]
Glob = Annotated[str, _matching(r"([^\s\[\]]|\[[^\s\]]+\])+", "is no pattern: * ? [abc], without blanks")]
Header = Annotated[str, _matching(r"[\w!#$%&'*+.^`|~-]+", "is no name of a header"), AfterValidator(str.lower)]
HeaderSecret = Annotated[SecretStr, AfterValidator(_visible)]
HeaderValue = Annotated[str, _matching(r"[^\x00-\x1f\x7f]*", "must not hold line breaks or control characters")]
Origin = Annotated[str, _matching(r"\*|null|[a-z][\w+.-]*://[^/\s]+", "must be like https://host:port, without a path")]
Digest = Annotated[str, _matching("[0-9a-fA-F]{64}", "must be 64 hexadecimal digits")]
Regex = Annotated[re.Pattern[str], BeforeValidator(_compiled)]
StoreUrl = Annotated[
    str,
    _matching(
        r"memory://|sqlite:///[^?#]+|rediss?://\S+",
        "must be memory://, sqlite:///relative.db, sqlite:////absolute/path.db, redis://… or rediss://…",
    ),
]


class Section(BaseModel):
    """A part of the file: unknown keys are faults, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class Breaker(Section):
    """When a bot that keeps failing is left alone: consecutive faults (0 = never), and for how many seconds."""

    failures: int = Field(default=5, ge=0)
    pause: float = Field(default=10, gt=0)


class ModelOptions(Section):
    """Keys that every model may have; a vendor's `Options` adds its own. Times are seconds, sizes bytes."""

    vendor: str
    description: str = ""
    aliases: tuple[Name, ...] = ()
    base_url: str = ""
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

    @field_validator("base_url")
    @classmethod
    def _web_address(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^\s/?#@]+[^\s?#@]*", url):
            raise ValueError("must be like https://host/path, without user, password, query or fragment")
        return url


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
    playground: Annotated[Literal[True, False, "auto"], BeforeValidator(_truth)] = "auto"
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
    utility_prompts: tuple[Regex, ...] = tuple(re.compile(prompt) for prompt in UTILITY_PROMPTS)


class Responses(Section):
    """Whether what `store: true` asks for is kept."""

    transcripts: bool = False


class Config(Section):
    """The whole file. The values of `models` are instances of their vendors' own options."""

    server: Server = Server()
    keys: tuple[Key, ...] = ()
    store: StoreUrl = Field(default="memory://", repr=False)
    conversation: Conversation = Conversation()
    responses: Responses = Responses()
    models: Mapping[str, ModelOptions] = Field(default_factory=dict)

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
    except UnicodeDecodeError:
        raise ConfigError(str(path), ["is not text in UTF-8"]) from None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    return load(text, vendors=vendors, environ=environ, path=str(path))


def load(
    text: str, *, vendors: Mapping[str, type[ModelOptions]], environ: Mapping[str, str], path: str = "config.yaml"
) -> Config:
    """The configuration that a text describes, or ConfigError with all that is wrong with it.

    Of `vendors` only those are looked up that the text names: the mapping may be one that imports on demand.
    """
    data, doubles = _parsed(text, path)
    unset: list[Fault] = []
    filled = _substituted(data, (), environ, unset)
    faults: list[Fault] = []
    models = _models(filled.get("models"), vendors, faults)
    config = _built(Config, {**filled, "models": models}, (), faults)
    faults += [*_alias_faults(filled), *_twin_faults(filled)]
    # A value that could not be filled in is not judged as well.
    faults = unset + [fault for fault in faults if not any(fault[0][: len(place)] == place for place, _ in unset)]
    if doubles or faults or config is None:
        raise ConfigError(path, [*doubles, *(f"{_shown(place)}: {message}" for place, message in faults)])
    return config


class _Loader(yaml.SafeLoader):
    """Of two equal keys in one mapping PyYAML silently keeps the last; this one notes them."""

    def __init__(self, text: str) -> None:
        self.doubles: list[str] = []
        super().__init__(text)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in first:
                self.doubles.append(f"line {line}: {key.value} is given twice, first on line {first[key.value]}")
            first.setdefault(key.value, line)
        return node


def _parsed(text: str, path: str) -> tuple[dict[Any, Any], list[str]]:
    """The file as plain values, and the keys that it has twice."""
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # Other quotes than those of tokens hold the file's own text, maybe a secret that begins with * or !.
        problem = re.sub(" '(?!<)[^']{2,}'", "", error.problem or "is not YAML")
        raise ConfigError(path, [at + problem]) from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(path, ["is not YAML: a control character, or a date or number that is none"]) from None
    if not isinstance(data, dict):
        raise ConfigError(path, ["must be a mapping with the key models; see config.example.yaml"])
    # A section whose keys are all commented out is null, and meant as left out.
    kept = {key: value for key, value in data.items() if value is not None or key not in Config.model_fields}
    return kept, loader.doubles


_VARIABLE = re.compile(r"\$(\$\{)|\$\{([^}]*)(\}?)")


def _substituted(value: Any, at: Place, environ: Mapping[str, str], unset: list[Fault]) -> Any:
    """`${NAME}` and `${NAME:-default}` replaced in texts, never in keys; `$${` is how to write `${`."""

    def variable(found: re.Match[str]) -> str:
        name, given, default = (found[2] or "").partition(":-")
        if found[1]:
            return found[1]
        if not found[3] or not re.fullmatch(r"[A-Za-z_]\w*", name):
            unset.append((at, "holds ${ without a NAME} or NAME:-default} after it; write $${ for the characters"))
        elif name in environ or given:
            # Like a shell's, the default also stands in for a variable that is set to nothing.
            return environ.get(name) or default
        else:
            unset.append((at, f"the environment variable {name} is not set"))
        return found[0]

    if isinstance(value, dict):
        return {key: _substituted(part, (*at, key), environ, unset) for key, part in value.items()}
    if isinstance(value, list):
        return [_substituted(part, (*at, index), environ, unset) for index, part in enumerate(value)]
    return _VARIABLE.sub(variable, value) if isinstance(value, str) else value


def _models(named: Any, vendors: Mapping[str, type[ModelOptions]], faults: list[Fault]) -> dict[str, ModelOptions]:
    """Each model by its vendor's own options; one with a fault is left out."""
    if not isinstance(named, dict) or not named:
        faults.append((("models",), "must be a mapping of names to bots, with one bot at least"))
        return {}
    models = {}
    for name, options in named.items():
        sane = isinstance(name, str) and re.fullmatch(r"\S+", name)
        if not sane:
            faults.append((("models", name), "a model's name must be text without blanks"))
        kind = _kind(options, vendors, ("models", name), faults)
        if kind and (model := _built(kind, options, ("models", name), faults)) and sane:
            models[name] = model
    return models


def _kind(
    options: Any, vendors: Mapping[str, type[ModelOptions]], at: Place, faults: list[Fault]
) -> type[ModelOptions] | None:
    if not isinstance(options, dict):
        faults.append((at, "must be a mapping of keys, with vendor among them"))
        return None
    vendor = str(options.get("vendor") or "")
    try:
        return vendors[vendor]
    except KeyError:
        problem = "unknown vendor" if vendor else "required key is missing"
        faults.append(((*at, "vendor"), problem + _nearest(vendor, vendors)))
    except (ImportError, AttributeError) as error:  # from an entry point of somebody else's
        faults.append(((*at, "vendor"), f"its adapter cannot be loaded: {error}"))
    return None


SectionT = TypeVar("SectionT", bound=Section)


def _built(kind: type[SectionT], data: Any, at: Place, faults: list[Fault]) -> SectionT | None:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        faults += [((*at, *fault["loc"]), _worded(fault, kind)) for fault in details]
        return None


_WORDS = {
    "missing": "required key is missing",
    "string_type": "must be text; put quotes around a number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
}


def _worded(fault: ErrorDetails, kind: type[BaseModel]) -> str:
    if fault["type"] == "extra_forbidden":
        *section, key = fault["loc"]
        return "unknown key" + _nearest(key, _keys(kind, section))
    own = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return _WORDS.get(fault["type"], own)


def _keys(kind: type[BaseModel], place: Iterable[str | int]) -> Iterable[str]:
    """The keys that a section may have, found by walking down from `kind`; indexes and free names are no steps."""
    for part in place:
        field = kind.model_fields.get(str(part))
        kind = next(_sections(field.annotation), kind) if field else kind
    return kind.model_fields


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _nearest(word: object, known: Iterable[str]) -> str:
    names = sorted(known)
    near = get_close_matches(str(word), names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(names)}"


def _shown(place: Place) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if part != "[key]")
    return "".join(parts).removeprefix(".") or "file"


# The checks below need more than one part of the file. They read the plain values, so that no other fault hides them.


def _entries(data: Mapping[str, Any], section: str) -> Iterator[tuple[str | int, Mapping[str, Any]]]:
    part = data.get(section)
    pairs = part.items() if isinstance(part, dict) else enumerate(part if isinstance(part, list) else ())
    return ((at, entry) for at, entry in pairs if isinstance(entry, dict))


def _texts(part: object) -> Iterator[tuple[int, str]]:
    return ((index, text) for index, text in enumerate(part if isinstance(part, list) else ()) if isinstance(text, str))


def _alias_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    taken = {name: f"the name of models.{name}" for name, _ in _entries(data, "models")}
    for name, options in _entries(data, "models"):
        for index, alias in _texts(options.get("aliases")):
            if alias in taken:
                yield ("models", name, "aliases", index), f"{alias} is already {taken[alias]}"
            taken.setdefault(alias, f"an alias of models.{name}")


def _twin_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Names may be shared, secrets may not: the name decides whose conversations a caller gets."""
    seen: dict[str, str | int] = {}
    for index, entry in _entries(data, "keys"):
        secret, digest = entry.get("key"), entry.get("key_sha256")
        mark = hashlib.sha256(secret.encode()).hexdigest() if isinstance(secret, str) else str(digest).lower()
        if (secret or digest) and seen.setdefault(mark, index) != index:
            yield ("keys", index), f"has the same secret as keys[{seen[mark]}]"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listening address. A name, localhost apart, may lead anywhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_exposure(config: Config, host: str) -> None:
    """ConfigError for a proxy that anybody in the network could use."""
    if not config.keys and not is_loopback(host):
        sentence = "would let everyone in who can reach it: add a key under `keys:` or listen on 127.0.0.1"
        raise ConfigError(f"host {host or '(all)'}", [sentence])


class _FileSchema(GenerateJsonSchema):
    """Lets `${NAME}` stand where the file wants a number, a truth value or one of a few words."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        plain = super().generate_inner(schema)
        if schema["type"] not in {"int", "float", "bool", "literal"}:
            return plain
        return {"anyOf": [plain, {"type": "string", "pattern": r"\$\{"}]}


def schema(vendors: Mapping[str, type[ModelOptions]]) -> dict[str, Any]:
    """JSON Schema of the file, for editors. Each vendor's models are told apart by their `vendor`."""
    kinds: set[type[BaseModel]] = {Config, ModelOptions, *vendors.values()}
    refs, shared = models_json_schema([(kind, "validation") for kind in kinds], schema_generator=_FileSchema)
    parts = shared["$defs"]
    found = {kind: parts.pop(ref["$ref"].rpartition("/")[2]) for (kind, _), ref in refs.items()}
    models = [
        {**found[kind], "properties": {**found[kind]["properties"], "vendor": {"const": vendor}}}
        for vendor, kind in vendors.items()
    ]
    whole = found[Config]
    whole["properties"]["models"]["additionalProperties"] = {"oneOf": models}
    whole["required"] = ["models"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "$defs": parts}
