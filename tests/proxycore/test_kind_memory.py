"""Whatever happens, a client that began with a list ends with what is its own, and never saw anything else: pure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.kube_watch import WatchEvent
from eventcore.selectors import Requirement
from proxycore import kind_memory, shared_watch
from proxycore.kind_memory import KindMemory, record_of
from proxycore.kinds import ProxiedKind
from proxycore.listquery import ListQuery
from proxycore.policy import Filtered
from proxycore.rules import Scope
from proxycore.shapes import Objects
from proxycore.shared_watch import SharedWatch
from proxycore.statuses import RefusedError, expired

if TYPE_CHECKING:
    from eventcore.kube_watch import EventType
    from proxycore.feed import NamespaceFeed
    from proxycore.identities import Identity
    from proxycore.kind_memory import Record
    from proxycore.shared import SharedKind

NODES = ProxiedKind(setting="Nodes", group="", resource="nodes")
SCOPE = Scope(selectors=frozenset({(Requirement("for", "in", ("oil",)),)}))


class Memory(KindMemory):
    fresh = True

    def __init__(self) -> None:
        super().__init__()
        self.name_kind("NodeList", "v1", None)


class Feed:
    """Grants that never change."""

    grants = None
    grants_state = (None, 0)

    def subscribe(self, awake: asyncio.Event) -> Any:
        del awake
        return kind_memory.Subscription(asyncio.Event(), lambda _: True)

    def unsubscribe(self, _: Any) -> None: ...

    async def settled(self, _: float) -> bool:
        return True

    def oldest(self, _: Any) -> int:
        return 0


class Object(msgspec.Struct, frozen=True):
    uid: str
    version: int
    mine: bool

    def json(self, name: str) -> bytes:
        labels = {"for": "oil" if self.mine else "gas"}
        meta = {"name": name, "uid": self.uid, "resourceVersion": str(self.version), "labels": labels}
        return msgspec.json.encode({"kind": "Node", "apiVersion": "v1", "metadata": meta})


State = dict[str, Object]
STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["mine", "other", "gone"])), max_size=14)


def history(steps: list[tuple[str, str]]) -> tuple[list[WatchEvent], list[State]]:
    """Return the events, and the state after each: the state at version n is the n-th."""
    events: list[WatchEvent] = []
    states: list[State] = [{}]
    for name, what in steps:
        state = dict(states[-1])
        version = len(states)
        old = state.get(name)
        type_: EventType
        if what == "gone":
            if old is None:
                continue
            del state[name]
            type_, new = "DELETED", Object(old.uid, version, old.mine)
        else:
            new = state[name] = Object(old.uid if old else f"u{version}", version, what == "mine")
            type_ = "MODIFIED" if old else "ADDED"
        events.append(WatchEvent(type_, msgspec.Raw(new.json(name))))
        states.append(state)
    return events, states


def visible(state: State) -> dict[str, int]:
    return {name: found.version for name, found in state.items() if found.mine}


class Client:
    """What a client makes of the events: names to versions."""

    def __init__(self, held: dict[str, int]) -> None:
        self.held = held
        self.last = 0
        self.errors: list[int] = []

    async def take(self, line: bytes) -> None:
        event = msgspec.json.decode(line)
        if event["type"] == "ERROR":
            self.errors.append(event["object"]["code"])
            return
        meta = event["object"]["metadata"]
        labels = meta.get("labels")
        assert event["object"]["kind"] == "Node"
        assert labels in (None, {"for": "oil"})  # nothing of an object that is not the caller's
        if event["type"] == "DELETED":
            self.held.pop(meta["name"], None)
            assert labels or meta.keys() == {"name", "resourceVersion"}
        else:
            assert labels
            assert (event["type"] == "ADDED") == (meta["name"] not in self.held) or event["type"] == "ADDED"
            self.held[meta["name"]] = int(meta["resourceVersion"])


def records(state: State) -> dict[str, Record]:
    return {name: record_of(msgspec.Raw(found.json(name))) for name, found in state.items()}


async def follow(
    events: list[WatchEvent],
    states: list[State],
    *,
    listed: int,
    begun: int,
    asked: int | None,
    batches: list[int],
    slow: bool = False,
    compacted: bool = False,
) -> Client:
    """Play: memory lists at one version, reaches another, then a client comes with a third; the rest in batches.

    ``slow``: what was before memory began is told only after the first batch; ``compacted``: it is not known any more.
    """
    memory = Memory()
    memory.replace(records(states[listed]), listed)
    for event in events[listed:begun]:
        memory.take(event)
    client = Client({} if asked is None else visible(states[asked]))
    query = ListQuery(watch=True, resource_version="" if asked is None else str(asked))

    answered = asyncio.Event()
    if not slow:
        answered.set()

    async def past() -> dict[str, Record]:
        await answered.wait()
        if compacted or asked is None:
            raise RefusedError(expired(str(asked), listed))
        return records(states[asked])

    decision = Filtered(kind=NODES, verb="watch", scope=SCOPE, query=query)
    watch = SharedWatch(
        cast("SharedKind", memory),
        cast("NamespaceFeed", Feed()),
        cast("Identity", None),
        decision,
        Objects(memory, "json"),
        (),
        past=past,
        write=client.take,
        good=lambda: True,
    )
    stopping = asyncio.Event()
    task = asyncio.ensure_future(watch.run(stopping))
    await _quiet()
    left = events[begun:]
    for size in [*batches, len(left)]:
        for event in left[:size]:
            memory.take(event)
        left = left[size:]
        answered.set()
        await _quiet()
    stopping.set()
    await task
    assert memory.followers == 0
    return client


async def _quiet() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


@given(st.data())
def test_a_client_ends_with_exactly_what_is_its_own(data: st.DataObject) -> None:
    events, states = history(data.draw(STEPS))
    last = len(events)
    listed = data.draw(st.integers(0, last))
    begun = data.draw(st.integers(listed, last))
    asked = data.draw(st.none() | st.integers(0, last))
    batches = data.draw(st.lists(st.integers(0, 3), max_size=6))
    slow = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_watch, "scope_of", lambda *_: SCOPE)
        played = follow(events, states, listed=listed, begun=begun, asked=asked, batches=batches, slow=slow)
        client = asyncio.run(played)

    assert client.held == visible(states[-1])
    assert not client.errors


async def test_a_version_from_before_the_history_is_410(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_watch, "scope_of", lambda *_: SCOPE)
    events, states = history([("a", "mine"), ("b", "mine"), ("a", "other")])

    client = await follow(events, states, listed=2, begun=3, asked=1, batches=[], compacted=True)

    assert client.errors == [410]


def test_what_is_kept_of_the_past_is_bounded_and_raises_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind_memory, "CAPACITY", 3)
    memory = Memory()
    events, _ = history([("a", "mine"), ("b", "mine"), ("a", "gone"), ("b", "gone"), ("c", "mine"), ("c", "gone")])
    for event in events:
        memory.take(event)

    assert memory.floor == 3
    assert memory.changed_since(3) == {"b", "c"}
