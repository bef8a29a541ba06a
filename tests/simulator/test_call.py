"""Routes and headers of a call."""

import pytest

from proxy.simulator.answer import whole
from proxy.simulator.call import Call, Route


@pytest.mark.parametrize(
    ("path", "tail"),
    [
        ("/messages/abc/", "abc"),
        ("/messages//", None),
        ("/messages/a/b/", None),
        ("/messages/abc", None),
        ("/messagesXabc/", None),
    ],
)
def test_star(path: str, tail: str | None) -> None:
    """A star stands for one segment, all else is taken to the letter."""
    assert Route("GET", "/messages/*/", "poll", lambda _: whole(b"")).tail(path) == tail


@pytest.mark.parametrize(
    ("header", "key"), [("Token x y", "x y"), ("Token x", "x"), ("token x", ""), ("x", ""), ("", "")]
)
def test_key(header: str, key: str) -> None:
    """The key is what follows the very scheme word."""
    assert Call("GET", "/", 0, {"authorization": header}).key("Token") == key
