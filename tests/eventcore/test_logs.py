"""Logs: the shape of a line, the level, and that no secret comes through."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from eventcore import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIBkg\n-----END EC PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "aiohttp.access")}
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def refuse(message: str) -> None:
    raise OSError(message)


def test_a_line_is_one_json_object_with_its_bound_keys(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "work")
    logs.get("workers.token").bind(key="oil-system/gitops").info("token minted", generation=3)
    (line,) = lines(capsys)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info",
        "event": "token minted",
        "logger": "workers.token",
        "role": "work",
        "key": "oil-system/gitops",
        "generation": 3,
    }


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json", "work")
    log = logs.get("x")
    log.info("quiet")
    logging.getLogger("nats").info("quiet too")
    log.warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_a_line_never_breaks_over_two(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "work")
    logs.get("x").info("first\nsecond", value="a\nb")
    assert [line["event"] for line in lines(capsys)] == ["first\nsecond"]


def test_records_of_the_standard_library_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "watch")
    logging.getLogger("nats.client").warning("reconnecting to %s", "nats://me:hunter2@host:4222")
    (line,) = lines(capsys)
    assert (line["logger"], line["level"], line["role"]) == ("nats.client", "warning", "watch")
    assert line["event"] == "reconnecting to nats://[hidden]@host:4222"


def test_a_record_with_wrong_arguments_is_still_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "watch")
    logging.getLogger("nats").warning("%d of", "x")
    assert [line["event"] for line in lines(capsys)] == ["%d of"]


def test_console_format_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console", "work")
    logs.get("x").info("token minted", key="a/b", token="t0p")
    text = capsys.readouterr().err
    assert "token minted" in text
    assert "key=a/b" in text
    assert "t0p" not in text


@pytest.mark.parametrize(
    "key",
    [
        "token", "Authorization", "password", "nats_password", "clientKey", "client-key-data", "tls.key", "private_key",
        "kubeconfig", "accessToken", "cookie", "bearer", "apiKey", "credentials", "tokens",
    ],
)  # fmt: skip
def test_a_key_that_says_credential_hides_its_value(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "work")
    logs.get("x").info("said", **{key: "short"}, deep={"list": [{key: b"short"}]})
    (line,) = lines(capsys)
    assert line[key] == "[hidden]"
    assert line["deep"] == {"list": [{key: "[hidden]"}]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("secret", "oil-system/gitops-token"),
        ("token_ttl", 3600),
        ("key", "oil/gitops"),
        ("kubeconfig_file", "/k"),
        ("tokens", 3),
    ],
)
def test_a_key_that_only_names_something_shows_it(key: str, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "work")
    logs.get("x").info("said", **{key: value})
    assert lines(capsys)[0][key] == value


@pytest.mark.parametrize(
    "secret",
    [
        JWT,
        JWT.rsplit(".", 1)[0],
        PEM,
        PEM.split("-----END", maxsplit=1)[0],
        base64.b64encode(PEM.encode()).decode(),
        "Bearer abcdef0123456789",
    ],
)
def test_a_value_that_looks_like_a_secret_is_hidden_wherever_it_stands(
    secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("debug", "json", "work")
    try:
        refuse(f"refused {secret} there")
    except OSError:
        logs.get("x").exception(f"message {secret}", note=f"see {secret}!", deep=[{"a": (secret,)}], odd={secret})
    assert secret not in capsys.readouterr().err.replace("\\n", "\n")


def test_the_data_of_an_object_is_hidden_and_its_keys_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "work")
    logs.get("x").info("wrote", object={"kind": "Secret", "data": {"token": "YQ=="}, "stringData": {"a": "b"}})
    assert lines(capsys)[0]["object"] == {
        "kind": "Secret",
        "data": {"token": "[hidden]"},
        "stringData": {"a": "[hidden]"},
    }


def test_structs_bytes_and_deep_values_are_plain_json(capsys: pytest.CaptureFixture[str]) -> None:
    class Issued(msgspec.Struct):
        token: str
        seconds: int

    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    logs.configure("info", "json", "work")
    logs.get("x").info("said", issued=Issued("abc", 5), body=b"12345", raw=msgspec.Raw(b"{}"), deep=deep)
    (line,) = lines(capsys)
    assert line["issued"] == {"token": "[hidden]", "seconds": 5}
    assert (line["body"], line["raw"]) == ("[5 bytes]", "[2 bytes]")


@pytest.mark.parametrize(
    ("before", "secret"),
    [
        ("eyJ", JWT),
        ("eyJeyJeyJ-", JWT),
        ("eyJabcdefgh", base64.b64encode(PEM.encode()).decode()),
        ("eyJabcdefgh", PEM),
        ("eyJabcdefgh-", "Bearer abcdef0123456789"),
    ],
    ids=["a JWT", "a JWT after beginnings", "PEM in base64", "PEM", "Bearer"],
)
def test_the_beginning_of_a_jwt_hides_no_secret_from_being_hidden(before: str, secret: str) -> None:
    assert secret not in logs.redact(f"{before}{secret} ")


def test_the_beginning_of_a_jwt_that_is_none_stays() -> None:
    assert logs.redact("eyJ eyJabcdefgh, eyJ" * 3) == "eyJ eyJabcdefgh, eyJ" * 3


# The word Bearer goes with its token.
@given(st.text(max_size=30).filter(lambda text: not text.lower().endswith("bearer")), st.text(max_size=30))
def test_redaction_keeps_what_stands_around_a_token(before: str, after: str) -> None:
    text = logs.redact(f"{before} {JWT} {after}")
    assert JWT not in text
    assert text == f"{logs.redact(before + ' ')}[hidden] {after}" or "[hidden]" in before + after


def test_an_exception_is_type_and_message_and_its_trace_only_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        try:
            refuse("no\nroute")
        except OSError:
            logs.get("x").exception("could not send")

    logs.configure("info", "json", "work")
    fail()
    (line,) = lines(capsys)
    assert line["error"] == "OSError: no route"
    assert "Traceback" not in json.dumps(line)

    logs.configure("debug", "json", "work")
    fail()
    (line,) = lines(capsys)
    assert line["error_trace"].startswith("Traceback")


async def test_an_error_that_no_task_caught_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "work")
    loop = asyncio.get_running_loop()
    logs.watch_loop(loop)
    called = asyncio.Event()

    def fail() -> None:
        called.set()
        raise RuntimeError("nobody listens")

    loop.call_soon(fail)
    await called.wait()
    await asyncio.sleep(0)
    (line,) = lines(capsys)
    assert (line["level"], line["error"]) == ("error", "RuntimeError: nobody listens")
