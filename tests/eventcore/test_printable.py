"""Foreign text on its way to a screen: nothing in it moves a cursor, hides, forges or turns around a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from eventcore import logs
from eventcore.errors import StartError
from eventcore.health import Readiness
from eventcore.printable import printable
from eventcore.process import report

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = "gas\r\nok \x1b[2J\x1b]0;title\x07\x9b31m\u202egpj.exe\u2028\u2066\x7f\x00"


@pytest.fixture
def _leave_logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)


@given(st.text(alphabet=st.characters()))
def test_every_character_that_comes_out_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable(f"a {text}") == f"a {text}"


@given(st.text(alphabet=st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Zs", "Co", "Cn"]), min_size=1))
def test_escaped_json_is_the_same_json(text: str) -> None:
    document = {text: [text]}
    assert msgspec.json.decode(printable(msgspec.json.encode(document).decode())) == document


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\x1b", r"\u001b"),
        ("\n", r"\n"),
        ("\r", r"\r"),
        ("\t", r"\t"),
        ("\x7f", r"\u007f"),
        ("\x9b", r"\u009b"),
        ("\u202e", r"\u202e"),
        ("\u2066", r"\u2066"),
        ("\u200b", r"\u200b"),
        ("\u2028", r"\u2028"),
        ("\ufeff", r"\ufeff"),
        ("\U000e0041", r"\udb40\udc41"),
        ("\ud800", r"\ud800"),
    ],
    ids=ascii,
)
def test_what_a_terminal_would_obey_is_written_out(character: str, shown: str) -> None:
    assert printable(f"a{character}b") == f"a{shown}b"


@pytest.mark.usefixtures("_leave_logging_as_it_was")
@pytest.mark.parametrize("shape", ["json", "console"])
def test_a_line_of_the_log_is_one_printable_line(shape: Any, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", shape, "work")
    logs.get("x").warning(HOSTILE, key=HOSTILE, error=ValueError(HOSTILE), nested={"name": [HOSTILE]})
    logging.getLogger("nats").error("%s", HOSTILE)

    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    if shape == "json":
        assert [json.loads(line)["event"] for line in lines] == [HOSTILE, HOSTILE]


def test_why_a_process_ends_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    report("watch", StartError(f"{HOSTILE} is wrong"))

    line = capsys.readouterr().err
    assert line.startswith("tether watch: gas")
    assert line.removesuffix("\n").isprintable()


def test_why_a_process_is_not_ready_is_one_printable_line() -> None:
    readiness = Readiness()
    readiness.set("view", ok=False, why=HOSTILE)

    assert readiness.report().isprintable()


@pytest.mark.usefixtures("_leave_logging_as_it_was")
def test_the_traceback_of_a_log_is_on_its_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "console", "work")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logs.get("x").error("failed", exc_info=sys.exc_info()[1])

    assert capsys.readouterr().err.removesuffix("\n").isprintable()
