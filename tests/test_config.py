"""The configuration file: what is taken, what is refused, and in which words."""

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr, ValidationError, model_validator

from proxy.config import (
    UTILITY_PROMPTS,
    Config,
    ConfigError,
    ModelOptions,
    Section,
    check_exposure,
    is_loopback,
    load,
    read,
    schema,
    without_effect,
)

SECRET = "hush-hush-hush"


class Upload(Section):
    path: str = "/done"


class NewOaks(ModelOptions):
    vendor: Literal["newoaks"]
    secret_key: SecretStr
    chatbot_id: str
    upload: Upload | None = None


class Quickchat(ModelOptions):
    vendor: Literal["quickchat"]
    scenario_id: str
    token: SecretStr | None = None
    html: Literal["keep", "markdown"] = "markdown"

    @model_validator(mode="after")
    def _has_a_token(self) -> "Quickchat":
        if self.token is None:
            raise ValueError("needs a token")
        return self


VENDORS: Mapping[str, type[ModelOptions]] = {"newoaks": NewOaks, "quickchat": Quickchat}
SHOP = "models: {shop: {vendor: newoaks, secret_key: hush-hush-hush, chatbot_id: b1}}\n"


def loaded(text: str, environ: Mapping[str, str] | None = None) -> Config:
    return load(text, vendors=VENDORS, environ=environ or {})


def faults(text: str, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, environ)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.faults


def shop(keys: str) -> str:
    """A file with one bot that has these keys too."""
    return f"models:\n  shop:\n    vendor: newoaks\n    secret_key: {SECRET}\n    chatbot_id: b1\n    {keys}\n"


def options(config: Config, name: str = "shop") -> NewOaks:
    found = config.models[name]
    assert isinstance(found, NewOaks)
    return found


def test_defaults_are_those_of_the_interface() -> None:
    """A file with nothing but a bot gets the documented defaults."""
    config = loaded(SHOP)

    assert (config.server.host, config.server.port, config.server.max_body_bytes) == ("127.0.0.1", 8080, 10485760)
    assert (config.server.shutdown_grace, config.server.heartbeat, config.server.cors_origins) == (30, 10, ())
    assert (config.server.metrics, config.server.playground) == (True, "auto")
    assert (config.server.log.format, config.server.log.content) == ("json", False)
    assert (config.keys, config.store, config.responses.transcripts) == ((), "memory://", False)
    assert (config.conversation.idle_ttl, config.conversation.linger) == (3600, 10)
    assert config.conversation.secret.get_secret_value() == ""
    assert config.conversation.scope_headers == ("x-conversation-id", "x-openwebui-chat-id")
    assert config.conversation.scope_metadata == ("conversation_id", "chat_id", "thread_id")
    assert config.conversation.user_headers == ("x-openwebui-user-id",)
    assert (config.conversation.max_parked, config.conversation.marks) == (100_000, True)
    assert (options(config).tools, options(config).max_tokens, options(config).strict) == ("ignore", "cut", False)


def test_models_are_instances_of_their_vendors_options() -> None:
    """Each model becomes an instance of its own vendor's class, with the keys of that class."""
    config = loaded(shop("upload: {path: /x}\n  help: {vendor: quickchat, scenario_id: s, token: t}"))

    assert options(config).upload == Upload(path="/x")
    assert isinstance(config.models["help"], Quickchat)
    assert config.models["help"].html == "markdown"


def test_only_the_vendors_named_are_looked_up() -> None:
    """A mapping of vendors that imports on demand is asked for the named ones only."""
    asked = []

    class Lazy(Mapping[str, type[ModelOptions]]):
        def __getitem__(self, name: str) -> type[ModelOptions]:
            asked.append(name)
            return VENDORS[name]

        def __iter__(self) -> Iterator[str]:
            return iter(VENDORS)

        def __len__(self) -> int:
            return len(VENDORS)

    load(SHOP, vendors=Lazy(), environ={})

    assert asked == ["newoaks"]


def test_values_never_change() -> None:
    """A loaded configuration refuses to be written to."""
    config = loaded(SHOP)

    with pytest.raises(ValidationError):
        config.server.port = 1


@pytest.mark.parametrize("section", ["server", "keys", "conversation", "responses", "store"])
def test_a_section_left_empty_counts_as_left_out(section: str) -> None:
    """A section whose keys are all commented out gets its defaults."""
    assert loaded(f"{section}:\n{SHOP}") == loaded(SHOP)


# ${NAME}


@pytest.mark.parametrize(
    ("written", "environ", "read"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("a-${A}-${B}", {"A": "x", "B": "y"}, "a-x-y"),
        ("${A:-d}", {}, "d"),
        ("${A:-d}", {"A": ""}, "d"),
        ("${A:-d}", {"A": "x"}, "x"),
        ("${A:-http://h:1/?a-b}", {}, "http://h:1/?a-b"),
        ("z${A:-}", {}, "z"),
        ("$${A}", {"A": "x"}, "${A}"),
        ("$A $ {A}", {"A": "x"}, "$A $ {A}"),
        ("${A}", {"A": "${B}"}, "${B}"),
        ("${A}", {"A": "x\ny: 'z\" # {[&*!"}, "x\ny: 'z\" # {[&*!"),
    ],
)
def test_variables_are_replaced(written: str, environ: dict[str, str], read: str) -> None:
    """A variable's value takes its place as it is, whatever it holds, and is not looked at again."""
    assert options(loaded(shop(f"description: '{written}'"), environ)).description == read


def test_variables_are_converted() -> None:
    """A variable may stand for a number or a truth value, in lists and deeper sections too."""
    text = "server: {port: '${P}', metrics: '${M}', playground: '${M}', cors_origins: ['${O}']}\n"
    text += shop("breaker: {pause: '${F:-1.5}'}")

    config = loaded(text, {"P": "81", "M": "false", "O": "http://a"})

    assert (config.server.port, config.server.metrics, config.server.playground) == (81, False, False)
    assert config.server.cors_origins == ("http://a",)
    assert options(config).breaker.pause == 1.5


def test_all_missing_variables_are_named_at_once() -> None:
    """Each variable that is not set is named with its place, and its value is not judged besides."""
    text = "server: {port: '${PORT}'}\nkeys: [{name: a, key: '${ONE}${TWO}'}]\n" + shop("timeout: '${T}'")

    assert faults(text) == (
        "server.port: the environment variable PORT is not set",
        "keys[0].key: the environment variable ONE is not set",
        "keys[0].key: the environment variable TWO is not set",
        "models.shop.timeout: the environment variable T is not set",
    )


def test_a_missing_variable_is_not_a_missing_key() -> None:
    """A credential whose variable is not set is told once, and not as one that was left out."""
    text = "models: {help: {vendor: quickchat, scenario_id: s, token: '${TOKEN}'}}"

    assert faults(text) == ("models.help.token: the environment variable TOKEN is not set",)


@pytest.mark.parametrize("written", ["${", "${}", "${A", "${1A}", "${A-b}", "${A b}", "${:-x}"])
def test_a_malformed_variable_is_a_fault(written: str) -> None:
    """A `${` that is no variable is a fault that tells how to write the characters."""
    message = (
        "models.shop.description: holds ${ without a NAME} or NAME:-default} after it; write $${ for the characters"
    )

    assert faults(shop(f"description: '{written}'"), {"A": SECRET}) == (message,)


def test_keys_are_not_replaced() -> None:
    """A variable in a key stays text."""
    assert options(loaded(shop("headers: {x-a: '${A}'}"), {"A": "1"})).headers == {"x-a": "1"}
    assert faults(shop("'${A}': 1"), {"A": "description"})[0].startswith("models.shop.${A}: unknown key")


# YAML


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("models: [a\nb: c", "line 2, column 2: expected ',' or ']', but got ':'"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: *hush-hush-hush", "line 1, column 4: found undefined alias"),
        ("a: !hush-hush-hush b", "line 1, column 4: could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
        ("a: \x01", "is not YAML: a control character, or a date that is none"),
        ("a: 2026-13-45", "is not YAML: a control character, or a date that is none"),
        ("", "must be a mapping with the key models; see config.example.yaml"),
        ("[models]", "must be a mapping with the key models; see config.example.yaml"),
        ("models", "must be a mapping with the key models; see config.example.yaml"),
    ],
)
def test_what_is_not_yaml_is_refused(text: str, fault: str) -> None:
    """A text that is no YAML mapping is refused with line and column, and without what it holds."""
    assert faults(text) == (fault,)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("server:\n  port: 1\n  log: {format: text, format: json}\n", "line 3, column 23: format is given twice"),
        ("server:\n  port: 1\n  host: h\n  port: 2\n", "line 4, column 3: port is given twice"),
        ("server: {port: 1}\nserver: {prot: 1}\n", "line 2, column 1: server is given twice"),
    ],
)
def test_a_key_given_twice_is_a_fault(text: str, fault: str) -> None:
    """Two equal keys in one mapping are a fault at any depth, told with line and column as what is no YAML."""
    assert faults(text + SHOP) == (fault,)


def test_merged_keys_are_not_twins() -> None:
    """A key that overrides one of a merged mapping is no fault."""
    text = "models:\n  a: &a {vendor: newoaks, secret_key: s, chatbot_id: b}\n  c: {<<: *a, chatbot_id: d}\n"

    assert [options(loaded(text), name).chatbot_id for name in "ac"] == ["b", "d"]


# Faults and their words


def test_every_fault_is_told_at_once() -> None:
    """The message is a list: the file, the number of faults, a line for each with its path."""
    text = (
        "server: {prot: 1}\nkeys: [{name: a}]\nstore: mysql://x\nmodels:\n  a: {vendor: newoaks}\n  b: {vendor: oaks}\n"
    )

    with pytest.raises(ConfigError) as caught:
        load(text, vendors=VENDORS, environ={}, path="/etc/parley.yaml")

    assert str(caught.value).splitlines() == [
        "/etc/parley.yaml: 6 faults",
        "  server.prot: unknown key; did you mean port?",
        "  keys[0]: needs either key or key_sha256, and not both",
        "  store: must be memory://, sqlite:///relative.db, sqlite:////absolute/path.db, redis://… or rediss://…",
        "  models.a.secret_key: required key is missing",
        "  models.a.chatbot_id: required key is missing",
        "  models.b.vendor: must be one of newoaks, quickchat",
    ]


def test_a_single_fault_is_singular() -> None:
    """One fault is announced as one."""
    with pytest.raises(ConfigError, match=r"^config\.yaml: 1 fault\n  models: "):
        loaded("models: {}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("servers: {}", "servers: unknown key; did you mean server?"),
        ("servers:", "servers: unknown key; did you mean server?"),
        ("zzz: 1", "zzz: unknown key; did you mean store?"),
        ("server: {log: {fromat: text}}", "server.log.fromat: unknown key; did you mean format?"),
        ("keys: [{name: a, key: k, model: []}]", "keys[0].model: unknown key; did you mean models?"),
        ("server: 12", "server: must be a mapping of keys"),
        ("server: {log: }", "server.log: must be a mapping of keys"),
        ("server: {port: 65536}", "server.port: must be less than or equal to 65535"),
        ("server: {port: http}", "server.port: must be a valid integer, unable to parse string as an integer"),
        ("server: {host: 12}", "server.host: must be text; put quotes around a number"),
        ("server: {metrics: perhaps}", "server.metrics: must be a valid boolean, unable to interpret input"),
        ("server: {playground: perhaps}", "server.playground: must be True, False or 'auto'"),
        ("server: {heartbeat: 0}", "server.heartbeat: must be greater than 0"),
        ("server: {heartbeat: .inf}", "server.heartbeat: must be a finite number"),
        ("server: {cors_origins: http://a}", "server.cors_origins: must be a list"),
        (
            "server: {cors_origins: [http://a/]}",
            "server.cors_origins[0]: must be like https://host:port, without a path",
        ),
        ("server: {log: {format: xml}}", "server.log.format: must be 'json' or 'text'"),
        ("conversation: {idle_ttl: -1}", "conversation.idle_ttl: must be greater than 0"),
        ("conversation: {secret: 12}", "conversation.secret: must be text; put quotes around a number"),
        ("conversation: {scope_headers: ['x y']}", "conversation.scope_headers[0]: is no name of a header"),
        ("conversation: {scope_metadata: ['']}", "conversation.scope_metadata[0]: must be a name without blanks"),
        (
            "conversation: {utility_prompts: [a, '*']}",
            "conversation.utility_prompts[1]: must be a valid regular expression",
        ),
        ("keys: {}", "keys: must be a list"),
        ("keys: [a]", "keys[0]: must be a mapping of keys"),
        ("keys: [{key: k}]", "keys[0].name: required key is missing"),
        ("keys: [{name: '', key: k}]", "keys[0].name: must be one line of text, without blanks around it"),
        ("keys: [{name: a, key: k, models: ['']}]", "keys[0].models[0]: is no pattern: * ? [abc], without blanks"),
        ("keys: [{name: a, key: k, models: ['a[b']}]", "keys[0].models[0]: is no pattern: * ? [abc], without blanks"),
        ("keys: [{name: a, key: k, models: '*'}]", "keys[0].models: must be a list"),
        (
            "keys: [{name: a, key: k, requests_per_minute: 0}]",
            "keys[0].requests_per_minute: must be greater than or equal to 1",
        ),
        ("keys: [{name: a, key_sha256: hush-hush-hush}]", "keys[0].key_sha256: must be 64 hexadecimal digits"),
        (
            f"keys: [{{name: a, key: k, key_sha256: {'ab' * 32}}}]",
            "keys[0]: needs either key or key_sha256, and not both",
        ),
        (
            "keys: [{name: a, key: '${EMPTY:-}'}]",
            "keys[0].key: must be visible ASCII without blanks, and not empty",
        ),
        (
            "keys: [{name: a, key: 'hush-hush-hush '}]",
            "keys[0].key: must be visible ASCII without blanks, and not empty",
        ),
        ("keys: [{name: a, key: 12}]", "keys[0].key: must be text; put quotes around a number"),
    ],
)
def test_a_fault_names_its_place(text: str, fault: str) -> None:
    """A fault in a section is told by its path and in words for people."""
    assert faults(f"{text}\n{SHOP}") == (fault,)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("secret_keey: x", "secret_keey: unknown key; did you mean secret_key?"),
        ("upload: {pth: x}", "upload.pth: unknown key; did you mean path?"),
        ("breaker: {failure: 1}", "breaker.failure: unknown key; did you mean failures?"),
        ("timeout: 0", "timeout: must be greater than 0"),
        ("idle_ttl: 0", "idle_ttl: must be greater than 0"),
        ("aliases: gpt", "aliases: must be a list"),
        ("aliases: ['a b']", "aliases[0]: must be a name without blanks"),
        ("headers: [a]", "headers: must be a mapping of keys"),
        ("headers: {'a b': c}", "headers.a b: is no name of a header"),
        ('headers: {a: "hush-hush-hush\\nb"}', "headers.a: must hold visible ASCII and blanks only"),
        ("recap: maybe", "recap: must be 'forward', 'ignore' or 'refuse'"),
        (
            "base_url: h.example",
            "base_url: must be like https://host/path, without user, password, query or fragment",
        ),
        (
            "base_url: https://user:hush-hush-hush@h.example/",
            "base_url: must be like https://host/path, without user, password, query or fragment",
        ),
    ],
)
def test_a_fault_of_a_model_names_its_place(keys: str, fault: str) -> None:
    """A fault in a bot's entry is told by its path, unknown keys with the nearest one of its vendor."""
    assert faults(shop(keys)) == (f"models.shop.{fault}",)


@pytest.mark.parametrize(
    ("models", "fault"),
    [
        ("", "models: must not be empty"),
        ("{}", "models: must not be empty"),
        ("[a]", "models: must be a mapping of keys"),
        ("{a: }", "models.a: must be a mapping of keys"),
        ("{a: {}}", "models.a.vendor: must be one of newoaks, quickchat"),
        ("{a: {vendor: quikchat}}", "models.a.vendor: must be one of newoaks, quickchat"),
        ("{a: {vendor: [x]}}", "models.a.vendor: must be one of newoaks, quickchat"),
        ("{a: {vendor: quickchat, scenario_id: s}}", "models.a: needs a token"),
        ("{a: {vendor: quickchat, token: t, scenario_id: ''}}", "models.a.scenario_id: must not be empty"),
        (
            "{a: {vendor: newoaks, chatbot_id: b, secret_key: '${EMPTY:-}'}}",
            "models.a.secret_key: must not be empty",
        ),
        (
            "{a: {vendor: newoaks, chatbot_id: 12, secret_key: s}}",
            "models.a.chatbot_id: must be text; put quotes around a number",
        ),
        (
            "{'a b': {vendor: newoaks, chatbot_id: b, secret_key: s}}",
            "models.a b: must be a name without blanks",
        ),
        (
            "{'': {vendor: newoaks, chatbot_id: b, secret_key: s}}",
            "models.: must be a name without blanks",
        ),
        (
            "{12: {vendor: newoaks, chatbot_id: b, secret_key: s}}",
            "models[12]: must be text; put quotes around a number",
        ),
    ],
)
def test_a_model_without_a_usable_entry_is_a_fault(models: str, fault: str) -> None:
    """A bot needs a name, a vendor that there is, and what this vendor requires."""
    assert faults(f"models: {models}") == (fault,)


def test_an_adapter_that_cannot_be_loaded_is_a_fault() -> None:
    """A vendor whose module fails to import is told like any other fault."""

    class Broken(dict[str, type[ModelOptions]]):
        def __missing__(self, name: str) -> type[ModelOptions]:
            raise ModuleNotFoundError("No module named 'acme'")

    with pytest.raises(ConfigError) as caught:
        load("models: {a: {vendor: acme}}", vendors=Broken(), environ={})

    assert caught.value.faults == ("models.a.vendor: its adapter cannot be loaded: No module named 'acme'",)


def test_aliases_do_not_collide() -> None:
    """An alias that is a model's name, or an alias already, is a fault."""
    bot = "vendor: newoaks, secret_key: s, chatbot_id: b"
    text = f"models:\n  a: {{{bot}, aliases: [b, x]}}\n  b: {{{bot}, aliases: [x, y, y]}}\n"

    assert faults(text) == (
        "models.a.aliases[0]: is the same name as models.b",
        "models.b.aliases[0]: is the same name as models.a.aliases[1]",
        "models.b.aliases[2]: is the same name as models.b.aliases[1]",
    )


def test_collisions_are_told_beside_other_faults() -> None:
    """A collision of names or secrets is told in the same message as whatever else is wrong."""
    text = f"server: {{port: 99999}}\nkeys: [{{name: a, key: {SECRET}}}, {{name: '', key: {SECRET}}}]\n"

    told = faults(text + SHOP.replace("vendor: newoaks", "vendor: newoaks, aliases: [shop], x: 1"))

    assert len(told) == 5
    assert "keys[1]: has the same secret as keys[0]" in told


def test_two_keys_never_share_a_secret() -> None:
    """Two keys with one secret are a fault, also where one is given by its digest."""
    digest = sha256(SECRET.encode()).hexdigest().upper()
    text = f"keys: [{{name: a, key: {SECRET}}}, {{name: b, key: other}}, {{name: c, key_sha256: {digest}}}]\n"

    assert faults(text + SHOP) == ("keys[2]: has the same secret as keys[0]",)


# What keys, stores and prompts come out as


def test_a_key_is_known_by_its_digest() -> None:
    """Both ways of giving a key lead to the SHA-256 of its secret, and two may share a name."""
    digest = sha256(b"other").hexdigest()
    config = loaded(f"keys: [{{name: a b, key: {SECRET}}}, {{name: a b, key_sha256: {digest}}}]\n" + SHOP)

    assert [key.digest for key in config.keys] == [sha256(SECRET.encode()).digest(), bytes.fromhex(digest)]
    assert [key.models for key in config.keys] == [("*",), ("*",)]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("sqlite:////var/a.db", "sqlite:////var/a.db"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://u:hush-hush-hush@h:1/2?password=hush-hush-hush", "rediss://h:1/2"),
    ],
)
def test_a_store_is_shown_without_its_password(url: str, shown: str) -> None:
    """The URL of a store is kept whole, and can be shown without credentials."""
    config = loaded(f"store: {url}\n{SHOP}")

    assert (config.store, config.store_shown) == (url, shown)


@pytest.mark.parametrize("url", ["memory", "memory://x", "sqlite://a.db", "sqlite:///", "redis://", "mysql://h", "''"])
def test_other_stores_are_refused(url: str) -> None:
    """The URL of a store that there is not is a fault."""
    assert faults(f"store: {url}\n{SHOP}")[0].startswith("store: must be memory://, ")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/x", "https://bots.example.com", "https://[::1]:8443/v1/"])
def test_an_address_is_taken_as_it_is(url: str) -> None:
    """A usable base URL is kept to the letter; an empty one leaves the choice to the adapter."""
    assert options(loaded(shop(f"base_url: '{url}'"))).base_url == url


def test_header_names_are_compared_without_case() -> None:
    """Names of headers are kept in lower case."""
    config = loaded("conversation: {scope_headers: [X-Chat]}\n" + shop("headers: {X-Team: A}"))

    assert config.conversation.scope_headers == ("x-chat",)
    assert options(config).headers == {"x-team": "A"}


@pytest.mark.parametrize(
    ("text", "utility"),
    [
        ("### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.", True),
        ("### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history", True),
        ("### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might ask", True),
        ("### Task:\nAnalyze the chat history to determine the necessity of generating search queries", True),
        ("### Task:\nYou are an autocompletion system. Continue the text in `<text>`", True),
        ("Provide a concise, 5-word-or-less title for the conversation, using title case conventions.", True),
        ("Analyze this conversation and provide:\n1. The detected language of the conversation\n2. A title", True),
        ("Please generate a four to five word title summarizing our conversation without any lead-in", True),
        ("### Task:\nRespond to the user query using the provided context, incorporating inline citations", False),
        ("Please generate a title for my book", False),
        ("Analyze this conversation and provide: a summary", False),
        ("What does `### Task:\nGenerate` mean?", False),
    ],
)
def test_the_shipped_prompts_know_chat_uis(text: str, utility: bool) -> None:
    """The shipped patterns find the prompts of chat UIs, and neither people's questions nor retrieval prompts."""
    prompts = loaded(SHOP).conversation.utility_prompts

    assert [prompt.pattern for prompt in prompts] == list(UTILITY_PROMPTS)
    assert any(prompt.search(text) for prompt in prompts) is utility


def test_nothing_shows_a_secret() -> None:
    """A configuration's repr holds no credential, wherever one may stand."""
    text = f"keys: [{{name: a, key: {SECRET}}}, {{name: b, key_sha256: {'ab' * 32}}}]\nstore: redis://:{SECRET}@h/0\n"
    text += f"conversation: {{secret: {SECRET}}}\n" + shop(f"headers: {{x-key: {SECRET}}}")

    shown = repr(loaded(text))

    assert SECRET not in shown
    assert "abab" not in shown


# Files, hosts, schema


def test_a_file_is_read(tmp_path: Path) -> None:
    """A file's faults are told under its own path."""
    path = tmp_path / "parley.yaml"
    path.write_text(SHOP + "store: ünknown", encoding="utf-8")

    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: 1 fault\n  store: "):
        read(path, VENDORS, {})
    path.write_text(SHOP, encoding="utf-8")
    assert read(path, VENDORS, {}) == loaded(SHOP)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """Without a file the message names the two ways to go on."""
    with pytest.raises(ConfigError, match=r"no such file: make one with `cp config\.example\.yaml .*`parley demo`"):
        read(tmp_path / "config.yaml", VENDORS, {})


def test_an_unreadable_file_is_a_fault(tmp_path: Path) -> None:
    """A folder, or bytes that are no text, are refused without a traceback."""
    (tmp_path / "config.yaml").write_bytes(b"a: \xff")

    with pytest.raises(ConfigError, match="cannot be read: 'utf-8' codec"):
        read(tmp_path / "config.yaml", VENDORS, {})
    with pytest.raises(ConfigError, match=r"cannot be read: .*Is a directory"):
        read(tmp_path, VENDORS, {})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("my-laptop", False),
        ("127.0.0.1.example.com", False),
        ("127.1", False),
    ],
)
def test_an_open_proxy_stays_on_loopback(host: str, loopback: bool) -> None:
    """Without keys only this machine's own addresses may be listened on; with a key any."""
    assert is_loopback(host) is loopback
    check_exposure(loaded("keys: [{name: a, key: k}]\n" + SHOP), host)
    if loopback:
        check_exposure(loaded(SHOP), host)
    else:
        with pytest.raises(ConfigError, match=r"add a key under `keys:` or listen on 127\.0\.0\.1"):
            check_exposure(loaded(SHOP), host)


def schema_of(name: str) -> dict[str, Any]:
    whole = schema(VENDORS)
    bots = [whole["$defs"][bot["$ref"].rpartition("/")[2]] for bot in models_of(whole)]
    found = [bot for bot in bots if bot["properties"]["vendor"]["const"] == name]
    assert len(found) == 1
    return dict(found[0])


def models_of(whole: dict[str, Any]) -> list[dict[str, str]]:
    return list(whole["properties"]["models"]["additionalProperties"]["anyOf"])


def test_the_schema_knows_each_vendor() -> None:
    """The schema has one form of a bot per vendor, with its keys and no others."""
    assert schema_of("newoaks")["required"] == ["vendor", "secret_key", "chatbot_id"]
    assert schema_of("newoaks")["additionalProperties"] is False
    assert "token" in schema_of("quickchat")["properties"]
    assert schema(VENDORS)["required"] == ["models"]


def test_the_schema_lets_variables_stand_for_numbers() -> None:
    """The schema takes `${NAME}` where the file wants a number or one of a few words."""
    variable = {"type": "string", "pattern": r"\$\{"}

    assert variable in schema_of("newoaks")["properties"]["timeout"]["anyOf"]
    assert variable in schema_of("newoaks")["properties"]["recap"]["anyOf"]
    assert variable in schema(VENDORS)["$defs"]["Server"]["properties"]["port"]["anyOf"]


def test_the_schema_is_whole() -> None:
    """The schema is JSON, and every reference in it leads somewhere."""
    whole = schema(VENDORS)
    text = json.dumps(whole)

    assert set(re.findall(r'"#/\$defs/(\w+)"', text)) <= set(whole["$defs"])


def test_keys_without_effect_are_named() -> None:
    """A key that was set although nothing looks at it yet is named; one left at its default is not."""
    text = "server: {playground: false}\n"
    bot = SHOP.replace("vendor: newoaks", "vendor: newoaks, queue: 0, tools: emulate")

    assert list(without_effect(loaded(text + bot))) == ["server.playground", "models.shop.tools"]
    assert list(without_effect(loaded(SHOP))) == []


def test_keys_of_one_name_share_a_rate() -> None:
    """Keys that share a name are counted together, so their limits must be the same."""
    keys = "keys: [{name: a, key: x, requests_per_minute: 5}, {name: a, key: y, requests_per_minute: 6}]\n"
    with pytest.raises(ConfigError, match="keys: the keys named a must all have the same requests_per_minute"):
        loaded(keys + SHOP)

    assert len(loaded(keys.replace("6", "5") + SHOP).keys) == 2
