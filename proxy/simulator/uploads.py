"""NewOaks' file uploads, pretended: an address to PUT to, the bytes, and which files a message may name.

https://chat.smarterbot.ai/guides/developer/api/upload-file

Documented: the two calls, the formats, one file for audio and video, 20 MB per image, 100 MB per video. Inferred: 40 MB
per audio, ids as integers of the `FileStoreId` string, and that the address refuses foreign headers, as S3 does.
"""

from dataclasses import dataclass
from hashlib import sha256
from itertools import count

import orjson

from proxy.simulator.answer import Answer, Refusal, whole
from proxy.simulator.call import Call

MB = 1024 * 1024
FORMATS = {
    "Audio": ({"wav"}, 40 * MB),
    "Video": ({"mp4", "mkv", "avi", "flv", "mpeg"}, 100 * MB),
    "Image": ({"png", "jpeg", "jpg", "webp", "gif"}, 20 * MB),
}
SIGNATURE = "X-Amz-Expires=600&X-Amz-Signature=demo"


@dataclass
class File:
    """An upload: `size` in bytes, `sha256` empty until it has arrived."""

    name: str
    size: int = 0
    sha256: str = ""


class Uploads:
    """All files by id. `confirmed` None: an upload needs no confirmation."""

    LIMIT = 100 * MB

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.confirmed: set[int] | None = None
        self._ids = count(34317)

    def expect(self, name: str, base: str) -> tuple[str, str]:
        """A new file's id and the address to put it to."""
        store = next(self._ids)
        self.files[store] = File(name)
        self.files.pop(store - 1000, None)
        return str(store), f"{base}/upload/{store}?{SIGNATURE}"

    def put(self, call: Call) -> Answer:
        """The raw bytes, at the signed address, without a credential of ours."""
        file = self.files.get(int(call.tail)) if call.tail.isdigit() else None
        if file is None or call.query != SIGNATURE:
            raise Refusal(403, "The signature does not match.")
        if "authorization" in call.headers:
            raise Refusal(400, "Only one authorisation is allowed; the address holds it.")
        if call.headers.get("content-type", "").startswith("multipart/"):
            raise Refusal(400, "The raw bytes are wanted, not a form.")
        file.size, file.sha256 = len(call.data), sha256(call.data).hexdigest()
        return whole(b"", kind="text/plain")

    def confirm(self, body: bytes) -> None:
        """Any JSON object that has a file's id for a value."""
        try:
            values = orjson.loads(body).values()
        except (ValueError, AttributeError):
            raise Refusal(400, "The body must be a JSON object.") from None
        named = {int(value) for value in values if str(value).isdigit()} & self.files.keys()
        if not named or self.confirmed is None:
            raise Refusal(400, "The file does not exist.", business=True)
        self.confirmed |= named

    def check(self, kind: str, ids: list[int]) -> None:
        """Refuses (in the envelope, 400) files that a message of this `chatAskType` may not carry."""
        if kind == "Text":
            self._demand(not ids, "fileIds are valid only for Image, Video and Audio.")
            return
        self._demand(kind in FORMATS, "chatAskType must be Text, Audio, Image or Video.", "chatAskType")
        self._demand(bool(ids), "fileIds are missing.")
        self._demand(kind == "Image" or len(ids) == 1, f"Only a single file is allowed for {kind}.")
        for store in ids:
            self._fits(kind, store)

    def _fits(self, kind: str, store: int) -> None:
        file = self.files.get(store, File(""))
        ready = self.confirmed is None or store in self.confirmed
        formats, limit = FORMATS[kind]
        self._demand(ready and bool(file.sha256), f"The file {store} has not been uploaded.")
        self._demand(file.name.rpartition(".")[2].lower() in formats, f"The format of file {store} is not supported.")
        self._demand(file.size <= limit, f"The file {store} is too large.")

    @staticmethod
    def _demand(kept: bool, message: str, field: str = "fileIds") -> None:
        if not kept:
            raise Refusal(400, message, field, business=True)
