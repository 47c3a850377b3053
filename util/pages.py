"""Web pages that open from disk, offline: of a training, of the results of test.py, of a study.

Files are given relative to the page's folder. Names may hold anything a file system allows: they are quoted
as URLs, and characters that cannot be printed (a newline, a byte that is not UTF-8) are shown as escapes.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dominate
from dominate import tags
from dominate.util import raw

from util.files import write_atomically

STYLE = """
:root{color-scheme:light dark;
--page:#f5f6f8;--card:#fff;--text:#1c2128;--faint:#5b6470;--line:#e3e7ec;--link:#0b5cad}
@media(prefers-color-scheme:dark){:root{
--page:#14171c;--card:#1c2128;--text:#e6eaf0;--faint:#9aa4b1;--line:#2a3039;--link:#6cb6ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem clamp(.6rem,3vw,2.5rem) 4rem;max-width:120rem;overflow-wrap:anywhere;
background:var(--page);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;margin:0 0 1rem}
h2{font-size:1.1rem;margin:2rem 0 .75rem}
h3{font-size:.95rem;margin:0 0 .6rem}
a{color:var(--link)}
p{max-width:60rem;margin:.4rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.9rem 1rem;
margin:0 0 .9rem}
.wide{overflow-x:auto}
.plot img{display:block;width:100%;min-width:48rem;height:auto}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 2rem}
dt,figcaption,small{color:var(--faint);font-size:.85rem}
dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
figure{margin:0;max-width:100%}
figure img{display:block;width:100%;height:auto;background:var(--line);border-radius:3px}
.row{display:grid;gap:.6rem;grid-template-columns:repeat(auto-fit,minmax(min(11rem,40%),1fr))}
.row figure{max-width:32rem}
.strip{display:grid;grid-template-columns:5rem 1fr;align-items:center;max-width:44rem;margin:0 0 .4rem}
.strip figcaption{order:-1}
.slider{position:relative}
.slider .over{position:absolute;inset:0;height:100%;clip-path:inset(0 0 0 var(--at,50%))}
.slider input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize}
.slider::after{content:"";position:absolute;inset:0 auto 0 var(--at,50%);width:2px;background:#fff;
box-shadow:0 0 3px #000;pointer-events:none}
.slider:focus-within{outline:3px solid var(--link)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .9rem .35rem 0;text-align:left;vertical-align:top;white-space:nowrap}
tbody>*>*{border-top:1px solid var(--line)}
td small,th small{display:block;font-weight:400}
"""


class Page:
    """A page put together from top to bottom, then saved as `folder/index.html`."""

    def __init__(self, folder: str | Path, title: str):
        self.folder, self.title = Path(folder), printable(title)
        self._parts: list[str] = []  # finished HTML

    def add(self, tag: tags.html_tag) -> None:
        """Any tag of dominate."""
        self._parts.append(tag.render(pretty=False))

    def add_header(self, text: str) -> None:
        self.add(tags.h2(printable(text)))

    def add_text(self, text: str) -> None:
        self.add(tags.p(printable(text)))

    def add_link(self, file: str, text: str) -> None:
        self.add(tags.p(tags.a(printable(text), href=url(file))))

    def add_facts(self, facts: Mapping[str, str]) -> None:
        """A line of named values, such as the state of a run."""
        entries = [tags.div(tags.dt(printable(name)), tags.dd(printable(v))) for name, v in facts.items()]
        self.add(tags.dl(*entries, cls="facts card"))

    def add_plot(self, file: str, description: str) -> None:
        """A drawing as wide as the page, linked to its file."""
        self.add(tags.div(_linked(file, description), cls="plot wide card"))

    def add_strip(self, caption: str, file: str) -> None:
        """A wide image with its caption beside it."""
        self.add(_figure(file, caption, cls="strip"))

    def add_images(self, caption: str, images: Mapping[str, str], compare: str = "") -> None:
        """Images by label side by side; `compare` begins with that one over the first under a slider."""
        figures = [_figure(file, label) for label, file in images.items()]
        if compare:
            first = next(iter(images))
            figures.insert(0, _slider(images[first], images[compare], printable(f"{first} | {compare}")))
        self.add(tags.section(tags.h3(printable(caption)), tags.div(*figures, cls="row"), cls="card"))

    def save(self) -> None:
        """Write the page, replacing an older one in one move. Raises OSError."""
        document = dominate.document(title=self.title)
        document["lang"] = "en"
        with document.head:
            tags.meta(charset="utf-8")
            tags.meta(name="viewport", content="width=device-width, initial-scale=1")
            tags.style(raw(STYLE))
        document.body.add(tags.h1(self.title), raw("\n".join(self._parts)))
        self.folder.mkdir(parents=True, exist_ok=True)
        text = document.render(pretty=False)
        write_atomically(self.folder / "index.html", lambda file: file.write_text(text, encoding="utf-8"))


def put_numbers(page: Path, receipt: Path, results: Mapping[str, Any]) -> None:
    """Show an evaluation on a page of results, if there is one, instead of an earlier evaluation."""
    if not page.is_file():
        return
    shown = Page(page.parent, "")
    shown.add_facts({name: f"{number:.4f}" for name, number in results["numbers"].items()})
    shown.add_link(os.path.relpath(receipt, page.parent), results["compared"])
    numbers, text = "\n".join(shown._parts), page.read_text(encoding="utf-8")
    text = re.sub("(?s)(?<=</dl>).*?(?=<section)", lambda _: numbers, text, count=1)
    write_atomically(page, lambda file: file.write_text(text, encoding="utf-8"))


def _linked(file: str, description: str) -> tags.html_tag:
    return tags.a(tags.img(src=url(file), alt=printable(description), loading="lazy"), href=url(file))


def _figure(file: str, caption: str, **attributes: str) -> tags.html_tag:
    return tags.figure(_linked(file, caption), tags.figcaption(printable(caption)), **attributes)


def _slider(left: str, right: str, caption: str) -> tags.html_tag:
    """One image to the left of a line that the reader moves, another one to its right."""
    below = tags.img(src=url(left), alt="", loading="lazy")
    over = tags.img(src=url(right), alt="", loading="lazy", cls="over")
    move = "this.parentNode.style.setProperty('--at',this.value+'%')"
    line = tags.input_(type="range", min=0, max=100, value=50, oninput=move, aria_label=caption)
    return tags.figure(tags.div(below, over, line, cls="slider"), tags.figcaption(caption))


def table(head: Sequence[str], rows: Iterable[Sequence[str | tags.html_tag]]) -> tags.html_tag:
    """A table on a card, to add to a page. Cells are text or tags; the first of a row heads it."""
    body = tags.tbody()
    for first, *others in rows:
        cells = (cell if isinstance(cell, tags.td) else tags.td(cell) for cell in others)
        body.add(tags.tr(tags.th(first), *cells))
    return tags.div(tags.table(tags.thead(tags.tr(*map(tags.th, head))), body), cls="card wide")


def printable(text: str) -> str:
    """The text with escapes for what cannot be shown or saved as UTF-8: a newline becomes \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def url(file: str) -> str:
    """A relative path as a relative URL; bytes that are not UTF-8 keep their value."""
    # "./" so that a colon in the first part cannot be read as a scheme.
    return "./" + quote(os.fsencode(Path(file).as_posix()))
