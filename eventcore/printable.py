"""Foreign text before it is shown: what a terminal would obey, or would not show as it is, is written out.

Names, labels and messages come from tenants and from servers. An escape sequence among them moves the cursor or hides
a line, a line feed forges one, and a bidirectional control turns what stands beside it around.
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with every character that is not printable, line feeds too, as JSON writes it: ``\u001b``.

    Only space counts as printable among the blanks. A text in JSON stays the same JSON, since outside of its strings
    there is nothing to replace in a document of one line.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    short = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(one)
    if short is not None:
        return short
    units = one.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
