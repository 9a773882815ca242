"""What must hold whatever an attacker did: nobody has a right more, sees more, or holds somebody else's credential."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from eventcore.errors import NotFoundError
from eventcore.kube import api_path
from tests.attack.judging import Found
from tests.attack.stage import NAMESPACES
from tests.behaviour.conftest import path

if TYPE_CHECKING:
    from tests.attack.stage import Attacker, Stage

Object = dict[str, Any]
_REVIEWS: Final = api_path("authorization.k8s.io", "v1", "subjectaccessreviews")
_NODES: Final = api_path("", "v1", "nodes")
_CLASSES: Final = api_path("storage.k8s.io", "v1", "storageclasses")
NODE: Final = "attacked-node"
CLASS: Final = "attacked-class"


class World:
    """The state of things that no attack may change."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._kept: dict[str, str] = {}

    async def make(self) -> None:
        """Make a node and a class that belong to nobody, as they are to stay, and remember them."""
        admin = self._stage.admin
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"pool": "platform"}}}
        kept: Object = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "none.example/none"}
        kept["metadata"] = {"name": CLASS, "labels": {"pool": "platform"}}
        for collection, body in ((_NODES, node), (_CLASSES, kept)):
            await admin.apply(f"{collection}/{body['metadata']['name']}", body, manager="person", force=True)
        self._kept = {one: await self._fingerprint(one) for one in (f"{_NODES}/{NODE}", f"{_CLASSES}/{CLASS}")}

    async def look(self) -> Found:
        """Return what does not hold any more."""
        found = Found()
        attackers = list(self._stage.attackers.values())
        checks = [self._rights(one) for one in attackers] + [self._shown(one) for one in attackers] + [self._kinds()]
        for lines in await asyncio.gather(*checks):
            found.leaked += lines
        return found

    async def credentials(self, *tokens: str) -> Found:
        """Look for these tokens where attackers can read Secrets."""
        stage = self._stage
        found = Found()
        for namespace in (stage.field, stage.mallory.home, stage.former.home):
            for item in msgspec.json.decode(await stage.admin.get(path("Secret", namespace)))["items"]:
                values = (item.get("data") or {}).values()
                if any(token.encode() in _decoded(value) for value in values for token in tokens):
                    name = item["metadata"]["name"][:80]
                    found.leaked.append(f"Secret {namespace}/{name} holds a token of somebody else")
        return found

    async def _rights(self, who: Attacker) -> list[str]:
        stage = self._stage
        asked: list[tuple[str, str, str, str]] = [
            ("get", "", "secrets", stage.foreign),
            ("create", "", "pods", stage.foreign),
            ("get", "", "secrets", stage.bystander.home),
            ("get", "", "secrets", "capsule-system"),
            ("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
            ("impersonate", "", "users", ""),
            ("delete", "", "nodes", ""),
            ("patch", "capsule.clastix.io", "tenants", ""),
        ]
        if who.name == "former":
            asked += [("get", "", "secrets", stage.former.home), ("get", "", "secrets", f"{stage.former.name}-web")]
        allowed = await asyncio.gather(*(self._may(who, *one) for one in asked))
        return [
            f"{who.name} got the right to {verb} {plural} in {namespace or 'the cluster'}"
            for (verb, _, plural, namespace), yes in zip(asked, allowed, strict=True)
            if yes
        ]

    async def _may(self, who: Attacker, verb: str, group: str, plural: str, namespace: str) -> bool:
        attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace}
        spec = {"user": who.user, "groups": list(who.groups), "resourceAttributes": attributes}
        answer = msgspec.json.decode(await self._stage.admin.create(_REVIEWS, {"spec": spec}))
        return bool(answer["status"]["allowed"])

    async def _shown(self, who: Attacker) -> list[str]:
        """Return what an attacker is shown by the proxy that is not its own."""
        stage = self._stage
        client = await stage.door(who.name)
        wrong = []
        for collection in (NAMESPACES, _NODES, _CLASSES):
            try:
                answer = await client.get(collection)
            except aiohttp.ClientError:
                continue  # whether anybody is served, the bystander tells
            items = answer.body.get("items", []) if isinstance(answer.body, dict) else []
            names = [item["metadata"]["name"] for item in items]
            own = f"{stage.mallory.name}-" if who.name == "mallory" and collection == NAMESPACES else "no-such-"
            foreign = [name for name in names if not name.startswith(own) and name not in stage.shared]
            wrong += [f"{who.name} is shown {collection}/{name}" for name in foreign]
        return wrong

    async def _kinds(self) -> list[str]:
        now = {one: await self._fingerprint(one) for one in self._kept}
        changed = [f"{one} was changed or deleted" for one, was in self._kept.items() if now[one] != was]
        if changed:
            await self.make()  # so that the next case answers for itself
        return changed

    async def _fingerprint(self, one: str) -> str:
        try:
            metadata = msgspec.json.decode(await self._stage.admin.get(one))["metadata"]
        except NotFoundError:
            return ""
        return f"{metadata['uid']} {sorted(metadata.get('labels', {}).items())}"


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value)
    except binascii.Error:
        return b""
