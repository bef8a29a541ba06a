"""GET /v1/models and /v1/models/{id}: the names a key may ask for."""

from collections.abc import Mapping

import orjson

from proxy.errors import ModelNotFound
from proxy.messages import Key
from proxy.openai.errors import send_json
from proxy.relay import Model
from proxy.telemetry import Receive, Scope, Send


class Models:
    """The configured models under their names and aliases, as far as a key may use them.

    A key's patterns are matched with a model's own name: an alias is another word for it, not another right.
    """

    def __init__(self, models: Mapping[str, Model], *, created: int) -> None:
        self._by_name = {name: m for m in models.values() for name in (m.name, *m.options.aliases)}
        self._created = created

    def find(self, name: str, key: Key) -> Model:
        """The model of this name. Raises ModelNotFound, without telling which of its two reasons it was."""
        model = self._by_name.get(name)
        if model is None or not key.may_use(model.name):
            raise ModelNotFound(
                f"The model `{name[:64]}` does not exist or this key may not use it; GET /v1/models lists those it may"
            )
        return model

    def listed(self, key: Key) -> list[dict[str, object]]:
        """The model objects a key may see."""
        return [self.described(name, model) for name, model in self._by_name.items() if key.may_use(model.name)]

    def described(self, name: str, model: Model) -> dict[str, object]:
        """A model object; `owned_by` is the kind of the bot behind it."""
        options = model.options
        card: dict[str, object] = {"id": name, "object": "model", "created": self._created, "owned_by": options.vendor}
        return {**card, "description": options.description} if options.description else card


class ModelList:
    """GET /v1/models"""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, orjson.dumps({"object": "list", "data": self._models.listed(scope["parley.key"])}))


class ModelCard:
    """GET /v1/models/{id}; an id may hold slashes."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["id"]
        found = self._models.find(name, scope["parley.key"])
        await send_json(send, orjson.dumps(self._models.described(name, found)))
