"""NewOaks' file uploads, pretended. https://chat.smarterbot.ai/guides/developer/api/upload-file

Documented: a call for an address, the bytes put there, a call that marks the upload as successful (its path and body
are unknown); the formats, one file for audio and video, 20 MB per image, 100 MB per video. Inferred: 40 MB per audio,
ids as integers of the `FileStoreId` string, and that the address refuses foreign headers, as S3 does.
"""

import re
from dataclasses import dataclass

from proxy.simulator.answer import Answer, Refusal, whole
from proxy.simulator.call import Call

FORMATS = {
    "Text": ("", 0),
    "Audio": ("wav", 40),
    "Video": ("mp4 mkv avi flv mpeg", 100),
    "Image": ("png jpeg jpg webp gif", 20),
}
"""`chatAskType` -> endings of file names, megabytes."""
SIGNATURE = "X-Amz-Expires=600&X-Amz-Signature=demo"


@dataclass
class File:
    """An upload; `content` is empty until it has arrived."""

    name: str = ""
    content: bytes = b""
    confirmed: bool = False


class Uploads:
    """All files by id. `confirming`: an upload counts only once it has been confirmed."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.confirming = False

    def expect(self, call: Call) -> tuple[str, str]:
        """A new file's id and the address to put it to."""
        store = 34317 + len(self.files)
        self.files[store] = File(call.fields["fileName"])
        path = f"{call.url.path.removesuffix(call.path)}/upload/{store}"
        return str(store), str(call.url.replace(path=path, query=SIGNATURE))

    def put(self, call: Call) -> Answer:
        """The raw bytes, at the signed address, without a credential of ours."""
        if int(call.tail) not in self.files or call.url.query != SIGNATURE:
            raise Refusal(403, "The signature does not match.")
        if "authorization" in call.headers or "multipart/" in call.headers.get("content-type", ""):
            raise Refusal(400, "Only the raw bytes are wanted: no credential but the address, no form.")
        self.files[int(call.tail)].content = call.data
        return whole(b"", kind="text/plain")

    def confirm(self, call: Call) -> None:
        """Takes any body that holds a file's id."""
        for number in re.findall(rb"\d+", call.data):
            self.files.get(int(number), File()).confirmed = True

    def check(self, kind: str, ids: list[int]) -> None:
        """Refuses (in the envelope, 400) files that a message of this `chatAskType` may not carry."""
        demand(kind in FORMATS, "chatAskType must be Text, Audio, Image or Video.")
        demand(bool(ids) is (kind != "Text"), "fileIds belong to Image, Video and Audio, and only to them.")
        demand(kind == "Image" or len(ids) <= 1, f"fileIds: only a single file is allowed for {kind}.")
        endings, megabytes = FORMATS[kind]
        for file in (self.files.get(store, File()) for store in ids):
            demand(bool(file.content) and file.confirmed >= self.confirming, "A file has not been uploaded.")
            demand(file.name.rpartition(".")[2].lower() in endings.split(), f"{file.name} has another format.")
            demand(len(file.content) <= megabytes * 1024 * 1024, f"{file.name} is too large.")


def demand(kept: bool, message: str) -> None:
    """Refuses unless this rule is kept."""
    if not kept:
        raise Refusal(400, message, business=True)
