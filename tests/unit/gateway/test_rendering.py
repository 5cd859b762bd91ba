import re
import time
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.documents import overlay, rendering
from ocr.page import Block, PageRecord, PageStatus, figure_name

FIGURE = figure_name(1, 1)
PIECES = [
    *("<", ">", "/", "script", "img", " src=", "onerror=x", '"', "'", "](", "[", "!", "javascript:", "\n", "a", "`"),
    *("<table>", "<td ", "<!--", "-->", "<![CDATA[", "&lt;", "&#x6a;", "|", "---", "\x00", "<svg>", "style=", "\\"),
]
TEXTS = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def record(markdown: str, **changes: Any) -> dict[str, Any]:
    fields = {"text": markdown, "markdown": markdown, "figures": (FIGURE,)} | changes
    return PageRecord(1, fields.pop("status", PageStatus.COMPLETED), 100, 200, **fields).to_json()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(html)
    parser.close()
    return parser.found


@given(TEXTS)
@example(f"![x]({FIGURE})")
@example('<img src="//evil">')
def test_whatever_a_model_writes_only_layout_comes_of_it(markdown: str) -> None:
    html = rendering.as_html(record(markdown), lambda name: f"data:image/png;base64,{name}")
    assert html.count("</section>") == 1
    for tag, attributes in tags(html):
        assert tag in rendering._TAGS | {"section", "header"}
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "class")]
        assert attributes.get("src") in (None, f"data:image/png;base64,{FIGURE}")
        assert not re.match(r"\s*(javascript|data|vbscript):", attributes.get("href") or "", re.IGNORECASE)


def test_a_page_that_is_endless_is_shown_as_it_is() -> None:
    html = rendering.as_html(record("[" * (rendering.LONGEST + 1)), lambda _: None)
    assert "<pre>" + "[" * (rendering.LONGEST + 1) + "</pre>" in html


@pytest.mark.parametrize("piece", ["![", "[][", "![]("])
def test_no_page_keeps_a_processor_busy_for_long(piece: str) -> None:
    hostile = (piece * 30_000)[:59_000]
    began = time.thread_time()
    assert f"<pre>{hostile}</pre>" in rendering.as_html(record(hostile), lambda _: None)
    rendering.as_html(record(hostile[: rendering.LONGEST]), lambda _: None)
    # A tenth of it, but under the coverage's tracer on a busy machine.
    assert time.thread_time() - began < 10


def test_a_page_without_markdown_shows_its_text() -> None:
    html = rendering.as_html(record("", text="a < b\n  *c*"), lambda _: None)
    assert "<pre>a &lt; b\n  *c*</pre>" in html


def test_a_figure_without_a_file_is_not_shown() -> None:
    html = rendering.as_html(record(f"![a cat]({FIGURE})"), lambda _: None)
    assert '<img alt="a cat">' in html


def test_only_the_pages_own_figures_become_paths() -> None:
    markdown = rendering.as_markdown(record(f"![a]({FIGURE}) ![b](other.png) {FIGURE}"))
    assert f"![a](files/{FIGURE}) ![b](other.png) {FIGURE}" in markdown


def test_the_reason_of_a_failure_is_text_in_each_format() -> None:
    error = {"code": "odd", "message": "<b>*No*\nway</b>."}
    failed = record("", status=PageStatus.FAILED, error=error)
    said = "Page 1 could not be read: <b>*No* way</b> (odd)."
    assert rendering.as_text(failed) == f"[{said}]\n"
    assert "could not be read: &lt;b&gt;*No* way&lt;/b&gt; (odd)." in rendering.as_html(failed, lambda _: None)
    assert r"\<b\>\*No\* way\</b\>" in rendering.as_markdown(failed)


def test_form_feeds_separate_pages_and_nothing_else() -> None:
    assert rendering.as_text(record("one\ftwo")) == "one\ntwo\n"


def test_the_policy_allows_the_documents_own_style_and_no_script() -> None:
    head = rendering.html_head("</title><script>")
    assert "<script>" not in head
    assert "script-src" not in rendering.POLICY
    assert "default-src 'none'" in rendering.POLICY


@given(TEXTS, TEXTS)
@example("\ud800", "\x00\x0b\ufffe")
def test_an_overlay_is_well_formed_whatever_is_written_on_the_page(text: str, kind: str) -> None:
    blocks = (Block(kind, text, (1, 2, 3, 4), 0.5), Block("text", text))
    drawn = ElementTree.fromstring(overlay.svg(record("", blocks=blocks), b"\xff\xd8").encode())
    names = [element.tag.rpartition("}")[2] for element in drawn.iter()]
    assert names == ["svg", "title", "image", "g", "rect", "text", "title"]
    assert all(not name.startswith("on") for element in drawn.iter() for name in element.attrib)
