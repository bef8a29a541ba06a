"""Rows become tables in Markdown, and the table of bars."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan
from typing import NamedTuple

from tests.bench.runs import Row, middle

MAIN = "parley newoaks"  # the bars are about this model: one of the two vendors that stream, and the chattier one


class Column(NamedTuple):
    """What stands above, which figure, and how it is written; `factor` is for other units than the row's."""

    title: str
    key: str
    form: str = "{:.0f}"
    factor: float = 1.0


CPU, CHUNK = Column("CPU µs/request", "cpu_request"), Column("CPU µs/chunk", "cpu_word", "{:.1f}")
RATE = Column("requests/s", "per_second")
P50, P99 = Column("p50 ms", "p50", "{:.2f}", 1e-3), Column("p99 ms", "p99", "{:.2f}", 1e-3)
FIRST50, FIRST99 = (
    Column("first p50 ms", "first_p50", "{:.2f}", 1e-3),
    Column("first p99 ms", "first_p99", "{:.2f}", 1e-3),
)
GAP = Column("gap p99 ms", "gap_p99", "{:.2f}", 1e-3)
CHUNKS = Column("chunks/s", "words_per_second")
FAILED, FOREIGN = Column("failed", "failed"), Column("foreign", "foreign", "{:.2f}")
CONTINUED = Column("continued", "continued_share", "{:.0%}")
BESIDE = Column("store's CPU µs/request", "beside_request")
CORE = Column("core", "core", "{:.2f}")

LAYOUT: Mapping[str, tuple[Sequence[str], Sequence[Column]]] = {
    "plain": (("connections", "name"), (CPU, RATE, P50, P99, CONTINUED, FAILED, FOREIGN)),
    "burst": (("name",), (CHUNK, CHUNKS, FIRST50, FIRST99, CONTINUED, FAILED, FOREIGN)),
    "paced": (("name",), (CHUNK, CHUNKS, FIRST50, FIRST99, GAP, CONTINUED, FAILED, FOREIGN)),
    "open": (
        ("name", "connections"),
        (CHUNKS, CORE, Column("RSS idle MiB", "idle"), Column("RSS MiB", "rss"), Column("KiB/stream", "per_stream"),
         Column("listens after s", "listening", "{:.2f}"), FAILED, FOREIGN),
    ),
    "start": (("name",), (Column("s to listening", "seconds_to_listen", "{:.3f}"),)),
    "growth": (("history",), (CPU, CONTINUED, FAILED, FOREIGN)),
    "parse": (("history",), (Column("orjson µs", "parse", "{:.1f}"), Column("turn / parse", "parses", "{:.1f}"))),
    "filled": (("name", "parked"), (Column("filled in s", "seconds"),)),
    "parked": (
        ("store", "parked"),
        (CPU, BESIDE, RATE, Column("RSS MiB", "rss"), CONTINUED, FAILED, FOREIGN),
    ),
    "workers": (
        ("store", "workers"),
        (CPU, BESIDE, RATE, CONTINUED, FAILED, FOREIGN),
    ),
}  # fmt: skip
SHOWN = {"streams": ("burst", "paced"), "growth": ("growth", "parse"), "parked": ("filled", "parked")}


def tables(rows: Iterable[Row], part: str) -> str:
    """The tables of a part."""
    figured = [_figured(row) for row in rows]
    return "\n".join(_table([row for row in figured if row["part"] == name], name) for name in SHOWN.get(part, (part,)))


def _figured(row: Row) -> Row:
    """A row with what follows from its figures, and without those that nothing was found for."""
    figured = {key: value for key, value in row.items() if value or key not in _NOTHING}
    if row.get("requests"):
        figured["continued_share"] = row["continued"] / row["requests"]
    if row["part"] == "open":
        figured["core"] = row["cpu"] / row["seconds"]
        figured["per_stream"] = (row["rss"] - row["idle"]) * 1024 / row["connections"]
    if row["part"] == "parse":
        figured["parses"] = row["turn"] / row["parse"]
    return figured


_NOTHING = {"cpu_request", "cpu_word", "beside_request", "p50", "p99", "first_p50", "first_p99", "gap_p99"}


def _table(rows: Sequence[Row], part: str) -> str:
    keys, columns = LAYOUT[part]
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = [f"\n{part}\n", _line([*keys, *(column.title for column in columns)])]
    lines.append(_line(["---"] * (len(keys) + len(columns))))
    for group, members in groups.items():
        beside = {name: groups.get((*group[:-1], name), ()) for name in (MAIN, "direct")}
        lines.append(_line([*map(str, group), *(_cell(members, column, beside) for column in columns)]))
    return "\n".join(lines)


def _cell(rows: Sequence[Row], column: Column, beside: Mapping[str, Sequence[Row]]) -> str:
    """A figure; with CPU, in brackets, against ours, and with times what comes on top of asking the vendor directly."""
    value, disturbed = middle(rows, column.key)
    if isnan(value):
        return "-"
    if column == FAILED:  # of these, each counts
        return str(sum(row["failed"] for row in rows))
    mark = "~" if disturbed and column != FOREIGN else ""
    ours, direct = (middle(beside[name], column.key)[0] for name in (MAIN, "direct"))
    note = ""
    if column in (CPU, CHUNK) and ours > 0:
        note = f" ({value / ours:.2g}x)"
    elif column in (P50, P99, FIRST50, FIRST99) and not isnan(direct):
        note = f" ({column.form.format((value - direct) * column.factor)})"
    return f"{mark}{column.form.format(value * column.factor)}{note}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


class Figures:
    """Medians of all that was measured; not a number, where it was not."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = [_figured(row) for row in rows]
        self.disturbed = False  # whether one of the figures looked at was

    def __call__(self, part: str, key: str, name: str = MAIN, **where: int | str) -> float:
        rows = [row for row in self._rows if (row["part"], row["name"]) == (part, name)]
        value, disturbed = middle([row for row in rows if where.items() <= row.items()], key)
        self.disturbed |= disturbed and any("foreign" in row for row in rows)
        return value

    def grown(self, store: str) -> float:
        """A turn while most conversations wait, against one while fewest do."""
        counts = sorted({row["parked"] for row in self._rows if row["part"] == "parked" and row["store"] == store})
        costs = [self("parked", "cpu_request", store=store, parked=count) for count in counts]
        return costs[-1] / costs[0] if len(costs) > 1 else float("nan")


Value = Callable[[Figures], float]


class Bar(NamedTuple):
    """A figure that must be at most `most`, and had better be `stretch` or less."""

    what: str
    value: Value
    most: float
    stretch: float


def _against(other: str, part: str, key: str, **where: int) -> Value:
    """Ours against another's."""
    return lambda of: of(part, key, MAIN, **where) / of(part, key, other, **where)


def _added(other: str, part: str, key: str, **where: int) -> Value:
    """The same for what comes on top of asking the vendor directly."""

    def added(of: Figures) -> float:
        direct = of(part, key, "direct", **where)
        return (of(part, key, MAIN, **where) - direct) / (of(part, key, other, **where) - direct)

    return added


def _flat(of: Figures) -> float:
    return of("plain", "cpu_request", connections=256) / of("plain", "cpu_request", connections=16)


def _of_thousand(key: str) -> Value:
    return lambda of: of("open", key, connections=1000)


def _core(of: Figures) -> float:
    """What all ten thousand chunks a second would take."""
    return of("open", "core", connections=1000) * 10_000 / of("open", "words_per_second", connections=1000)


def _undelivered(of: Figures) -> float:
    return 1 - of("open", "words_per_second", connections=1000) / 10_000


BARS = (
    Bar(
        "plain, 64 connections, CPU against LiteLLM",
        _against("litellm", "plain", CPU.key, connections=64),
        1 / 20,
        1 / 40,
    ),
    Bar("... against Portkey", _against("portkey", "plain", CPU.key, connections=64), 1 / 2, 1 / 4),
    Bar("... against bare", _against("bare", "plain", CPU.key, connections=64), 1.5, 1.25),
    Bar("CPU at 256 connections against 16", _flat, 1.3, 1.1),
    Bar(
        "added p50 at 1 connection against Portkey's", _added("portkey", "plain", "p50", connections=1), 1 / 1.5, 1 / 3
    ),
    Bar("burst, CPU per chunk against LiteLLM", _against("litellm", "burst", CHUNK.key), 1 / 50, 1 / 100),
    Bar("... against Portkey", _against("portkey", "burst", CHUNK.key), 1 / 2.5, 1 / 4),
    Bar("... against bare", _against("bare", "burst", CHUNK.key), 1.25, 1),
    Bar("paced, CPU per chunk against LiteLLM", _against("litellm", "paced", CHUNK.key), 1 / 16, 1 / 20),
    Bar("... against Portkey", _against("portkey", "paced", CHUNK.key), 0.6, 0.45),
    Bar("added time to first token, paced, against Portkey's", _added("portkey", "paced", "first_p50"), 1 / 4, 1 / 10),
    Bar("1,000 open streams: share not delivered", _undelivered, 0.005, 0.005),
    Bar("... core, for all of them", _core, 0.8, 0.6),
    Bar("RSS idle, MiB", _of_thousand("idle"), 60, 45),
    Bar("RSS per open stream, KiB", _of_thousand("per_stream"), 60, 40),
    Bar("`parley serve` to listening, s", lambda of: of("start", "seconds_to_listen", "parley"), 1.0, 0.5),
    Bar("1,000-message history against a parse", lambda of: of("parse", "parses", "orjson", history=1000), 20, 8),
    Bar("most parked against fewest, memory", lambda of: of.grown("memory"), 1.2, 1.1),
    Bar("... Redis", lambda of: of.grown("redis"), 1.2, 1.1),
    Bar("... SQLite", lambda of: of.grown("sqlite"), 1.5, 1.1),
)


def bars(rows: Iterable[Row]) -> str:
    """Each bar with its value and whether it is met."""
    lines = ["\nbars\n", _line(["figure", "value", "bar", "stretch", ""]), _line(["---"] * 5)]
    for bar in BARS:
        figures = Figures(rows)
        value = bar.value(figures)
        shown = "-" if isnan(value) else f"{'~' if figures.disturbed else ''}{value:.3g}"
        lines.append(_line([bar.what, shown, f"{bar.most:.3g}", f"{bar.stretch:.3g}", _verdict(value, bar)]))
    return "\n".join(lines)


def _verdict(value: float, bar: Bar) -> str:
    if isnan(value):
        return "not measured"
    return "stretch" if value <= bar.stretch else "met" if value <= bar.most else "MISSED"
