"""HTML in a reply to Markdown, piece by piece. Pure; not html.parser, which holds back an open tag without bound.

What is no HTML stays as it is: plain text, Markdown, white space, `a < b`, `List<String>`, a `<your-name>` to fill in.
"""

import re
from html import unescape
from html.entities import html5
from urllib.parse import quote

HOLD = 256  # a tag that is not closed within so many characters is text

_MARKS = {name: (mark, mark) for name, mark in (("b", "**"), ("strong", "**"), ("i", "*"), ("em", "*"), ("code", "`"))}
_MARKS["li"] = ("- ", "")
_PARAGRAPHS = "p h1 h2 h3 h4 h5 h6 blockquote pre table ul ol dl hr"
_BLOCKS = "div li tr dt dd section article header footer main nav aside form figure center"
_BREAKS = {**dict.fromkeys(_PARAGRAPHS.split(), 2), **dict.fromkeys(_BLOCKS.split(), 1)}  # newlines around them
_OTHERS = """
a abbr address bdi bdo big body br button caption cite col colgroup del details dfn figcaption font head html iframe img
input ins kbd label link mark meta option q s samp script select small source span strike style sub summary sup svg path
tbody td textarea tfoot th thead time title tt u var video audio wbr
"""
_SILENT = {"script": r"</script\s{0,4}>", "style": r"</style\s{0,4}>", "!--": "-->"}  # where they end

_REST = r"""(?:[^<>"']|"[^"]*"|'[^']*')*"""
_TOKEN = re.compile(
    r"(?P<text>[^<&]+)|(?P<entity>&(?:#[0-9]{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});)"
    rf"|<(?P<end>/?)(?P<name>{'|'.join({*_MARKS, *_BREAKS, *_OTHERS.split()})})"
    rf"(?P<attributes>\s(?=[^>]*=){_REST})?\s*/?>"  # with a `=`: `<b and c>` is a comparison
    r"|<(?P<comment>!--)|<!doctype[^<>]*>",
    re.IGNORECASE | re.ASCII,
)
_OPEN = re.compile(rf"&[#a-z0-9]{{0,32}}|<(?:[/!a-z]{_REST}(?:\"[^\"]*|'[^']*)?)?", re.IGNORECASE | re.ASCII)
_HREF = re.compile(r"""[\s"']href\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)


class MarkupFilter:
    """Feed it a reply in pieces, take what comes out, `flush` at the end. Where it was cut makes no difference."""

    def __init__(self) -> None:
        self._rest = ""
        self._silent = ""  # what ends a comment or a script
        self._link = ""  # what ends the link that is open
        self._paper = _Paper()

    def feed(self, text: str) -> str:
        """What can be said of the text by now. Held back are an open tag of 256 characters, and white space."""
        self._convert(self._rest + text, final=False)
        return self._paper.take()

    def flush(self) -> str:
        """What was held back."""
        self._convert(self._rest, final=True)
        self._paper.close("[", self._link)
        return self._paper.take() + self._paper.gap

    def _convert(self, text: str, *, final: bool) -> None:
        at = 0
        while at < len(text):
            if self._silent:
                end = re.compile(self._silent, re.IGNORECASE).search(text, at)
                at = end.end() if end else max(at, len(text) - 16)  # no end is longer
                if not end:
                    break
                self._silent = ""
            elif token := _TOKEN.match(text, at, at + HOLD):
                self._take(token)
                at = token.end()
            elif not final and len(text) - at < HOLD and _OPEN.fullmatch(text, at):
                break
            else:
                self._paper.write(text[at])
                at += 1
        self._rest = text[at:]

    def _take(self, token: re.Match[str]) -> None:
        if name := token["name"] or token["comment"]:
            self._tag(name.lower(), token["end"], token["attributes"] or "")
        elif entity := token["entity"]:
            self._paper.write(unescape(entity) if entity[1] == "#" or entity[1:] in html5 else entity)
        elif token["text"]:
            self._paper.write(token["text"])

    def _tag(self, name: str, end: str, attributes: str) -> None:
        paper = self._paper
        opening, closing = _MARKS.get(name, ("", ""))
        if name == "a":
            paper.close("[", self._link)
            self._link = "" if end else _link(attributes)
            opening = "[" if self._link else ""
        if name in _BREAKS:
            paper.apart(_BREAKS[name])
        if name == "br":
            paper.line()
        elif end:
            paper.close(opening, closing)
        else:
            paper.write(" " if name in ("td", "th") else "")
            paper.marks += opening
            self._silent = _SILENT.get(name, "")


class _Paper:
    """What is written. White space, breaks and opening marks wait for a word; closing marks do not."""

    def __init__(self) -> None:
        self.gap = ""
        self.marks = ""
        self._out: list[str] = []
        self._begun = False
        self._break = 0  # newlines, instead of the gap
        self._after_line = False

    def take(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def write(self, text: str) -> None:
        if self._after_line:
            text = text.removeprefix("\n")
            self._after_line = False
        words = text.strip()
        before, _, after = text.partition(words) if words else (text, "", "")
        if not self._break:
            self.gap += before
        if words:
            self._out += ("\n" * self._break if self._begun else "", self.gap, self.marks, words)
            self._begun, self._break, self.marks, self.gap = True, 0, "", after

    def line(self) -> None:
        if not self._break:
            self.gap += "\n"
            self._after_line = True  # a newline right after it is the same one

    def apart(self, newlines: int) -> None:
        self._break = max(self._break, newlines, self.gap.count("\n"))
        self.gap = ""

    def close(self, opening: str, closing: str) -> None:
        if self.marks.endswith(opening):  # there was no word within
            self.marks = self.marks.removesuffix(opening)
        else:
            self._out.append(closing)


def _link(attributes: str) -> str:
    match = _HREF.search(attributes)
    target = unescape(match[1] or match[2] or match[3] or "").strip() if match else ""
    if not target or target.lower().startswith("javascript:"):
        return ""
    target = re.sub(r"[\s()<>]", lambda found: quote(found[0]), target)
    return f"]({target})"
