"""HTML in a reply to Markdown, piece by piece. Pure; not html.parser, which holds back an open tag without bound.

What is no HTML stays as it is: plain text, Markdown, white space, `a < b`, `List<String>`, a `<your-name>` to fill in.
"""

import re
from collections.abc import Mapping
from html import unescape
from html.entities import html5

HOLD = 256  # a tag that is not closed within so many characters is text
_LONGEST_END = 16

_ATTRIBUTE = r"""[^<>"'=]|=\s*"[^"]*"|=\s*'[^']*'|=(?!\s*["'])"""
_TAG = re.compile(rf"<(/?)([a-zA-Z][a-zA-Z0-9]*)(?:\s*/|([\s/](?:{_ATTRIBUTE})*))?>|<![a-zA-Z][^<>]*>")
_OPEN_TAG = re.compile(
    rf"<(?:/?(?:([a-zA-Z][a-zA-Z0-9]*)(?:([\s/])(?:{_ATTRIBUTE})*(?:=\s*(?:\"[^\"]*|'[^']*)?)?)?)?|!-?|![a-zA-Z][^<>]*)"
)
_HREF = re.compile(r"""(?:^|[\s/"'])href\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_OPEN_ENTITY = re.compile(r"&(?:#[0-9]{0,7}|#[xX][0-9a-fA-F]{0,6}|[a-zA-Z][a-zA-Z0-9]{0,31})?")
_SPECIAL = re.compile(r"[<&]")
_COMMENT_END = re.compile(r"-->")
_SILENT = {name: re.compile(rf"</{name}\s{{0,4}}>", re.IGNORECASE) for name in ("script", "style")}

_INLINE: Mapping[str, str] = {"b": "**", "strong": "**", "i": "*", "em": "*", "code": "`"}
_PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "table", "hr", "dl")
_BLOCKS = (
    *("div", "li", "ul", "ol", "tr", "dt", "dd", "section", "article", "header", "footer", "main", "nav", "aside"),
    *("form", "figure", "center"),
)
_BREAKS: Mapping[str, int] = {**dict.fromkeys(_PARAGRAPHS, 2), **dict.fromkeys(_BLOCKS, 1)}  # newlines around them
_OTHERS = """
a abbr address bdi bdo big body br button caption cite col colgroup del details dfn figcaption font head html iframe img
input ins kbd label link mark meta option q s samp script select small source span strike style sub summary sup svg path
tbody td textarea tfoot th thead time title tt u var video audio wbr
"""
_KNOWN = frozenset({*_INLINE, *_BREAKS, *_OTHERS.split()})


class MarkupFilter:
    """Feed it a reply in pieces, take what comes out, `flush` at the end. Where it was cut makes no difference."""

    def __init__(self) -> None:
        self._rest = ""
        self._silence: re.Pattern[str] | None = None  # what ends a comment or a script
        self._paper = _Paper()

    def feed(self, text: str) -> str:
        """What can be said of the text by now; at most an open tag of 256 characters is held back."""
        self._convert(self._rest + text, final=False)
        return self._paper.take()

    def flush(self) -> str:
        """What was held back. Emphasis that is still open is closed."""
        self._convert(self._rest, final=True)
        self._rest = ""
        self._paper.close_all()
        return self._paper.take()

    def _convert(self, text: str, *, final: bool) -> None:
        at = 0
        while at < len(text):
            step = self._skip if self._silence else self._step
            end = step(text, at, final)
            if end is None:
                break
            at = end
        self._rest = text[at:]

    def _skip(self, text: str, at: int, final: bool) -> int | None:
        assert self._silence is not None
        if match := self._silence.search(text, at):
            self._silence = None
            return match.end()
        return max(at, len(text) - _LONGEST_END) if len(text) - at > _LONGEST_END else None

    def _step(self, text: str, at: int, final: bool) -> int | None:
        """Take the next thing there is and say where it ends; None if it is not all there."""
        if text[at] == "<":
            return self._tag_or_text(text, at, final)
        if text[at] == "&":
            return self._entity_or_text(text, at, final)
        match = _SPECIAL.search(text, at)
        end = match.start() if match else len(text)
        self._paper.write(text[at:end])
        return end

    def _tag_or_text(self, text: str, at: int, final: bool) -> int | None:
        if text.startswith("<!--", at):
            self._silence = _COMMENT_END
            return at + 4
        seen = text[at : at + HOLD]
        match = _TAG.match(seen)
        if match and _is_tag(match):
            self._tag(match)
            return at + match.end()
        if not final and len(seen) < HOLD and not match and _may_become_a_tag(seen):
            return None
        self._paper.write("<")
        return at + 1

    def _entity_or_text(self, text: str, at: int, final: bool) -> int | None:
        match = _ENTITY.match(text, at)
        if match and (match[0][1] == "#" or match[0][1:] in html5):
            self._paper.write(unescape(match[0]))
            return match.end()
        held = _OPEN_ENTITY.match(text, at)
        if held and held.end() == len(text) and not final:
            return None
        self._paper.write("&")
        return at + 1

    def _tag(self, tag: re.Match[str]) -> None:
        closing, name, attributes = tag[1], (tag[2] or "").lower(), tag[3] or ""
        paper = self._paper
        if name in _SILENT and not closing:
            self._silence = _SILENT[name]
        elif name == "br":
            paper.line()
        elif name in ("td", "th"):
            paper.cell(closing)
        elif name == "a" and not closing:
            paper.open(name, *_link(attributes))
        elif name in _INLINE and not closing:
            paper.open(name, _INLINE[name], _INLINE[name])
        elif closing:
            paper.close(name)
        paper.apart(name, closing)


class _Paper:
    """What is written. Breaks, bullets and opening marks wait for a word; closing marks go before white space."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._newlines = 2  # at the end of what is written; the beginning needs no break
        self._break = 0
        self._bullet = ""
        self._depth = 0
        self._marks: list[tuple[str, str, str]] = []  # name, opening mark, closing mark
        self._opened = 0  # how many of the marks are written
        self._space = ""
        self._after_line = False

    def take(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def write(self, text: str) -> None:
        if self._after_line:
            text = text.removeprefix("\n")
            self._after_line = False
        if self._break or self._bullet:
            text = text.lstrip()
            self._space = ""
        core = text.strip()
        if not core:
            self._blank(text)
            return
        lead, _, tail = text.partition(core)
        self._put("\n" * (self._break - self._newlines) + self._bullet + self._space + lead)
        self._break, self._bullet, self._space = 0, "", ""
        self._put("".join(mark for _, mark, _ in self._marks[self._opened :]) + core)
        self._opened = len(self._marks)
        self._blank(tail)

    def line(self) -> None:
        self._after_line = False
        if not self._break:
            self.write("\n")
            self._after_line = True  # a newline right after it is the same one

    def cell(self, closing: str) -> None:
        if not closing and not self._break and not self._newlines:
            self.write(" | ")

    def open(self, name: str, opening: str, closing: str) -> None:
        nested = any(opening == mark for _, mark, _ in self._marks)
        self._marks.append((name, "", "") if nested else (name, opening, closing))

    def close(self, name: str) -> None:
        if any(name == open_name for open_name, _, _ in self._marks):
            while self._pop() != name:
                pass

    def close_all(self) -> None:
        while self._marks:
            self._pop()
        self._put(self._space)
        self._space = ""

    def apart(self, name: str, closing: str) -> None:
        """What a block element does: newlines before and after it, a bullet before an item of a list."""
        self._break = max(self._break, _BREAKS.get(name, 0))
        if name in ("ul", "ol"):
            self._depth = max(self._depth + (-1 if closing else 1), 0)
            self._break = max(self._break, 2 if closing and not self._depth else 1)
        if name == "li":
            self._bullet = "" if closing else "  " * (self._depth - 1) + "- "

    def _pop(self) -> str:
        name, _, mark = self._marks.pop()
        if self._opened > len(self._marks):
            self._put(mark)
            self._opened = len(self._marks)
        return name

    def _blank(self, text: str) -> None:
        if self._opened:
            self._space += text
        else:
            self._put(text)

    def _put(self, text: str) -> None:
        if text:
            self._out.append(text)
            body = text.rstrip("\n")
            self._newlines = len(text) - len(body) + (0 if body else self._newlines)


def _is_tag(match: re.Match[str]) -> bool:
    """A name of HTML's, and if anything follows it, an attribute: `<b and c>` is a comparison."""
    if match[2] is None:
        return True
    return match[2].lower() in _KNOWN and (not (match[3] or "").strip(" \t\r\n/") or "=" in match[3])


def _may_become_a_tag(seen: str) -> bool:
    match = _OPEN_TAG.fullmatch(seen)
    if not match or not match[1]:
        return bool(match)
    name = match[1].lower()
    return name in _KNOWN if match[2] else any(known.startswith(name) for known in _KNOWN)


def _link(attributes: str) -> tuple[str, str]:
    match = _HREF.search(attributes)
    target = unescape(match[1] or match[2] or match[3] or "").strip() if match else ""
    if not target or target.lower().startswith("javascript:"):
        return "", ""
    for character in " ()<>\n":
        target = target.replace(character, f"%{ord(character):02X}")
    return "[", f"]({target})"
