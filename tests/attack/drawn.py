"""Objects that nobody thought of: drawn from the strategy of hostile objects, the same ones in every run.

Many of a kind at once, written by who may write that kind; a victim tenant lives meanwhile as ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any, Final

import hypothesis
from hypothesis import HealthCheck, Phase

from eventcore.kube import api_path
from tests.attack.cases import Attack, Case, Ground, Who
from tests.attack.objects import MARK, write
from tests.behaviour.conftest import Object, path
from tests.hostile_objects import hostile_object

_COUNT: Final = 40
_SEEDS: Final = range(5)
_KINDS: Final[dict[str, Who]] = {
    "Secret": "developer",
    "ConfigMap": "developer",
    "ServiceAccount": "developer",
    "RoleBinding": "mallory",
    "AnyRole": "mallory",
    "ProxySetting": "mallory",
}
_RBAC: Final = frozenset({"RoleBinding", "AnyRole"})


@cache
def drawn(kind: str, seed: int) -> list[Object]:
    """Return objects of a kind, always the same for a seed."""
    found: list[Object] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=_COUNT,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(hostile_object(kind))
    def collect(obj: Object) -> None:
        found.append(obj)

    collect()
    return found


def many(kind: str, who: Who, seed: int) -> Attack:
    """Return the attack that writes them all."""

    async def attack(ground: Ground) -> AsyncIterator[None]:
        field = ground.stage.field
        bodies = [_placed(obj, kind, ground.mark, number, field) for number, obj in enumerate(drawn(kind, seed))]
        await write(ground, who, _collection(kind, field), bodies)
        yield

    return attack


def _placed(obj: Object, kind: str, mark: str, number: int, namespace: str) -> Object:
    """Return an object in the attacker's namespace, under a name of its own."""
    metadata: dict[str, Any] = {**obj["metadata"], "namespace": namespace}
    drawn_name = f":{metadata['name']}" if kind in _RBAC else ""
    metadata |= {"name": f"{mark}-{number}{drawn_name}", "labels": {**metadata.get("labels", {}), MARK: mark}}
    return {**obj, "metadata": metadata}


def _collection(kind: str, namespace: str) -> str:
    if kind == "ProxySetting":
        return api_path("capsule.clastix.io", "v1beta1", "proxysettings", namespace=namespace)
    return path(kind.removeprefix("Any"), namespace)


def cases() -> Iterator[Case]:
    """All cases of this room."""
    for kind, who in _KINDS.items():
        for seed in _SEEDS:
            yield Case(
                name=f"{_COUNT} drawn objects of {kind.removeprefix('Any')}, draw {seed}",
                section="A",
                who=who,
                attack=many(kind, who, seed),
                quick=seed == 0,
                alone=True,
            )
