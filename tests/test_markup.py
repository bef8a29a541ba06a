"""Markup: what HTML becomes, what stays as it is, and that cuts make no difference."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.markup import HOLD, MarkupFilter


def converted(*parts: str) -> str:
    markup = MarkupFilter()
    return "".join(markup.feed(part) for part in parts) + markup.flush()


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("Hello<br>World", "Hello\nWorld"),
        ("a<br/>b<BR />c<br><br>d", "a\nb\nc\n\nd"),
        ("a<br>\nb", "a\nb"),
        ("<p>one</p><p>two</p>", "one\n\ntwo"),
        ("<p>one</p>\n  <p class='x'>two</p>\n", "one\n\ntwo"),
        ("<div>one</div><div>two</div>three", "one\ntwo\nthree"),
        ("<p>a</p><br><p>b</p>", "a\n\nb"),
        ("<b>x</b> <strong>y</strong> <i>z</i> <em>w</em>", "**x** **y** *z* *w*"),
        ("<b>Note: </b>text", "**Note:** text"),
        ("see<b> this</b>", "see **this**"),
        ("<b></b>x<i> </i>y", "x y"),
        ("<b><p>x</p></b>y", "**x**\n\ny"),
        ("<code>a &lt; b</code>", "`a < b`"),
        ('<a href="https://x.y/?a=1&amp;b=2">here</a>!', "[here](https://x.y/?a=1&b=2)!"),
        ("<a class=c href=https://x.y/(z) >a <b>b</b></a>", "[a **b**](https://x.y/%28z%29)"),
        ("<a name='n'>a</a><a href='javascript:alert(1)'>b</a><a href='/u'></a>", "ab"),
        ("Pick:<ul>\n<li>one</li>\n<li><b>two</b></li></ul>done", "Pick:\n\n- one\n- **two**\n\ndone"),
        ("<ul><li><p>a</p></li><li></li><li> b</ul>", "- a\n\n- b"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ('<a href="/u" title="x > y">a</a> <a href="/v">b', "[a](/u) [b](/v)"),
        ("<span style='x'>a</span><u>b</u><font color=red>c</font><img src='x'>", "abc"),
        ("<!DOCTYPE html><html><body>a</body></html>", "a"),
        ("a<!-- <b>no</b> > -->b<script>if (a<b) '<p>'</script>c<STYLE>p {}</style>d", "abcd"),
        ("a<script>b", "a"),
        ("&lt;b&gt; &amp;amp; &#39;&#x1F642; caf&eacute;&nbsp;!", "<b> &amp; '🙂 café\u00a0!"),
    ],
)
def test_html_becomes_markdown(html: str, expected: str) -> None:
    """HTML as chatbots write it becomes the Markdown that means the same."""
    assert converted(html) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d",
        "x<3, i <3 u, 1<2>0",
        "if a<b and c>d",
        "List<String> and Map<K,V>",
        "write to <your-name> at <you@example.org>",
        "AT&T & co; ?a=1&copy=2&lt &unknown; &#; &",
        "# Title\n\n* one\n* two\n\n    code  \n```\nx\n```\n",
        "  led and followed by white space \n\n",
        "ends in <",
        "ends in <b",
        "ends in </",
        "ends in &am",
        "<a href='never closed",
        "<<<>>>",
        "",
    ],
)
def test_what_is_no_html_stays(text: str) -> None:
    """Text that merely contains the characters of HTML stays as it is."""
    assert converted(text) == text
    assert converted(*text) == text


def test_a_long_tag_is_text() -> None:
    """A tag longer than what may be held back is text, in one piece and in many."""
    link = '<a href="' + "u" * HOLD + '">t</a>'
    assert converted(link) == converted(*link) == link.removesuffix("</a>")


def test_little_is_held_back() -> None:
    """An open tag is held back, at most 256 characters of it; plain text is out at once, white space with its word."""
    markup = MarkupFilter()
    assert markup.feed("plain text ") == "plain text"
    assert markup.feed("a<") == " a"
    assert markup.feed("3") == "<3"
    assert markup.feed("<a href='" + "x" * (HOLD - 10)) == ""
    assert len(markup.feed("x")) == HOLD
    assert markup.feed("y" * 1000) == "y" * 1000


TAGS = (
    "<b> </b> <i> </i> <p> </p> <br> <br/> <div> </div> <ul> </ul> <li> </li> </a> <code> </code> <td> <tr> <unknown>"
)
PIECES = st.sampled_from(
    [
        *TAGS.split(),
        *("<a href='u v'>", '<a href="x>y" id=1>', "<script>", "</script>", "<!--", "-->", "<!DOCTYPE x>"),
        *("&amp;", "&lt;", "&#39;", "&nope;", "&", "<", ">", "=", '"', "'"),
        *("a", "word", " ", "  ", "\n", "\n\n", "\r\n", "-", "/", "!", "<3", "\u00a0", "🙂", "x" * 130),
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14), st.lists(st.integers(min_value=0), max_size=8))
def test_cuts_make_no_difference(parts: list[str], cuts: list[int]) -> None:
    """The folded pieces equal the conversion of the whole, wherever the text was cut."""
    text = "".join(parts)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert converted(*pieces) == converted(text) == converted(*text)


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    """No text makes the filter fail, and text without `<` and `&` stays as it is."""
    assert converted(text) == converted(*text)
    plain = text.replace("<", "").replace("&", "")
    assert converted(plain) == plain
