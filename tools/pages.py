"""Parts of HTML and markdown pages: escaped text, small pictures, tables."""

import base64
import html
import io
import re

from data import read_picture


def escape(text: str) -> str:
    """Untrusted text as HTML: escaped, without control and direction characters, shortened in the middle, the
    boxed answer in bold."""
    if len(text) > 1500:
        text = f"{text[:1000]} [… {len(text) - 1500} characters …] {text[-500:]}"
    plain = "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    return re.sub(r"\\boxed\{([^{}]+)\}", r"<b class=boxed>\1</b>", html.escape(plain))


def thumbnail(image: str | bytes, side: int = 440) -> str:
    """A picture (path or encoded file), at most `side` pixels long, as a data URI."""
    picture, file = read_picture(image), io.BytesIO()
    picture.thumbnail((side, side))
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def markdown_table(rows: list) -> str:
    """Rows as a markdown table; the first row is its head.

    >>> print(markdown_table([["a", "b"], [1, "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    head, *body = ("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
