"""Configuration files: a list of faults that shows no value, or a configuration that bots can be made of."""

import re
from random import Random
from typing import Any

import httpx2
import yaml

from proxy import vendors
from proxy.config import Config, ConfigError, ModelOptions, check_exposure, load, without_effect
from tests.fuzz.target import Target

FROM_OUTSIDE = "wren-in-env"  # the value of ${SECRET}
WRITTEN = "wren-in-file"  # a value in the file itself
ENVIRON = {"SECRET": FROM_OUTSIDE, "EMPTY": "", "PORT": "8081", "YES": "true", "ODD": "a b\n\u2028"}


class Vendors(dict[str, type[ModelOptions]]):
    """As the commands look them up."""

    def __missing__(self, name: str) -> type[ModelOptions]:
        if name not in KNOWN:
            raise KeyError(name)
        return self.setdefault(name, vendors.load(name).Options)


KNOWN = frozenset(vendors.names())
VENDORS = Vendors()


def config(data: bytes) -> None:
    """Whatever the file holds, it is taken whole or refused in words that keep its secrets."""
    written = data.decode(errors="replace")
    try:
        found = load(written, vendors=VENDORS, environ=ENVIRON)
    except ConfigError as fault:
        refused(fault, written)
    else:
        usable(found)


def refused(fault: ConfigError, text: str) -> None:
    told = str(fault)
    told.encode()
    assert fault.faults
    assert all(fault.faults)
    told = re.sub(r"the keys named .* must all", "", told)  # a name that somebody chose to be told
    assert FROM_OUTSIDE not in told
    if WRITTEN in told and " is given twice" not in told:
        assert WRITTEN in keys(text)


def keys(text: str) -> str:
    """All keys of a file, which faults may name."""
    try:
        return "\n".join(names(yaml.safe_load(text)))
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""


def names(part: Any) -> list[str]:
    if isinstance(part, dict):
        return [name for key, inner in part.items() for name in (str(key), *names(inner))]
    return [name for inner in part for name in names(inner)] if isinstance(part, list) else []


def usable(found: Config) -> None:
    """What was taken can be shown, and its bots can be made, without their credentials in sight."""
    assert found.models
    list(without_effect(found))
    assert ":" in found.store_shown
    try:
        check_exposure(found, found.server.host)
    except ConfigError:
        assert not found.keys
    for key in found.keys:
        assert len(key.digest) == 32
        assert not {WRITTEN, FROM_OUTSIDE} & set(re.findall(r"[\w-]+", f"{key!r}".replace(key.name, "")))
    for options in list(found.models.values())[:1]:
        bot = vendors.load(options.vendor)(options, transport=NOWHERE)
        for secret in options.credential.values():  # type: ignore[attr-defined] # of VendorOptions
            value = secret.get_secret_value()
            if value in (WRITTEN, FROM_OUTSIDE) and value not in f"{options.base_url} {bot.options.bot_id}":
                assert value not in f"{bot.identity} {bot!r}"
        assert httpx2.URL(options.base_url + "/chat").host
        assert "@" not in options.base_url


NOWHERE = httpx2.MockTransport(lambda request: httpx2.Response(200))

SECTIONS = {
    "server": "host port max_body_bytes shutdown_grace heartbeat cors_origins metrics playground log",
    "conversation": "idle_ttl secret scope_headers scope_metadata user_headers linger max_parked marks utility_prompts",
    "responses": "transcripts",
}
ENTRY = "description aliases base_url headers timeout connect_timeout max_connections queue breaker idle_ttl recap html"
CREDENTIALS = {
    "newoaks": {"secret_key": "${SECRET}", "chatbot_id": "b"},
    "quickchat": {"scenario_id": "s", "token": WRITTEN},
    "askhandle": {"token": "${SECRET}"},
    "misterturing": {"api_key": WRITTEN, "assistant_id": "a"},
}
OWN = (
    "secret_key chatbot_id scenario_id token api_key kb_topic client_metadata username password nickname poll_interval "
)
OWN += "assistant_id framing auth_template deploy system_prompt tools"
SCALARS = [
    "1",
    "0",
    "-1",
    "8080",
    "65536",
    "true",
    "no",
    "null",
    "",
    "~",
    "1.5",
    ".inf",
    ".nan",
    "1e3",
    '"*"',
    "auto",
    "json",
]
SCALARS += [
    "${SECRET}",
    "${EMPTY}",
    "${PORT}",
    "${YES}",
    "${NONE}",
    "${NONE:-x}",
    "$${x}",
    "${",
    "${ODD}",
    "a${SECRET}b",
]
SCALARS += [
    WRITTEN,
    f'"{WRITTEN}',
    f"*{WRITTEN}",
    f"!{WRITTEN} x",
    f"&a {WRITTEN}",
    "2024-13-40",
    "2024-01-01",
    "0x1F",
    "1:2:3",
]
SCALARS += [
    "http://h/x",
    f"http://u:{WRITTEN}@h",
    "https://[",
    "http://h:99999",
    "http://é/",
    "::1",
    "localhost",
    "0.0.0.0",
]
SCALARS += [
    "redis://[",
    f"redis://:{WRITTEN}@h/0",
    "sqlite:///x.db",
    "memory://",
    "'{key}'",
    "'('",
    "newoaks",
    "x" * 70,
]
SCALARS += [
    "[]",
    "{}",
    "[a, a]",
    "[1, ${SECRET}]",
    "{a: 1}",
    f"{{x-a: {WRITTEN}}}",
    "[[1]]",
    "[{}]",
    "a" * 64,
    "[http://h, '*']",
]
SCALARS += [
    "{failures: 0, pause: 1}",
    "{format: text, content: true}",
    "|\n     x",
    '"\\x00"',
    '"\\ud800"',
    "'é 🙂'",
    "!!binary aGk=",
]


SOUND = {
    **dict.fromkeys(["port", "queue", "max_parked", "max_connections", "max_body_bytes"], "${PORT}"),
    **dict.fromkeys(["idle_ttl", "linger", "timeout", "connect_timeout", "heartbeat", "poll_interval"], "1.5"),
    **dict.fromkeys(["metrics", "playground", "marks", "transcripts", "strict"], "${YES}"),
    **dict.fromkeys(["cors_origins", "scope_metadata", "aliases", "utility_prompts"], "[a://b]"),
    **dict.fromkeys(["scope_headers", "user_headers"], "[x-a]"),
    "host": "::1",
    "log": "{format: text, content: true}",
    "secret": "${SECRET}",
    "store": f"redis://:{WRITTEN}@h/0",
    "models": "['*']",
    "requests_per_minute": "5",
    "base_url": "http://h/x",
    "headers": f"{{x-a: {WRITTEN}}}",
    "breaker": "{failures: 0, pause: 1}",
    "html": "markdown",
    "recap": "refuse",
}


def text(rng: Random, name: str) -> str:
    """What may stand under a key; now and then anything."""
    return SOUND[name] if name in SOUND and rng.random() < 0.8 else rng.choice(SCALARS)


def entry(rng: Random, indent: str) -> list[str]:
    vendor = rng.choice([*CREDENTIALS])
    lines = {"vendor": vendor, **CREDENTIALS[vendor]}
    for name in rng.choices((ENTRY + " " + OWN).split(), k=int(rng.random() ** 2 * 4)):
        lines[name] = text(rng, name)
    if rng.random() < 0.05:
        lines.pop(rng.choice([*lines]))
    if rng.random() < 0.1:
        lines[rng.choice([*lines]) + rng.choice(["s", ""])] = rng.choice(SCALARS)
    return [f"{indent}{name}: {told}" for name, told in lines.items()]


def file(rng: Random) -> bytes:
    """Sections with some of their keys, keys, and bots of the four vendors; sometimes a line is lost or bent."""
    lines: list[str] = []
    for section, known in SECTIONS.items():
        if rng.random() < 0.15:
            chosen = rng.choices(known.split(), k=1 + int(rng.random() * 2))
            lines += [f"{section}:", *(f"  {name}: {text(rng, name)}" for name in chosen)]
    if rng.random() < 0.2:
        lines += [f"store: {text(rng, 'store')}"]
    if rng.random() < 0.2:
        lines += ["keys:"]
        for _ in range(1 + int(rng.random() * 3)):
            lines += [f"  - name: {rng.choice(['a', 'b', 'c', rng.choice(SCALARS)])}"]
            secret = rng.choice(
                ["key: k1", "key: k2", f"key: {WRITTEN}", f"key_sha256: {'a' * 64}", f"key: {rng.choice(SCALARS)}"]
            )
            name = rng.choice(["models", "requests_per_minute"])
            lines += [f"    {secret}", f"    {name}: {text(rng, name)}"]
    lines += ["models:"]
    for number in range(1 + int(rng.random() * 1.3)):
        lines += [f"  bot{number}:", *entry(rng, "    ")]
    if rng.random() < 0.15:
        at = int(rng.random() * len(lines))
        lines[at : at + 1] = rng.choice(
            [[], [lines[at]] * 2, [lines[at][1:]], [lines[at] + ":"], [rng.choice(SCALARS)]]
        )
    return "\n".join(lines).encode()


TOKENS = [found.encode() for found in SCALARS] + [
    b"\n",
    b"\n  ",
    b": ",
    b"- ",
    b"\t",
    b"#",
    b"&a",
    b"*a",
    b"<<: *a",
    b"? ",
]
TOKENS += [
    b"[",
    b"]",
    b"{",
    b"}",
    b"'",
    b'"',
    b"|",
    b">",
    b"!",
    b"%",
    b"@",
    b"`",
    b"---\n",
    b"...\n",
    b"\x00",
    b"\xff",
    b"\xe2\x80\xa8",
]
TOKENS += [f"  {name}: ".encode() for name in (*ENTRY.split(), *OWN.split(), *" ".join(SECTIONS.values()).split())]
TARGETS = [
    Target("config", config, file, TOKENS, ["proxy/config.py", "proxy/vendors/base.py", "proxy/vendors/quickchat.py"])
]
