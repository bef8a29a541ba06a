"""The simulator's own desk, under `/_sim`: faults ordered and transcripts read from another process."""

from collections.abc import Awaitable, Callable, Mapping

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from proxy.simulator.vendor import Vendor

Endpoint = Callable[[Request], Awaitable[Response]]


def desk(vendors: Mapping[str, Vendor]) -> list[BaseRoute]:
    """The routes: POST faults, forget, release, reset; GET transcript. 400 with {"error"} for what makes no sense."""

    async def transcript(request: Request) -> Response:
        name = request.query_params.get("vendor")
        if name is None:
            return _reply({name: vendor.transcript() for name, vendor in vendors.items()})
        return _reply(vendors[name].transcript()) if name in vendors else _reply({"error": f"no vendor {name}"}, 400)

    def order(act: Callable[..., object]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            try:
                fields = orjson.loads(await request.body())
                act(vendors[fields.pop("vendor")], **fields)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                return _reply({"error": str(error)}, 400)
            return _reply({})

        return endpoint

    orders: dict[str, Callable[..., object]] = {
        "faults": Vendor.fail,
        "forget": Vendor.forget,
        "release": Vendor.release,
        "reset": Vendor.reset,
    }
    posts: list[BaseRoute] = [Route(f"/{path}", order(act), methods=["POST"]) for path, act in orders.items()]
    return [Route("/transcript", transcript, methods=["GET"]), *posts]


def _reply(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
