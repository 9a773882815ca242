"""How much one run deletes of what bears an account's marks and decides nothing.

Whoever may write Secrets in one namespace makes thousands that look like ours, and the lane that deletes them is that
of other tenants too. So a run takes some of them and ends, and the next one goes on a little later.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from workers.deleting import delete_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from eventcore.consumer import Run
    from eventcore.kube import KubeClient
    from workers.desired import Target
    from workers.ownership import Account
    from workers.writing import Writer

MOST_AT_ONCE: Final = 20
"""Objects that decide nothing, looked at and deleted for one account in one run."""
LONGEST: Final = 0.5
"""Seconds after which a run begins with no other of them."""
GOES_ON: Final = 1.0
"""Seconds after which the next run goes on."""


class Memory(Protocol):
    """What is known of an object beside what stands on it: `workers.relations`."""

    def made_for(self, target: Target, uid: str) -> Account | None:
        """Return the account that the object with this uid was made for."""

    def is_anothers(self, target: Target, account: Account) -> bool:
        """Tell whether what was last seen here was made for another account."""

    def forget(self, target: Target) -> bool:
        """There is no such object of ours any more; tell whether one was known that is not shown."""


class UnfinishedError(Exception):
    """More is to be deleted than one run may; ``removed`` tells whether this one deleted what decides something."""

    def __init__(self, *, removed: bool) -> None:
        super().__init__("more objects are to be deleted than one run deletes")
        self.removed = removed


class Cleaning:
    """One run's share; its time begins with the first object, so that each run gets on."""

    def __init__(self) -> None:
        self.removed: list[Target] = []
        self.is_left = False
        self._begun = 0.0
        self._looked_at = 0

    def share(
        self, targets: Iterable[Target], account: Account, whole: int, memory: Memory | None
    ) -> Iterator[tuple[Target, Cleaning | None]]:
        """Yield the first ``whole``, which decide something, with None, and with this as many others as it takes."""
        for at, target in enumerate(targets):
            if at < whole:
                yield target, None
            elif memory is None or not memory.is_anothers(target, account):
                if self._is_over():
                    self.is_left = True
                    return
                yield target, self

    def _is_over(self) -> bool:
        """Tell whether the share is used up; else one more object is counted."""
        now = time.monotonic()
        if not self._looked_at:
            self._begun = now
        elif self._looked_at >= MOST_AT_ONCE or now - self._begun > LONGEST:
            return True
        self._looked_at += 1
        return False

    async def delete(self, client: KubeClient, target: Target, uid: str) -> bool:
        """Delete the object with this uid; tell whether it was there. Raises KubeError."""
        deleted = await delete_whole(client, target.path, uid)
        if deleted:
            self.removed.append(target)
        return deleted

    def record(self, writer: Writer, run: Run, action: str, account: Account, tenant: str) -> None:
        """Let AUDIT be told by one record of all that was deleted: it names the first."""
        more = len(self.removed) - 1
        message = f"and {more} more like it, marked as made for {account}" if more else ""
        writer.record_later(run, action, self.removed[0], account, tenant, message=message)
