"""Pages as markdown, plain text and HTML. Pure: what comes in is the records of pages, see ``ocr.page.PageRecord``.

What a model or a PDF says is not to be trusted: its HTML is reduced to what lays out a text, and its pictures to the
page's own figures. A page that is blank or could not be read is said to be so in each format: none is left out.
"""

import base64
import hashlib
import html
import re
from collections.abc import Callable, Mapping
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

FOLDER = "files/"
"""Where a document's files are, seen from the document."""

PAGE_BREAK = "\f"
"""Between the pages of a plain text: a form feed, as ``pdftotext`` writes it."""

# Characters of markdown beyond which a page is shown as it is: hardly any has so much, and parsing may take long.
LONGEST = 20_000

Record = Mapping[str, Any]
Picture = Callable[[str], str | None]
"""The address of a figure by the name of its file; None: it is not shown."""

_STYLE = """
body{margin:0 auto;max-width:60em;padding:1em 2em;font:1rem/1.5 system-ui,sans-serif;color:#222;background:#fff}
section{border-top:1px solid #bbb;padding:.5em 0 2em;overflow-wrap:anywhere}
section>header{color:#777;font-size:.8rem;text-align:right}
.note{border-left:.3em solid #999;padding:.3em 1em;background:#f4f4f4}
.failed{border-color:#b00;background:#fdeaea}
table{border-collapse:collapse}th,td{border:1px solid #bbb;padding:.2em .5em;vertical-align:top}
img{max-width:100%}pre{white-space:pre-wrap}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_RULES = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
# In the document itself, which may be kept as a file with its figures beside it.
_OWN_POLICY = f"{_RULES}; img-src 'self' data: file:"
POLICY = f"{_RULES}; img-src data: 'self'; frame-ancestors 'none'; sandbox"
"""The Content-Security-Policy of a document with its figures inside, but for large ones, which are linked."""

_TAGS = frozenset(
    "a b blockquote br caption code col colgroup dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins li ol p pre s "
    "small span strong sub sup table tbody td tfoot th thead tr u ul".split()
)
_ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title"},
    "ol": {"start"},
    "td": {"align", "colspan", "rowspan"},
    "th": {"align", "colspan", "rowspan"},
}
# Whatever begins otherwise is text that looks like HTML, on a page about it say: shown, where it would else be cut out.
_FOREIGN = re.compile(rf"<(?!/?(?:{'|'.join(sorted(_TAGS))})(?:[\s/>]|$))", re.IGNORECASE)
_ALIGNMENT = re.compile(r"text-align:(left|right|center)")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|&~-])")

_parser = MarkdownIt("commonmark", {"html": True, "maxNesting": 40}).enable(["table", "strikethrough"])


def _say(error: Mapping[str, Any] | None) -> str:
    error = error or {"message": "no reason was given", "code": "unknown"}
    return f"{' '.join(str(error['message']).split()).rstrip('.')} ({error['code']})"


def note(record: Record) -> str | None:
    """What there is to say of a page besides its text, in one or two sentences."""
    if record["status"] == "blank":
        return f"Page {record['number']} is blank."
    if record["status"] == "failed":
        rest = " What follows is the part that was read." if record["text"].strip() else ""
        return f"Page {record['number']} could not be read: {_say(record['error'])}.{rest}"
    return None


def as_text(record: Record) -> str:
    """The page's text; of a page that could not be read, first why. A blank page is empty."""
    said = note(record) if record["status"] == "failed" else None
    text = str(record["text"]).replace(PAGE_BREAK, "\n").strip("\n")
    return "\n\n".join(part for part in (f"[{said}]" if said else "", text) if part) + "\n"


def as_markdown(record: Record) -> str:
    """The page under a comment with its number; its figures are in FOLDER."""
    said = note(record)
    parts = [f"<!-- page {record['number']} -->", f"> **{_escaped(said)}**" if said else "", _body(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _body(record: Record) -> str:
    """The page's markdown, in which the names of its figures become paths."""
    text = str(record["markdown"] or record["text"]).strip("\n")
    for name in record["figures"]:
        text = re.sub(rf"(?<=\]\(){re.escape(name)}(?=[)\s])", FOLDER + name, text)
    return text


def html_head(title: str) -> str:
    return (
        '<!doctype html>\n<html>\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_OWN_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )


HTML_END = "</body>\n</html>\n"


def as_html(record: Record, picture: Picture) -> str:
    """The page as a section of an HTML document. May take a second of processor time."""
    number, said = record["number"], note(record)
    kind = "note failed" if record["status"] == "failed" else "note"
    said_so = f'<p class="{kind}">{html.escape(said)}</p>\n' if said else ""
    header = f'<section id="page-{number}">\n<header>Page {number}</header>\n'
    return f"{header}{said_so}{_content(record, picture)}</section>\n"


def _content(record: Record, picture: Picture) -> str:
    body = _body(record)
    if not body.strip():
        return ""
    if not str(record["markdown"]).strip() or len(body) > LONGEST:
        return f"<pre>{html.escape(body)}</pre>\n"
    own = {FOLDER + name: name for name in record["figures"]}

    def filtered(tag: str, attribute: str, value: str) -> str | None:
        # Whatever else it names would be fetched from a stranger's server.
        if (tag, attribute) == ("img", "src"):
            return picture(own[value]) if value in own else None
        return value

    return nh3.clean(
        _rendered(body),
        tags=set(_TAGS),
        attributes=_ATTRIBUTES,
        attribute_filter=filtered,
        clean_content_tags=set(),
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


def _rendered(markdown: str) -> str:
    tokens = _parser.parse(markdown)
    for token in tokens:
        _align(token)
        for part in (token, *(token.children or ())):
            if part.type in ("html_block", "html_inline"):
                part.content = _FOREIGN.sub("&lt;", part.content)
    return str(_parser.renderer.render(tokens, _parser.options, {}))


def _align(token: Token) -> None:
    """A table's columns are aligned by an attribute: styles are not let through."""
    if found := _ALIGNMENT.fullmatch(str(token.attrGet("style") or "")):
        token.attrs = {"align": found[1]}
