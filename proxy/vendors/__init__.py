"""Which bot class speaks to which vendor: ours from a table, others from the entry points "proxy.vendors".

Nothing is imported before it is asked for.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxy.vendors.base import HttpBot

GROUP = "proxy.vendors"
_OURS = {
    "askhandle": "proxy.vendors.askhandle:AskHandle",
    "misterturing": "proxy.vendors.misterturing:MisterTuring",
    "newoaks": "proxy.vendors.newoaks:NewOaks",
    "quickchat": "proxy.vendors.quickchat:Quickchat",
}


class UnknownVendor(ValueError):
    """No adapter has this name; the message names the nearest that there is."""


def names() -> Sequence[str]:
    """Every vendor there is an adapter for, sorted."""
    return sorted({*_OURS, *(point.name for point in entry_points(group=GROUP))})


def load(name: str) -> "type[HttpBot[Any]]":
    """The bot class of a vendor: `load(name)(load(name).Options(...))` is a bot. Raises UnknownVendor."""
    if path := _OURS.get(name):
        module, _, attribute = path.partition(":")
        found: type[HttpBot[Any]] = getattr(import_module(module), attribute)
        return found
    if point := _point(name):
        return point.load()  # type: ignore[no-any-return] # what an entry point names is its author's promise
    near = get_close_matches(name, names(), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(names())}"
    raise UnknownVendor(f"no vendor `{name}`; {hint}")


def _point(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=name)), None)
