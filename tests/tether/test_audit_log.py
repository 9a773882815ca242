"""Reading AUDIT: everything from the first record on, in order, then what comes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec
import pytest

from eventcore.bus import Bus
from eventcore.events import AuditRecord
from eventcore.keys import audit_subject
from tether.audit_log import HEADER, AuditEntry, as_json, as_line, entries
from tether.devcluster.nats import NatsServer

RECORD = AuditRecord(
    time=datetime(2026, 1, 10, 10, 0, tzinfo=UTC),
    component="token",
    action="minted",
    outcome="done",
    account="oil-system/gitops-reconciler",
    object="Secret/oil-system/gitops-reconciler-token",
    cause="default:uid:7",
    message="generation 1",
)


async def read(bus: Bus, *, follow: bool, count: int = 10_000) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    async with aclosing(entries(bus, follow=follow)) as records:
        async for entry in records:
            found.append(entry)
            if len(found) == count:
                break
    return found


async def test_without_records_there_is_nothing_to_read(bus: Bus) -> None:
    assert await read(bus, follow=False) == []


async def test_all_records_of_one_subject_are_read_in_order_and_it_ends(bus: Bus) -> None:
    for number in range(600):  # more than two pulls
        await bus.audit(msgspec.structs.replace(RECORD, message=str(number)))

    found = await read(bus, follow=False)

    assert [entry.record.message for entry in found] == [str(number) for number in range(600)]
    assert [entry.sequence for entry in found] == sorted(entry.sequence for entry in found)


async def test_following_shows_what_is_recorded_later(bus: Bus) -> None:
    await bus.audit(RECORD)
    following = asyncio.ensure_future(read(bus, follow=True, count=2))

    await bus.audit(msgspec.structs.replace(RECORD, action="rotated"))
    found = await asyncio.wait_for(following, 20)

    assert [entry.record.action for entry in found] == ["minted", "rotated"]


async def test_following_goes_on_after_nats_was_restarted(bus: Bus, nats_server: NatsServer) -> None:
    await bus.audit(RECORD)
    first = asyncio.Event()
    found: list[str] = []

    async def follow() -> None:
        async with aclosing(entries(bus, follow=True)) as records:
            async for entry in records:
                found.append(entry.record.action)
                first.set()
                if len(found) == 2:
                    return

    following = asyncio.ensure_future(follow())
    await asyncio.wait_for(first.wait(), 20)
    await nats_server.restart()
    await bus.audit(msgspec.structs.replace(RECORD, action="rotated"))
    await asyncio.wait_for(following, 40)

    assert found == ["minted", "rotated"]


async def test_a_record_that_cannot_be_understood_is_shown_as_failed_and_the_rest_follows(bus: Bus) -> None:
    await bus.publish(audit_subject("token", "oil", "minted"), b"nonsense")
    await bus.audit(RECORD)

    broken, good = await read(bus, follow=False)

    assert broken.record.outcome == "failed"
    assert "nonsense" not in broken.record.message
    assert good.record == RECORD


def test_a_line_for_programs_has_every_field() -> None:
    fields = msgspec.json.decode(as_json(AuditEntry(7, RECORD)))

    assert set(fields) == {"sequence", *AuditRecord.__struct_fields__}
    assert fields["sequence"] == 7
    assert fields["tenant"] == ""


@pytest.mark.parametrize("word", ["token", "minted", "oil-system/gitops-reconciler", "default:uid:7", "generation 1"])
def test_a_line_for_people_says_who_what_and_why(word: str) -> None:
    line = as_line(AuditEntry(7, RECORD))

    assert word in line
    assert line.index("minted") == HEADER.index("ACTION")
