"""The vendors' HTTP APIs, pretended: written only from the vendors' documents and strict about them. Knows no adapter.

    simulator = Simulator(latency=0.3, gap=0.02)   # seconds before a reply's first byte / between pieces of a stream
    uvicorn.run(simulator.app)                      # any ASGI server; or httpx2.ASGITransport(simulator.app)

One attribute per vendor, each under its own prefix (`base_url = http://HOST:PORT/PREFIX`):

    attribute         prefix             credentials                       operations
    newoaks           /newoaks           secret_key chatbot_id             open ask
    quickchat         /quickchat         token scenario_id                 ask
    quickchat_legacy  /quickchat-legacy  api_key scenario_id               ask
    askhandle         /askhandle/api/v1  token, or username password       token open ask poll
    misterturing      /misterturing/v4.0 api_key assistant_id              open ask create deploy

What every vendor has:

    .conversations    {handle: Conversation}; .entries [Entry(role "user"|"bot", text, fields)], .heard, .forgotten
    .calls            [Call(method, path, operation, status, headers, hung_up)], oldest first
    .violations       what the documents forbid and was done. Assert that it stays []
    .hung_up          how many callers left before their answer had been sent whole
    .latency .gap     seconds, may be changed at any time
    .fail .release    let a fault happen, end those that wait
    .forget .reset    the vendor forgets its conversations; everything is as new, but for the modes

Faults (used up one per call of the operation, by calls that are in order only):

    not taken in by the bot   forgotten limited limited-date unauthorized refused unavailable request-timeout
    taken in, answer lost     failed gateway-timeout
    late                      slow (before the first byte) stall (in the midst)
    spoilt                    garbled html wrong-type truncated cut-off (needs a real server) invalid-utf8 redirect
    reply is                  empty ("") null blank (white space) huge endless
    NewOaks also              envelope-failed envelope-limited envelope-unauthorized (HTTP 200, Success false),
                              error-in-stream summary-extends summary-differs summary-missing
    Quickchat also            new-id hand-off (reply null, from then on)
    AskHandle also            terminated hand-off (no answer, from then on)

A message whose last line is `fault KIND` meets that fault.
Each vendor's class tells its modes, `bot.answer` what the bot says and how it is told to say something.
"""

from starlette.applications import Starlette
from starlette.routing import Mount

from proxy.simulator.askhandle import AskHandle
from proxy.simulator.misterturing import MisterTuring
from proxy.simulator.newoaks import NewOaks
from proxy.simulator.quickchat import Quickchat, QuickchatLegacy
from proxy.simulator.vendor import Vendor

__all__ = ["Simulator", "Vendor"]


BASES = {"askhandle": "/api/v1", "misterturing": "/v4.0"}
"""What belongs to a vendor's base URL besides the host."""


class Simulator:
    """All vendors in one ASGI app."""

    def __init__(self, latency: float = 0.0, gap: float = 0.0) -> None:
        self.newoaks = NewOaks(latency, gap)
        self.quickchat = Quickchat(latency, gap)
        self.quickchat_legacy = QuickchatLegacy(latency, gap)
        self.askhandle = AskHandle(latency, gap)
        self.misterturing = MisterTuring(latency, gap)
        self.vendors: dict[str, Vendor] = {
            "newoaks": self.newoaks,
            "quickchat": self.quickchat,
            "quickchat-legacy": self.quickchat_legacy,
            "askhandle": self.askhandle,
            "misterturing": self.misterturing,
        }
        self.app = Starlette(routes=[Mount(f"/{name}{BASES.get(name, '')}", app) for name, app in self.vendors.items()])
        # A redirect of ours would hide a wrong path.
        self.app.router.redirect_slashes = False
