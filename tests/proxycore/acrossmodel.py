"""A Kubernetes API in memory for lists of one kind, and grants and rights for it: a stand for lists across namespaces.

Kept simple on purpose, and apart from the code that it judges: a store is what each namespace held at each version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from eventcore.clock import now
from eventcore.events import Mark
from eventcore.objects import RBAC_KINDS
from proxycore.access_reviews import AccessReviews
from proxycore.across import Crossing, read
from proxycore.across_list import AcrossList, Room
from proxycore.discovery import Discovery
from proxycore.requestinfo import parse
from proxycore.rights import Rights
from tests.proxycore.test_policy import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventcore.grants import Grant
    from eventcore.views import Change, ObjectRecord
    from proxycore.identities import Identity

HISTORY = {5: -1, 6: 0, 7: 1}
"""Versions of the store, and what was different at each: an object fewer in every namespace, none, one more."""


class Answer:
    """What the API answers."""

    def __init__(self, code: int, body: dict[str, Any]) -> None:
        self.code = code
        self._body = msgspec.json.encode(body)

    async def read(self) -> bytes:
        return self._body


def status(code: int, reason: str) -> Answer:
    return Answer(code, {"kind": "Status", "code": code, "reason": reason, "message": f"{reason} it is"})


class Api:
    """Objects by namespace. ``refused`` namespaces answer 403 whatever a review said; ``lost`` counts 410s to give."""

    def __init__(
        self, objects: Mapping[str, list[str]], *, refused: frozenset[str] = frozenset(), lost: int = 0
    ) -> None:
        self.objects = objects
        self.refused = refused
        self.lost = lost
        self.version = 6
        self.asked: list[str] = []

    async def send(self, target: str, accept: str) -> Any:
        """Answer a list of one namespace as kube-apiserver does: pages, and exact versions."""
        assert accept == "application/json"
        split = urlsplit(target)
        parts = split.path.split("/")
        assert parts[:4] == ["", "api", "v1", "namespaces"]
        assert parts[5:] == ["pods"]
        namespace = parts[4]
        self.asked.append(namespace)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        if namespace in self.refused:
            return status(403, "Forbidden")
        version, start = self.version, 0
        if token := query.get("continue"):
            assert "resourceVersion" not in query
            where, at, place = token.split("+")
            assert where == namespace, "a token of another namespace went upstream"
            version, start = int(at), int(place)
        elif query.get("resourceVersionMatch") == "Exact":
            version = int(query["resourceVersion"])
            if self.lost:
                self.lost -= 1
                return status(410, "Expired")
        items = self.at(namespace, version)
        # From its cache an API server may answer with all there is, whatever the limit.
        limit = int(query["limit"]) if query.get("resourceVersion") != "0" else len(items) + 1
        page = [item(namespace, name) for name in items[start : start + limit]]
        meta = {"resourceVersion": str(version)}
        if len(items) > start + limit:
            meta["continue"] = f"{namespace}+{version}+{start + limit}"
        self.version = 7  # somebody has written meanwhile
        return Answer(200, {"kind": "PodCatalogue", "apiVersion": "v1", "metadata": meta, "items": page})

    def at(self, namespace: str, version: int) -> list[str]:
        """Return the names that a namespace held at a version."""
        names = sorted(self.objects.get(namespace, []))
        return [name for name in names if HISTORY[version] >= 0 or name != names[-1]] + ["zz-late"] * max(
            0, HISTORY[version]
        )


def item(namespace: str, name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"of": namespace}}


class Reviews:
    """Answers SubjectAccessReviews: ``allowed`` holds (user, namespace)."""

    def __init__(self, allowed: set[tuple[str, str]]) -> None:
        self.allowed = allowed
        self.count = 0

    async def create(self, path: str, body: dict[str, Any], /) -> bytes:
        self.count += 1
        assert path.endswith("/subjectaccessreviews")
        spec = body["spec"]
        asked = spec["resourceAttributes"]
        good = any((who, asked.get("namespace", "")) in self.allowed for who in (spec["user"], *spec["groups"]))
        return msgspec.json.encode({"status": {"allowed": good}})


class Documents:
    """Discovery of core/v1."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.resources = [{"name": "pods", "kind": "Pod", "namespaced": True, "verbs": ["list"]}]

    async def get(self, path: str, /) -> bytes:
        self.asked.append(path)
        return msgspec.json.encode({"resources": self.resources})


class Objects:
    """Stands for the reader of OBJECTS: ``age`` is that of every RBAC kind."""

    def __init__(self) -> None:
        self.ready = True
        self.view = self
        self.seconds = 0.0
        self.listeners: list[Callable[[Change[ObjectRecord]], None]] = []

    def listen(self, callback: Callable[[Change[ObjectRecord]], None]) -> None:
        self.listeners.append(callback)

    def age(self, kind: str) -> float:
        assert kind in RBAC_KINDS
        return self.seconds

    def mark(self, kind: str) -> Mark:
        return Mark(kind=kind, resource_version="50", time=now())


class Grants:
    """Stands for the reader of grants."""

    def __init__(self, *grants: Grant) -> None:
        self.view = Memory(*grants)


def crossing(grants: Grants, reviews: Reviews) -> Crossing:
    """Return what decides, on these."""
    objects: Any = Objects()
    reader: Any = grants
    return Crossing(reader, Discovery(Documents()), Rights(AccessReviews(reviews), objects, limit=30))


async def listed(found: Crossing, api: Api, who: Identity, query: str = "", room: Room | None = None) -> dict[str, Any]:
    """Return one page of the list of Pods."""
    decision = read(parse("GET", f"/api/v1/pods{'?' if query else ''}{query}"), "Pod")
    listing = AcrossList(found, who, decision, "application/json", api.send, room or Room())
    body: dict[str, Any] = msgspec.json.decode(await listing.body(3))
    return body
