"""Every reader of foreign text, with texts that are the worst of their length for it.

A text that is refused at the bound grows up to the bound, which stands beside it.
"""
# ruff: noqa: SLF001 -- what reads is private, and is measured where it is

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec

from eventcore import clock, events, foreign, keys, kube_errors, logs, numbers, selectors
from eventcore.errors import EventError
from eventcore.objects import ClusterResource, Meta, ServiceAccount
from eventcore.publishable import publishable
from eventcore.settings import Settings
from proxycore import (
    access_log,
    authentication,
    documents,
    headers,
    identities,
    listquery,
    merging,
    passing,
    protobuf,
    representations,
    requestinfo,
    rule_matching,
    rules,
    xfcc,
)
from proxycore import selectors as field_selectors
from proxycore.client_certificates import ClientCertificates
from proxycore.local_tokens import ClusterKeys, LocalTokens
from proxycore.plane import heads
from proxycore.plane.chunks import ChunkReader
from proxycore.statuses import RefusedError
from watchers import answers
from watchers.kinds import KindRow
from workers import authority, cluster_rules, desired, kubeconfig, minting, options, own_annotations

Work = Callable[[], object]
Text = Callable[[int], str]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """``read`` takes what ``text`` makes of a length; ``most`` is the longest that is read at all."""

    read: Callable[[Any], object]
    text: Callable[[int], Any]
    most: int = 200_000


def _refusing(read: Callable[[Any], object]) -> Callable[[Any], object]:
    def tried(text: Any) -> None:
        with suppress(
            RefusedError, ValueError, EventError, msgspec.MsgspecError, UnicodeDecodeError, answers.UnreadableError
        ):
            read(text)

    return tried


def _cases(read: Callable[[Any], object], *texts: Callable[[int], Any], most: int = 200_000) -> list[Case]:
    return [Case(read=_refusing(read), text=text, most=most) for text in texts]


def runs(*pieces: str, end: str = "") -> list[Text]:
    """Return texts of one piece again and again."""

    def of(piece: str) -> Text:
        return lambda length: piece * (length // len(piece)) + end

    return [of(piece) for piece in pieces]


def _segment(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _jwt(length: int) -> str:
    return f"{_segment('{}')}.{_segment('[' + '1,' * (length // 3) + '1]')}.AAAA"


def _head(length: int, line: str = "a:b\r\n") -> bytes:
    return ("GET / HTTP/1.1\r\nHost: a\r\n" + line * (length // len(line)) + "\r\n").encode()


def _account(**annotations: str) -> ServiceAccount:
    return ServiceAccount(metadata=Meta(name="a", namespace="b", annotations=annotations))


def _rule(text: str) -> object:
    return cluster_rules.wrong(
        msgspec.convert(
            {"apiGroups": [text], "resources": [text], "selector": {"matchLabels": {"a": "b"}}}, ClusterResource
        )
    )


def _existing(length: int) -> Any:
    return SimpleNamespace(body={"data": {"token": "QUFB" * (length // 4)}})


def _object(length: int) -> bytes:
    annotations = {f"a{number}": "b" for number in range(length // 12)}
    return msgspec.json.encode({"metadata": {"name": "a", "annotations": annotations}})


def _list(length: int) -> bytes:
    item = {"metadata": {"name": "a", "labels": {"b": "c"}}}
    return msgspec.json.encode(
        {"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": [item] * (length // 60)}
    )


def _listed(length: int) -> bytes:
    return protobuf.Listed("v1", "NodeList", "1", "", [b"\x0a\x03\x0a\x01a"] * (length // 9)).encode()


def _chunks(data: bytes) -> None:
    reader = ChunkReader()
    for at in range(0, len(data), 64):
        reader.feed(data[at : at + 64])


def _certificate(length: int) -> str:
    return 'Cert="' + "%2D" * (length // 3) + '"'


_ROW: Final = KindRow(kind="Namespace", group="", version="v1", plural="namespaces")
_TOKENS: Final = LocalTokens(ClusterKeys(cast("Any", None)), lambda: cast("Any", {}), lambda: True)
_JUDGE: Final = ClientCertificates(ttl=1.0)

PARSERS: Final[dict[str, list[Case]]] = {
    "eventcore.clock:ServerClock.hear_date": _cases(
        lambda text: clock.ServerClock("a").hear_date(text, sent=0.0, received=0.0), *runs("9", "a ", " ", ":", ",")
    ),
    "eventcore.events:Event.of_headers": _cases(
        events.Event.of_headers,
        lambda length: {"ce-id": "a", "ce-source": "b", "ce-type": "c", "ce-time": "9" * length},
    ),
    "eventcore.foreign:is_namespace_name": _cases(foreign.is_namespace_name, *runs("a", "-", end="!")),
    "eventcore.foreign:is_object_name": _cases(foreign.is_object_name, *runs("a", "a.", "-", end="!")),
    "eventcore.keys:_encode": _cases(keys._encode, *runs("a", ".", "é"), most=20_000),
    "eventcore.keys:decode": _cases(keys.decode, *runs("a", "=2E", "="), most=60_000),
    "eventcore.kube_errors:_retry_after": _cases(kube_errors._retry_after, *runs("9", "a ", " 9")),
    "eventcore.logs:redact": _cases(
        logs.redact,
        *runs("eyJ", "eyJaaaaaa.", "eyJaaaaaa.a", "bearer ", "basic  ", "-----BEGIN ", "-----BEGIN A PRIVATE KEY-----"),
        *runs("://", "://a:", "LS0tLS1CRUdJTi", "-----BEGIN A", "A ", ":@", "eyJ-"),
    ),
    "eventcore.numbers:whole": _cases(lambda text: numbers.whole(text, numbers.UINT64), *runs("0", "9", "٩")),
    "eventcore.publishable:publishable": _cases(lambda body: publishable("Namespace", body), _object, most=50_000),
    "eventcore.selectors:parse": _cases(
        selectors.parse,
        *runs(" ", "a ", "a,", "a=b,", "a!=b,", "!", "=", "(", "!a,", "a>1,", "a ,"),
        *runs(" ", ",", ",  ", end="!"),
        lambda length: "a in (" + "b," * (length // 2) + "b)",
        lambda length: "a in (" + ",  " * (length // 3) + "!",
        lambda length: "a" * length + "=b",
        most=selectors.LONGEST,
    ),
    "eventcore.selectors:parse_selector": _cases(
        selectors._written.__wrapped__, *runs(" ", "a,", ",  "), most=selectors.LONGEST_WRITTEN
    ),
    "proxycore.access_log:_sane": _cases(access_log._sane, *runs("a", "eyJ")),
    "proxycore.access_log:_shown": _cases(access_log._shown, *runs("a", "eyJ")),
    "proxycore.authentication:_claims": _cases(authentication._claims, _jwt, *runs(".", "AAAA")),
    "proxycore.client_certificates:ClientCertificates.identify": _cases(
        _JUDGE.identify,
        lambda length: b"\x30\x84" + length.to_bytes(4, "big") + b"\x30" * length,
        lambda n: b"\x30" * n,
    ),
    "proxycore.documents:filter_list": _cases(
        lambda body: documents.filter_list(body, documents.View(form="json"), lambda _: True), _list
    ),
    "proxycore.headers:asked_identity": _cases(
        headers.asked_identity,
        lambda length: [("Impersonate-User", "a"), ("Impersonate-Extra-" + "%61" * (length // 3), "x")],
        lambda length: [("Impersonate-User", "a"), *[("Impersonate-Group", "x")] * (length // 20)],
        lambda length: [("Impersonate-User", "a"), *[(f"Impersonate-Extra-{n}", "x") for n in range(length // 20)]],
        most=20 * heads.MOST_FIELDS,
    ),
    "proxycore.headers:bearer_token": _cases(
        headers.bearer_token,
        *(lambda length, piece=piece: [("Authorization", "Bearer " + piece * length)] for piece in ("=", " ", "a")),
        *(lambda length, end=end: [("Authorization", "Bearer " + "=" * length + end)] for end in ("!", "a")),
        lambda length: [("Sec-WebSocket-Protocol", "base64url.bearer.authorization.k8s.io." + "AAAA" * (length // 4))],
    ),
    "proxycore.headers:forwarded": _cases(
        lambda found: headers.forwarded(found, ""),
        lambda length: [("Connection", "," * length)],
        lambda length: [("Connection", ",".join(map(str, range(length // 6)))), *[("a", "b")] * (length // 10)],
        lambda length: [("Sec-WebSocket-Protocol", "a," * (length // 2))],
        most=heads.LONGEST_FIELD,
    ),
    "proxycore.identities:account_of": _cases(
        identities.account_of,
        *runs("a", ":"),
        *(lambda n, end=end: f"system:serviceaccount:a:{'b.' * n}{end}" for end in "b!"),
    ),
    "proxycore.listquery:parse_query": _cases(
        listquery.parse_query,
        *runs("&", "a=", "%20", "%", "+"),
        lambda length: "labelSelector=" + "%20" * (length // 3),
        lambda length: "labelSelector=" + "+" * length + "!",
        lambda length: "labelSelector=" + "a%2C" * (length // 4),
        lambda length: "fieldSelector=" + "metadata.name=a," * (length // 16),
        lambda length: "timeoutSeconds=" + "9" * length,
        lambda length: "watch=1&resourceVersion=" + "0" * length,
        most=listquery.LONGEST_QUERY,
    ),
    "proxycore.local_tokens:LocalTokens._may_be": _cases(_TOKENS._may_be, _jwt, *runs(".", "AAAA")),
    "proxycore.merging:place_of": _cases(
        merging.place_of,
        *runs("AAAA", "="),
        lambda length: _segment('["a","1","' + "b" * length + '"]'),
        lambda length: _segment('["a","' + "9" * length + '"]'),
        lambda length: _segment("[" * length),
    ),
    "proxycore.passing:watch_seconds": _cases(
        passing.watch_seconds,
        *runs("&", "a=", "timeoutSeconds"),
        lambda length: "timeoutSeconds=" + "0" * length + "x",
        lambda length: "&timeoutSeconds=" * (length // 16),
    ),
    "proxycore.plane.chunks:ChunkReader.feed": _cases(
        _chunks,
        lambda length: b"1\r\na\r\n" * (length // 6),
        lambda length: b"%x\r\n" % length + b"a" * length,
        lambda length: b"0" * length,
    ),
    "proxycore.plane.heads:HeadReader.read": _cases(
        lambda raw: heads.HeadReader().read(raw),
        _head,
        lambda length: _head(length, "a\r\n"),
        lambda length: b"G" * length,
        lambda length: b"GET /" + b"a" * length + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        lambda length: _head(0) + b"a:" + b" " * length,
        lambda length: b"GET / HTTP/1.1\r\nHost: " + b"a" * length + b":\r\n\r\n",
        lambda length: b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + b"," * length + b"\r\n\r\n",
        lambda length: b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * length + b"\r\n\r\n",
    ),
    "proxycore.plane.heads:render_fields": _cases(
        heads.render_fields, lambda length: [("a", "b" * length)], lambda length: [("a", "b")] * (length // 4)
    ),
    "proxycore.protobuf:Listed.of": _cases(protobuf.Listed.of, _listed),
    "proxycore.protobuf:filter_list": _cases(
        lambda body: protobuf.filter_list(body, lambda _: True), _listed, most=50_000
    ),
    "proxycore.representations:negotiate": _cases(
        lambda text: representations.negotiate(text, watch=True), *runs(",", ";", "a/b,", "a;q=9,", "=")
    ),
    "proxycore.representations:quality_of": _cases(
        representations.quality_of, *runs(";", "=", "q=9"), lambda n: "q=" + "9" * n
    ),
    "proxycore.representations:takes": _cases(lambda text: representations.takes(text, "a/b"), *runs(",", ";", "a/b;")),
    "proxycore.requestinfo:parse": _cases(
        lambda text: requestinfo.parse("GET", text),
        *(lambda length, piece=piece: "/" + piece * (length // len(piece)) for piece in ("a/", "%61", "a", "%2", "/")),
        *(
            lambda length, piece=piece: "/api/v1/namespaces?" + piece * (length // len(piece))
            for piece in ("&", "%61", "watch", "&watch", "=")
        ),
        *(lambda length, piece=piece: "/tenant/" + piece * length for piece in ("a", "-", ".")),
    ),
    "proxycore.rule_matching:names_group": _cases(
        lambda text: rule_matching.names_group("*a" * 40 + "*b", text, "v1"), *runs("a", "ab", "b")
    ),
    "proxycore.rules:_finds": _cases(lambda text: rules._finds("^(a+)+$", text), *runs("a", end="!")),
    "proxycore.selectors:parse_fields": _cases(
        lambda text: field_selectors.parse_fields(text, ("a",)), *runs(",", "a=b,", "a", "=", "a=")
    ),
    "proxycore.xfcc:certificate_of": _cases(
        lambda text: xfcc.certificate_of([text]),
        *runs("a=;", " ", "a", "a=", '"', "\\", 'a="b";'),
        lambda length: 'a="' + "\\a" * (length // 2),
        lambda length: 'a="' + "\\a" * (length // 2) + '"',
        _certificate,
        most=heads.LONGEST_FIELD,
    ),
    "watchers.answers:read": _cases(lambda raw: answers.read(_ROW, raw), _object, most=50_000),
    "workers.authority:certificates": _cases(
        authority.certificates, *runs("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----", "-----BEGIN ")
    ),
    "workers.cluster_rules:wrong": _cases(_rule, *runs("a", "*", "a/", "-")),
    "workers.desired:token_audiences": _cases(desired.token_audiences, _jwt, *runs(".", "AAAA")),
    "workers.kubeconfig:_shows": _cases(lambda copy: kubeconfig._shows(copy, "AAAB"), _existing),
    "workers.minting:token_text": _cases(minting.token_text, _existing),
    "workers.options:options": _cases(
        lambda text: options.options(_account(**{"capsule-tether.io/proxy-url": text}), (), Settings()),
        *(lambda length, piece=piece: "https://" + piece * length for piece in ("a", "/", "a/", "?")),
    ),
    "workers.own_annotations:generation_in": _cases(own_annotations.generation_in, *runs("9", "0")),
    "workers.own_annotations:secret_name_in": _cases(own_annotations.secret_name_in, *runs("a", "-", ".")),
    "workers.own_annotations:time_in": _cases(own_annotations.time_in, *runs("9", "0001-01-01T")),
}

_SETTING: Final = "an administrator wrote it"
_OURS: Final = "a number or a time that Tether made"
_READ: Final = "another parser has read and bounded it before"

EXEMPT: Final[dict[str, str]] = {
    "eventcore.bus": _OURS,
    "eventcore.bus_credentials": _SETTING,
    "eventcore.health": _OURS,
    "eventcore.keys:parse_work_subject": _OURS,
    "eventcore.kube_errors:_bounded": _READ,
    "eventcore.logs:_hidden": "a name of ours, or of a field; the text under it goes through redact",
    "eventcore.pulling": _OURS,
    "eventcore.settings_reading": _SETTING,
    "proxycore.accounting": _OURS,
    "proxycore.auditing:_Room.__init__": _OURS,
    "proxycore.authentication:_cannot_tell": _READ,
    "proxycore.callers:CallerRules.trusts": "the address of a peer, as the kernel tells it",
    "proxycore.certificates": _SETTING,
    "proxycore.client_certificates:ClientCertificates.trust": _SETTING,
    "proxycore.filtered:status_of": _READ,
    "proxycore.fleet_metrics": _OURS,
    "proxycore.local_tokens:LocalTokens._signed": "of a token that _candidate has read whole",
    "proxycore.main": _OURS,
    "proxycore.measures": _OURS,
    "proxycore.namespace_lists:NamespaceLists._memory": _OURS,
    "proxycore.namespace_lists:NamespaceLists.answer_at_once": _OURS,
    "proxycore.peers": "the address of a peer, as the kernel tells it",
    "proxycore.plane.accepting": _OURS,
    "proxycore.plane.answers:Answered.begin": "llhttp takes no length of more than 64 bits",
    "proxycore.plane.client:ClientConnection._advance": "looks at each byte of a head once, from where it ended before",
    "proxycore.plane.dialling": _SETTING,
    "proxycore.representations:age": _OURS,
    "proxycore.watching:NamespaceWatch._send": _OURS,
    "workers.authority:Authority._recall": "a memory that Tether wrote, beside the proxy's CA",
    "workers.authority:Authority._source": "the proxy's CA, where administrators alone write",
    "workers.minting:_request": _OURS,
    "workers.minting:mint_token": "a time of the API server's own",
    "workers.sweeping": _OURS,
}
"""Functions, or whole files, whose text is nobody's that could be hostile, and why."""
