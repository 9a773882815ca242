"""The hostile requests meet the proxy on the event loop that it has in service."""

from __future__ import annotations

from tests.proxycore.conftest import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]
