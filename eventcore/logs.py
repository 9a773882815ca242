"""Logs: one JSON object a line on stderr, constant messages with bound keys, and never a secret.

Whatever a caller binds passes through `redact`, and so do the records of libraries that use the standard `logging`.
What is not printable is written out (eventcore/printable.py), for whoever reads them on a terminal. An exception is
logged as its type and message; its traceback only at level debug.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
import structlog

from eventcore.printable import printable

if TYPE_CHECKING:
    import asyncio

    from structlog.typing import FilteringBoundLogger, Processor

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

HIDDEN = "[hidden]"
_MAX_DEPTH = 6
_LEVELS: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_FIRST = ("ts", "level", "event", "logger", "role")

# A key hides its value when its last word says credential; "secret" alone does not, since it names an object.
_SECRET_KEY = re.compile(
    r"(?:^|_)(?:tokens?|jwt|bearer|passw(?:or)?d|passphrase|authorization|cookies?|credentials?|kubeconfig"
    r"|(?:private|client|tls|api|signing)_key|key_data|seed)$"
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_OBJECT_DATA = frozenset({"data", "string_data"})
_SECRET_TEXT = re.compile(
    r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"  # a JWT, whole or cut
    r"|(?i:\b(?:bearer|basic) +)[A-Za-z0-9._~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.|\n)*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|LS0tLS1CRUdJTi[A-Za-z0-9+/=]+"  # any PEM in base64, as kubeconfigs and Secrets hold it
    r"|(?<=://)[^/@\s:]*:[^/@\s]+(?=@)"  # user:password in a URL
    # What begins as a JWT and is none is passed over at once: a text of such beginnings would be read anew for each.
    r"|(?P<passed>eyJ(?:(?!LS0tLS1CRUdJTi|-----BEGIN|(?i:bearer|basic))[A-Za-z0-9_-])*+)"
)


def redact(text: str) -> str:
    """Return the text with every part that looks like a token, key or password replaced by ``[hidden]``."""
    return _SECRET_TEXT.sub(lambda found: found[0] if found["passed"] else HIDDEN, text)


def configure(level: Level, format: Format, role: str) -> None:  # noqa: A002 - the setting's own name
    """Set up logging of this process; ``role`` is bound to every line. May be called again."""
    structlog.configure(
        processors=_processors(format, role, traces=level == "debug"),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: structlog.WriteLogger(cast("Any", _Stderr())),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Forward()]
    root.setLevel(_LEVELS[level])
    # These two say each request and each timer at debug.
    for noisy in ("asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(_LEVELS[level], logging.WARNING))


def get(name: str) -> FilteringBoundLogger:
    """Return a logger; ``name`` appears as ``logger`` on each of its lines."""
    return cast("FilteringBoundLogger", structlog.get_logger(logger_name=name))


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Log what no task caught as one line."""
    log = get("eventcore.loop")

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("unhandled error in the event loop", what=context.get("message"), error=context.get("exception"))

    loop.set_exception_handler(handle)


def describe_error(error: BaseException) -> str:
    """Return ``Type: message`` on one line, redacted."""
    message = " ".join(str(error).split())
    return redact(f"{type(error).__name__}: {message}" if message else type(error).__name__)


class _Stderr:
    """stderr as it is when a line is written, since tests and daemons replace it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Forward(logging.Handler):
    """Sends records of the standard library's loggers through our processors."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.ERROR)
        error = record.exc_info[1] if record.exc_info else None
        get(record.name).log(level, message, **({"error": error} if error else {}))


def _processors(format: Format, role: str, *, traces: bool) -> list[Processor]:  # noqa: A002 - as above
    def bind_role(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["logger"] = event.pop("logger_name", "")
        event.setdefault("role", role)
        return event

    def errors(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return _with_errors(event, traces=traces)

    renderers: list[Processor] = (
        [_printable_texts, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), timestamp_key="ts")]
        if format == "console"
        else [structlog.processors.JSONRenderer(serializer=_to_json)]
    )
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        bind_role,
        errors,
        _hide_secrets,
        *renderers,
    ]


def _with_errors(event: MutableMapping[str, Any], *, traces: bool) -> MutableMapping[str, Any]:
    given = event.pop("exc_info", None)
    if given:
        found = given if isinstance(given, BaseException) else sys.exc_info()[1]
        event.setdefault("error", found)
    for key, value in list(event.items()):
        if isinstance(value, BaseException):
            event[key] = describe_error(value)
            if traces:
                event[f"{key}_trace"] = "".join(traceback.format_exception(value))
    return event


def _hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    ordered = {key: event[key] for key in _FIRST if key in event}
    return (
        ordered
        | {key: _hidden(key, value) for key, value in event.items() if key not in ordered}
        | {"event": redact(str(event.get("event", "")))}
    )


def _hidden(key: str, value: Any, depth: int = 0) -> Any:
    """Return a value that is safe to write: plain JSON types, secrets hidden, nesting bounded."""
    if value is None or isinstance(value, bool | int | float):
        return value
    word = re.sub(r"[^a-z0-9]+", "_", _CAMEL.sub("_", key).lower())
    if _SECRET_KEY.search(word):
        return HIDDEN if value else value
    if isinstance(value, bytes | bytearray | memoryview | msgspec.Raw):
        return f"[{memoryview(value).nbytes} bytes]"
    if depth < _MAX_DEPTH:
        if isinstance(value, msgspec.Struct):
            value = msgspec.structs.asdict(value)
        if isinstance(value, Mapping):
            hide_all = word in _OBJECT_DATA
            return {str(k): HIDDEN if hide_all else _hidden(str(k), inner, depth + 1) for k, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_hidden(key, inner, depth + 1) for inner in value]
    return redact(str(value))


def _printable_texts(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # What is nested is shown by its repr, which is printable.
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _to_json(event: Any, **_: Any) -> str:
    return printable(msgspec.json.encode(event, enc_hook=str).decode())
