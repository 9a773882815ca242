"""At most so many reviews a second that the proxy asks the API server for, and a burst above (--client-connection-*).

The bucket holds ``burst`` questions and fills at ``rate`` a second. Whoever comes when it is empty waits in turn; what
is remembered asks nothing and waits for nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxycore.authentication import Poster


class Paced:
    """Posts reviews through another poster at a limited rate, ``rate`` above 0."""

    def __init__(self, poster: Poster, *, rate: float, burst: int) -> None:
        self._poster = poster
        self._gap = 1 / rate
        self._lead = self._gap * (max(burst, 1) - 1)
        self._due = 0.0  # when the next question would come if all came evenly

    async def create(self, path: str, body: dict[str, Any], /) -> bytes:
        """POST a body when its turn has come; KubeError."""
        now = asyncio.get_running_loop().time()
        due = max(self._due, now)
        self._due = due + self._gap
        if (wait := due - self._lead - now) > 0:
            await asyncio.sleep(wait)
        return await self._poster.create(path, body)
