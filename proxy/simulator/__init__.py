"""The vendors' HTTP APIs, pretended: written only from the vendors' documents and strict about them. Knows no adapter.

    simulator = Simulator(latency=0.3, gap=0.02)   # seconds before a reply's first byte / between pieces of a stream
    uvicorn.run(simulator.app)                      # any ASGI server; or httpx2.ASGITransport(simulator.app)

One attribute per vendor, each under its own prefix (`base_url = http://HOST:PORT/PREFIX`):

    attribute         prefix             credentials                       operations
    newoaks           /newoaks           secret_key chatbot_id             open ask upload put (confirm)
    quickchat         /quickchat         token scenario_id                 ask
    quickchat_legacy  /quickchat-legacy  api_key scenario_id               ask
    askhandle         /askhandle/api/v1  token, or username password       token open ask poll
    misterturing      /misterturing/v4.0 api_key assistant_id              open ask create deploy

What every vendor has:

    .conversations    {handle: Conversation}; .entries [Entry(role "user"|"bot", text, fields)], .heard, .forgotten
    .calls            [Call(method, path, operation, status, when, headers, hung_up)], oldest first
    .violations       [Violation(method, path, message)]: what the documents forbid. Assert that it stays []
    .hung_up          how many callers left before their answer had been sent whole
    .latency .gap     seconds, may be changed at any time
    .fail(fault, times=1, on="ask", *, seconds=None, megabytes=8, location=...) -> Fault, with .release()
    .forget()         drops all conversations at the vendor (their entries stay readable; not a violation to ask again)
    .release()        ends every waiting `slow` and `stall`
    .reset()          clears all of this and the faults to come; modes stay

Faults of all vendors (used up one per call of the operation `on`; "*" is any):

    not taken in by the bot   forgotten limited limited-date unauthorized refused unavailable request-timeout
    taken in, answer lost     failed gateway-timeout
    late                      slow (before the first byte) stall (in the midst); `seconds`, or until released
    spoilt                    garbled html wrong-type truncated cut-off invalid-utf8 redirect
    reply is                  empty ("") null blank (white space) huge (`megabytes`) endless
    NewOaks also              envelope-failed envelope-limited envelope-unauthorized (HTTP 200, Success false),
                              error-in-stream summary-extends summary-differs summary-missing
    Quickchat also            new-id hand-off (reply null, from then on)
    AskHandle also            terminated hand-off (no answer, from then on)

`cut-off` breaks the connection, which needs a real server. `redirect` points to `location`, by default to a path that
counts as a violation when followed. Faults strike only calls that are in order; those that are not get their refusal.

Modes: newoaks.framing "lines"|"sse", .cuts (bytes per write; None: one object to each), .confirm_at(path) for uploads;
quickchat.changes_id; askhandle.answer_after (polls), .answer_seconds, .lost_room (400 | 404), .revoke() (another token
from now on); misterturing.framing "raw"|"sse", .cuts, .id_field ("conversation_id", dotted, or "" for a bare string).
State: newoaks.uploads.files {id: File(name, size, sha256)}; misterturing.assistants and .deployed, by external id.

The bot counts the messages, quotes this one and the one before, remembers a name ("my name is X", "what is my name").
Commands in a message's last paragraph: `say TEXT` is answered by TEXT verbatim; `recite TEXT` likewise, where TEXT may
hold blank lines. "unanswerable" gets no answer (NewOaks: noAnswer in the plain reply).

From outside: POST /_sim/faults {"vendor", "fault", "times", "on", "seconds", "megabytes", "location"}, GET
/_sim/transcript[?vendor=], POST /_sim/forget, /_sim/release, /_sim/reset {"vendor"}. Vendors are named
by the first part of the prefix.
"""

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount

from proxy.simulator.askhandle import AskHandle
from proxy.simulator.desk import desk
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
        mounts: list[BaseRoute] = [Mount(f"/{name}{BASES.get(name, '')}", app) for name, app in self.vendors.items()]
        self.app = Starlette(routes=[Mount("/_sim", routes=desk(self.vendors)), *mounts])
        # A redirect of ours would hide a wrong path.
        self.app.router.redirect_slashes = False
