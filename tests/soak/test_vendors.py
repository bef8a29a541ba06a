"""The books that the soak's vendors keep: what they must complain of, and what not."""

import pytest

from tests.soak.vendors import Books

RECAP = "[What was said earlier in this conversation]\nUser: {}\nAssistant: x\n[End of what was said earlier]\n\n"


def soak(name: str, after: str = "-", fault: str = "none") -> str:
    return f"soak {name} after {after} words 3 fault {fault}; please"


def recap(*turns: str) -> str:
    return RECAP.format("\nAssistant: x\nUser: ".join(turns))


FIRST = ("a", soak("1.1"))
CASES = {
    "goes on": ([FIRST, ("a", soak("1.2", "1.1"))], "", 0),
    "told all": ([FIRST, ("b", recap(soak("1.1")) + soak("1.2", "1.1"))], "", 0),
    "told the rest": ([FIRST, ("a", recap(soak("1.2", "1.1")) + soak("1.3", "1.2"))], "", 0),
    "failed and asked again": ([("a", soak("1.1", fault="500")), ("b", soak("1.1", fault="500"))], "", 0),
    "refused and asked again": ([("a", soak("1.1", fault="429")), ("a", soak("1.1", fault="429"))], "", 0),
    "asked again elsewhere": ([FIRST, ("b", soak("1.1"))], "", 1),
    "failed and asked twice": ([("a", soak("1.1", fault="500")), ("b", soak("1.1")), ("c", soak("1.1"))], "", 1),
    "asked again here": ([FIRST, FIRST], "a turn twice", 1),
    "failed and asked again here": ([("a", soak("1.1", fault="500")), FIRST], "a turn twice", 0),
    "another chat": ([FIRST, ("a", soak("2.2", "1.1"))], "two chats", 0),
    "goes on where it is over": ([FIRST, ("a", soak("1.2", "1.1")), ("a", soak("1.3", "1.1"))], "asked what comes", 0),
    "not told": ([FIRST, ("b", soak("1.2", "1.1"))], "asked what comes", 0),
    "told too little": ([FIRST, ("b", recap(soak("1.1")) + soak("1.3", "1.2"))], "asked what comes", 0),
    "told with a gap": ([FIRST, ("a", recap(soak("1.3", "1.2")) + soak("1.4", "1.3"))], "a recap that leaves", 0),
    "told again": ([FIRST, ("a", recap(soak("1.1")) + soak("1.2", "1.1"))], "told again", 0),
    "unknown conversation": ([("z", soak("1.1"))], "nobody's", 0),
}


@pytest.mark.parametrize("case", CASES)
def test_books_tell_where_a_turn_does_not_belong(case: str) -> None:
    """A turn in a conversation that does not hold what it comes after, or a turn too much, is written down."""
    turns, wrong, again = CASES[case]
    books = Books()
    for handle in ("a", "b", "c"):
        books.open(handle)

    for handle, text in turns:
        books.ask(handle, text, 0.0)

    assert [line.startswith(wrong) for line in books.wrong] == ([True] if wrong else [])
    assert len(books.again) == again
