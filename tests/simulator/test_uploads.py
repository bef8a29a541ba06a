"""NewOaks' uploads: address, bytes, and the messages that may carry them."""

from typing import Any

import httpx2
import pytest

from proxy.simulator import Simulator

from .callers import KEY, ask

PRE_UPLOAD = "/newoaks/chat/User/GetPreUploadUrl"


async def address(client: httpx2.AsyncClient, name: str) -> tuple[int, str]:
    reply = await client.post(PRE_UPLOAD, json={"fileName": name}, headers=KEY)
    data = reply.json()["Data"]
    assert isinstance(data["FileStoreId"], str)
    return int(data["FileStoreId"]), data["PreUploadUrl"]


async def upload(client: httpx2.AsyncClient, name: str, content: bytes = b"bytes") -> int:
    store, url = await address(client, name)
    assert (await client.put(url, content=content)).status_code == 200
    return store


async def test_carries_a_file(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """An uploaded image may be sent with empty content (documented); the bytes have arrived."""
    store = await upload(client, "x.png", b"picture")
    assert store == 34317
    assert (await ask(client, "", chatAskType="Image", fileIds=[store])).json()["Success"]
    assert simulator.newoaks.uploads.files[store].content == b"picture"
    assert simulator.newoaks.violations == []


@pytest.mark.parametrize(
    ("names", "kind", "good"),
    [
        (["a.png", "b.JPG"], "Image", True),
        (["a.wav"], "Audio", True),
        (["a.mp4", "b.mp4"], "Video", False),
        (["a.mp3"], "Audio", False),
        (["a.png"], "Text", False),
        ([], "Image", False),
    ],
)
async def test_files_fit(client: httpx2.AsyncClient, names: list[str], kind: str, good: bool) -> None:
    """Several files only for images, one for audio and video, in the documented formats."""
    stores = [await upload(client, name) for name in names]
    assert (await ask(client, "look", chatAskType=kind, fileIds=stores)).json()["Success"] is good


async def test_needs_the_bytes(client: httpx2.AsyncClient) -> None:
    """A file that was announced but not put cannot be sent."""
    store, _ = await address(client, "x.png")
    assert not (await ask(client, "", chatAskType="Image", fileIds=[store])).json()["Success"]


async def test_size(client: httpx2.AsyncClient) -> None:
    """An image of more than 20 MB is refused (documented)."""
    store = await upload(client, "x.png", b"x" * (20 * 1024 * 1024 + 1))
    assert "too large" in (await ask(client, "", chatAskType="Image", fileIds=[store])).json()["Message"]


@pytest.mark.parametrize(
    ("change", "options", "status"),
    [
        ("", {"headers": KEY}, 400),
        ("", {"files": {"file": b"x"}}, 400),
        ("&more=1", {"content": b"x"}, 403),
    ],
    ids=["credential", "multipart", "another address"],
)
async def test_put_is_strict(
    client: httpx2.AsyncClient, simulator: Simulator, change: str, options: dict[str, Any], status: int
) -> None:
    """The signed address takes raw bytes only, and no credential besides."""
    _, url = await address(client, "x.png")
    assert (await client.put(url + change, **options)).status_code == status
    assert len(simulator.newoaks.violations) == 1


async def test_confirmation(client: httpx2.AsyncClient, simulator: Simulator) -> None:
    """With `confirm_at`, a file counts only once it has been confirmed."""
    simulator.newoaks.confirm_at("/chat/User/Uploaded")
    store = await upload(client, "x.png")
    assert not (await ask(client, "", chatAskType="Image", fileIds=[store])).json()["Success"]
    reply = await client.post("/newoaks/chat/User/Uploaded", json={"FileStoreId": str(store)}, headers=KEY)
    assert reply.json()["Success"]
    assert (await ask(client, "", chatAskType="Image", fileIds=[store])).json()["Success"]
