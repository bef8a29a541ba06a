"""The list of models, as far as a key may see it."""

from typing import Any

from tests.doors import Doors


async def get(doors: Doors, path: str, key: str = "sk-all") -> Any:
    return (await doors.http.get(path, headers={"authorization": f"Bearer {key}"})).json()


async def test_the_list_holds_names_and_aliases(doors: Doors) -> None:
    """Every name a client may ask for is listed as a model object."""
    listed = await get(doors, "/v1/models")

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["shop", "gpt-4o-mini", "it/help"]
    assert {"object", "created", "owned_by"} <= set(listed["data"][0])


async def test_a_key_sees_what_it_may_use(doors: Doors) -> None:
    """A model's aliases are seen where the model is, and nowhere else."""
    listed = await get(doors, "/v1/models", "sk-few")

    assert [model["id"] for model in listed["data"]] == ["shop", "gpt-4o-mini"]


async def test_a_card_by_any_name(doors: Doors) -> None:
    """A model is found by name or alias, also with a slash in it; unknown and hidden ones are not."""
    assert (await get(doors, "/v1/models/gpt-4o-mini"))["id"] == "gpt-4o-mini"
    assert (await get(doors, "/v1/models/it/help"))["id"] == "it/help"
    assert (await get(doors, "/v1/models/it/help", "sk-few"))["error"]["code"] == "model_not_found"
