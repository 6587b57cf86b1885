"""What all pages share: each is one file that needs no other, in a light and a dark style."""

from __future__ import annotations

from html import escape

COLOURS = """
--text: #1a1a1a; --faint: #555; --page: #fff; --band: #f1f3f6; --line: #cfd4da; --link: #0b4fb3;
  --bar: #d6e4f7;
--tip: #7ea9e0;
"""
DARK = """
--text: #e8eaed; --faint: #b3b9c1; --page: #15181c; --band: #23282f; --line: #414852;
  --link: #8ab8ff; --bar: #24405f;
--tip: #4f83bd;
"""
# `color-scheme` makes the browser's own parts (scroll bars, boxes, fields) follow the style.
STYLE = f"""
:root {{ color-scheme: light dark; {COLOURS} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1rem; color: var(--text);
  background: var(--page); }}
a {{ color: var(--link); }}
h1 {{ font-size: 1.4rem; margin: 0 0 .4rem; }}
h2 {{ font-size: 1.1rem; margin: 1.4rem 0 .4rem; }}
p {{ max-width: 75ch; margin: .4rem 0; }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
.wide {{ overflow: auto; }}
table {{ border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }}
thead th {{ position: sticky; top: 0; z-index: 1; background: var(--page);
  border-bottom: 2px solid var(--faint); }}
"""


def document(title: str, body: str, style: str = STYLE, script: str = "", onload: str = "") -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        body: Markup.
        style: Its style sheet.
        script: Code to run once the page is loaded.
        onload: The same as an attribute, for a page that is embedded in a script: a ``script``
            element would end that one.
    """
    attribute = f' onload="{escape(onload)}"' if onload else ""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body{attribute}>\n{body}\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )
