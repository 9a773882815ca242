"""The documents: what they link to is there, and each test that they name as a proof is one."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TEST = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)(?:::(\w+))?`")


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@lru_cache
def _anchors(document: Path) -> frozenset[str]:
    """Return the anchors of a document's headings, as they are rendered from Markdown."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_what_a_document_links_to_is_there(document: Path) -> None:
    for link in _LINK.findall(document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{_name(document)} links to {link}"
        if anchor:
            assert anchor in _anchors(target), f"{_name(document)} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_each_test_that_a_document_names_is_one(document: Path) -> None:
    for file, function in _TEST.findall(document.read_text()):
        found = [one for one in ROOT.glob("tests/**/test_*.py") if f"/{one.relative_to(ROOT)}".endswith(f"/{file}")]
        assert len(found) == 1, f"{_name(document)} names {file}: {[_name(one) for one in found] or 'there is none'}"
        if function:
            defined = re.search(rf"def {function}\(", found[0].read_text())
            assert defined, f"{_name(document)} names {file}::{function}"
