"""A configuration becomes an ASGI application: the one place where bots, store, relay and doors meet."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from proxy.auth import Authenticate
from proxy.config import Config, is_loopback
from proxy.errors import ProxyError, ShuttingDown, StoreUnavailable
from proxy.messages import Key, TurnRecord
from proxy.openai.chat import Chat
from proxy.openai.completions import Text
from proxy.openai.door import Door, Limits, Whereabouts
from proxy.openai.errors import Envelope
from proxy.openai.models import ModelCard, ModelList, Models
from proxy.openai.request import parse, parse_completion
from proxy.ports import Bot, ConversationStore, RateCounter
from proxy.relay import Model, Relay, Rules
from proxy.stores import open_rates, open_store
from proxy.telemetry import PROBES, AccessLine, App, Receive, Scope, Send, log, log_turn
from proxy.vendors import load

if TYPE_CHECKING:
    from proxy.metrics import Metrics

LOOKED = 1.0  # seconds after which a worker looks again at what it is doing, for the metrics of all

EXPOSED_HEADERS = ["x-request-id", "openai-processing-ms", "x-should-retry", "retry-after"]
EXPOSED_HEADERS += [f"x-parley-{name}" for name in ("conversation", "reason", "usage", "ignored", "no-answer")]


class Proxy(Router):
    """The doors behind what all requests go through. Whoever ends it must wait for the replies of its `relay`.

    No Starlette: what that puts around a router answers faults, as Envelope does, and is paid for with every chunk.
    """

    relay: Relay


def create_app(config: Config, *, workers: int = 1) -> Proxy:
    """The whole proxy of a configuration, or one of so many that share it."""
    store = open_store(config.store, max_parked=config.conversation.max_parked)
    limited = any(key.requests_per_minute for key in config.keys)
    rates = open_rates(config.store, share=workers) if limited else None
    bots = {name: load(options.vendor)(options) for name, options in config.models.items()}
    return assemble(config, bots, store, rates)


def assemble(
    config: Config, bots: Mapping[str, Bot], store: ConversationStore, rates: RateCounter | None = None
) -> Proxy:
    """The doors in front of these bots, one for each configured model, and this store; it owns them from now on."""
    metrics = _metrics(config)

    def tell(record: TurnRecord) -> None:
        log_turn(record)
        if metrics is not None:
            metrics(record)

    relay = Relay(store, _rules(config), sink=tell)
    models = {name: Model(name, bot, config.models[name]) for name, bot in bots.items()}

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        await asyncio.gather(*(_start(name, bot) for name, bot in bots.items()))
        looking = asyncio.create_task(_keep_looking(metrics, relay)) if metrics is not None and metrics.shared else None
        yield
        await relay.drain(config.server.shutdown_grace)
        if looking is not None:
            looking.cancel()
        for bot in bots.values():
            await bot.aclose()
        await store.aclose()
        if rates is not None:
            await rates.aclose()

    app = Proxy(
        routes=[*_doors(config, relay, models), *_probes(relay, store), *_counters(config, metrics, relay)],
        middleware=_middleware(config, relay, rates),
        redirect_slashes=False,  # a redirected POST loses its body
        lifespan=lifespan,
    )
    app.relay = relay
    return app


async def _start(name: str, bot: Bot) -> None:
    try:
        await bot.start()
    except ProxyError as fault:
        log.error("not started: %s", fault.message, extra={"parley": {"model": name, "outcome": fault.code}})


def _rules(config: Config) -> Rules:
    settings = config.conversation
    secret = settings.secret.get_secret_value()
    return Rules(
        secret=blake2b(secret.encode(), digest_size=32).digest() if secret else None,
        idle_ttl=settings.idle_ttl,
        linger=settings.linger,
        marks=settings.marks,
        utility_prompts=settings.utility_prompts,
    )


def _doors(config: Config, relay: Relay, models: dict[str, Model]) -> list[Route]:
    table = Models(models, created=int(time.time()))
    conversation = config.conversation
    door = functools.partial(
        Door,
        relay=relay,
        models=table,
        whereabouts=Whereabouts(conversation.scope_headers, conversation.scope_metadata, conversation.user_headers),
        limits=Limits(config.server.max_body_bytes, config.server.heartbeat),
        log_content=config.server.log.content,
    )
    return [  # the busiest first, and in no router of their own: all around a stream is paid for with every chunk
        Route("/v1/chat/completions", door(parse, Chat), methods=["POST"]),
        Route("/v1/completions", door(parse_completion, Text), methods=["POST"]),
        Route("/v1/models", ModelList(table), methods=["GET"]),
        Route("/v1/models/{id:path}", ModelCard(table), methods=["GET"]),
    ]


def _keys(config: Config) -> list[Key]:
    return [Key(key.name, key.digest, key.models, key.requests_per_minute) for key in config.keys]


def _probes(relay: Relay, store: ConversationStore) -> list[Route]:
    reached = False

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        nonlocal reached
        if relay.draining:
            return JSONResponse({"status": "draining"}, 503)
        try:
            await store.secret()
        except StoreUnavailable:  # requests are answered all the same, but a new process had better wait for it
            status = {"status": "ok"} if reached else {"status": "starting"}
            return JSONResponse({**status, "store": "unreachable"}, 200 if reached else 503)
        reached = True
        return JSONResponse({"status": "ok"})

    return [Route("/healthz", alive), Route("/readyz", ready)]


def _metrics(config: Config) -> "Metrics | None":
    if not config.server.metrics:
        return None
    from proxy.metrics import Metrics  # noqa: PLC0415 - takes its time, and must know first whether workers share it

    return Metrics()


async def _keep_looking(metrics: "Metrics", relay: Relay) -> None:
    """Any worker may be asked what all of them are doing."""
    while True:
        metrics.look(relay.loads())
        await asyncio.sleep(LOOKED)


def _counters(config: Config, metrics: "Metrics | None", relay: Relay) -> list[Route]:
    if metrics is None:
        return []

    async def tell(request: Request) -> Response:
        metrics.look(relay.loads())
        return Response(metrics.text(), headers={"content-type": metrics.content_type})

    keyed = [] if is_loopback(config.server.host) else [Middleware(Authenticate, keys=_keys(config))]
    return [Route("/metrics", tell, middleware=keyed)]


def _middleware(config: Config, relay: Relay, rates: RateCounter | None) -> list[Middleware]:
    """Outermost first: names every request, lets browsers in, answers every fault, shuts the door, asks for keys."""
    layers = [Middleware(AccessLine)]
    if config.server.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.server.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            )
        )
    keyed = Middleware(Authenticate, keys=_keys(config), rates=rates, under="/v1/")
    return [*layers, Middleware(Envelope), Middleware(Gate, relay=relay), keyed]


class Gate:
    """ASGI middleware: while the proxy drains, nothing new comes in; the probes still answer."""

    def __init__(self, app: App, relay: Relay) -> None:
        self._app = app
        self._relay = relay

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if self._relay.draining and scope["type"] == "http" and scope["path"] not in PROBES:
            raise ShuttingDown("This proxy is shutting down; try again in a moment", retry_after=1)
        return self._app(scope, receive, send)  # not awaited here: who stands in between is woken with every chunk
