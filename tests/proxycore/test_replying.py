"""The forms of answers that the proxy makes itself: protobuf where nothing else will do, gzip where it pays."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any, cast

import pytest

from eventcore.grants import CapsuleUserRef, Choice, ConfigGrant, Grant, SubjectGrant, TenantGrant
from proxycore.discovery import Discovery
from proxycore.filtered import FilteredKinds
from proxycore.identities import Identity
from proxycore.policy import Filtered, Freshness, decide
from proxycore.protobuf import MAGIC, MEDIA_TYPE
from proxycore.replying import THRESHOLD, reply
from proxycore.requestinfo import parse
from proxycore.statuses import RefusedError
from tests.proxycore.test_protobuf import answer, field, listed, thing

if TYPE_CHECKING:
    from eventcore.keys import Key
    from proxycore.plane.exchange import Request
    from tests.proxycore.conftest import World

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
FRESH = Freshness(ready=True, age=1.0)


class Memory:
    """dana owns oil, which may use the class ``fast``."""

    def __init__(self) -> None:
        grants: list[Grant] = [
            ConfigGrant(users=(CapsuleUserRef(kind="User", name="dana"),)),
            SubjectGrant(
                subject_kind="User",
                name="dana",
                tenants=("oil",),
                operations={"oil": {"StorageClasses": ("List",)}},
            ),
            TenantGrant(name="oil", uid="u", choices={"StorageClasses": Choice(names=("fast",))}),
        ]
        self._grants = {grant.key(): grant for grant in grants}

    def get(self, target: Key, /) -> Grant | None:
        return self._grants.get(target)


class Api:
    """An API server that answers with one body, and notes what it was asked."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.asked: list[tuple[str, str]] = []

    async def read(self, target: str, accept: str) -> bytes:
        self.asked.append((target, accept))
        return self.body


def decided(target: str) -> Filtered:
    found = decide(parse("GET", target), Identity(user="dana"), Memory(), FRESH)
    assert isinstance(found, Filtered)
    return found


def kinds(api: Api) -> FilteredKinds:
    none = cast("Any", None)
    return FilteredKinds(none, cast("Any", api), Discovery(none))


async def test_a_client_that_takes_protobuf_alone_lists_its_classes_in_it() -> None:
    # given an API server with two classes
    api = Api(listed(thing("fast"), thing("slow")))

    found = await kinds(api).answer(decided(CLASSES), MEDIA_TYPE)

    # then only the tenant's is in the list, and the API server was asked once, in protobuf
    assert found == answer(field(1, field(2, "4711")) + field(2, thing("fast")))
    assert api.asked == [(CLASSES, MEDIA_TYPE)]


async def test_one_object_in_protobuf_is_shown_or_left_to_rbac() -> None:
    api = Api(answer(thing("fast"), "StorageClass"))

    assert await kinds(api).answer(decided(f"{CLASSES}/fast"), MEDIA_TYPE) == api.body
    assert await kinds(api).answer(decided(f"{CLASSES}/slow"), MEDIA_TYPE) is None


async def test_a_client_that_takes_json_too_gets_json() -> None:
    api = Api(b'{"kind":"StorageClassList","apiVersion":"storage.k8s.io/v1","metadata":{},"items":[]}')

    await kinds(api).answer(decided(f"{CLASSES}?resourceVersion=1"), f"{MEDIA_TYPE},application/json")

    assert [accept for _, accept in api.asked] == ["application/json"]


async def test_what_is_no_protobuf_is_a_bad_gateway() -> None:
    with pytest.raises(RefusedError) as refused:
        await kinds(Api(b"{}")).answer(decided(CLASSES), MEDIA_TYPE)

    assert refused.value.status.code == 502


class Asking:
    """A request as far as an answer needs it."""

    def __init__(self, encodings: str) -> None:
        self.encodings = encodings
        self.answer: tuple[int, bytes, dict[str, str]] = (0, b"", {})

    def value(self, name: str) -> str:
        return self.encodings if name == "accept-encoding" else ""

    def reply(self, code: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.answer = code, body, dict(headers)


@pytest.mark.parametrize(
    ("encodings", "size", "packed"),
    [
        ("gzip", THRESHOLD, True),
        ("deflate, GZIP;q=0.5", THRESHOLD, True),
        ("gzip", THRESHOLD - 1, False),
        ("", THRESHOLD, False),
        ("gzip;q=0", THRESHOLD, False),
        ("br", THRESHOLD, False),
    ],
)
async def test_a_large_answer_is_compressed_for_whoever_takes_gzip(encodings: str, size: int, *, packed: bool) -> None:
    asking, body = Asking(encodings), b"x" * size

    await reply(cast("Request", asking), body)

    code, sent, headers = asking.answer
    assert code == 200
    assert (headers.get("Content-Encoding") == "gzip") == packed
    assert (gzip.decompress(sent) if packed else sent) == body


async def test_protobuf_is_told_as_what_it_is() -> None:
    asking = Asking("")

    await reply(cast("Request", asking), MAGIC + b"rest")

    assert asking.answer[2] == {"Content-Type": MEDIA_TYPE}


@pytest.mark.parametrize("query", ["", "?resourceVersion=0"], ids=["consistent", "from memory"])
async def test_a_large_list_of_namespaces_arrives_whole_for_a_client_that_takes_gzip(world: World, query: str) -> None:
    # given so many namespaces with such names that no selector upstream could hold them
    names = [f"oil-{number}-{'production' * 4}" for number in range(160)]
    for name in names:
        await world.namespace(name, {f"l{number}": "v" * 60 for number in range(12)})
    owner = await world.owner("oil", *names)
    await world.settle()

    found = await owner.get(f"/api/v1/namespaces{query}", headers={"Accept-Encoding": "gzip"})

    assert found.status == 200
    assert found.names == sorted(names)
    assert found.headers.get("Content-Encoding") == "gzip"
