"""Fixtures that every folder uses: a private nats-server with settings, and the control plane of the run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from eventcore import topology
from eventcore.bus import Bus
from eventcore.metrics import Metrics
from eventcore.settings import Settings
from eventcore.settings_reading import load
from tests.convergence import converging, pytest_terminal_summary  # noqa: F401 -- pytest looks for both here
from tests.watchdog import nothing_holds_the_loop  # noqa: F401 -- autouse
from tether.devcluster.nats import NatsServer

# No test depends on how fast the machine is; in CI the examples are the same in every run, elsewhere they are new ones.
hypothesis.settings.register_profile(
    "tether",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("tether")

# looptime asks for the current loop in tests that have none, which would make one that nobody closes.
asyncio.set_event_loop(None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster", choices=("embedded", "real"), default="embedded", help="which control plane to test on"
    )
    parser.addoption(
        "--kubeconfig", type=Path, help="of a real control plane that runs already, as make kube-up leaves one"
    )


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """The kubeconfig of a real control plane with Capsule, None for the embedded one."""
    if request.config.getoption("--cluster") == "embedded":
        yield None
        return
    if given := request.config.getoption("--kubeconfig"):
        yield given
        return
    from controlplane.fixture import running  # noqa: PLC0415 -- only where it is asked for

    with running(tmp_path_factory.mktemp("controlplane")) as kubeconfig:
        yield kubeconfig


# What only a real control plane can show; elsewhere these files are not collected.
REAL_ONLY = frozenset(
    {
        "test_admission.py",
        "test_clients_helm.py",
        "test_clients_informer.py",
        "test_clients_javascript.py",
        "test_clients_kubectl.py",
        "test_clients_python.py",
        "test_clients_streams.py",
        "test_control_plane.py",
        "test_differential.py",
        "test_flux_attacks.py",
        "test_flux_tenant.py",
        "test_protobuf_lists.py",
    }
)

MakeSettings = Callable[..., Settings]
MakeBus = Callable[..., Awaitable[Bus]]


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server with JetStream of its own, on a free port."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def make_settings(nats_server: NatsServer) -> MakeSettings:
    """Return Settings for the private server; keyword arguments are flags."""

    def make(**flags: object) -> Settings:
        defaults = {"TETHER_NATS_URL": nats_server.url, "TETHER_LOG_LEVEL": "warning", "TETHER_HTTP_PORT": "0"}
        return load(defaults, flags)

    return make


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
async def make_bus(make_settings: MakeSettings) -> AsyncIterator[MakeBus]:
    """Return a function that connects to the private server, with the topology applied."""
    made: list[Bus] = []

    async def make(name: str = "test", settings: Settings | None = None) -> Bus:
        chosen = settings or make_settings()
        bus = await Bus.connect(chosen, name)
        if not made:
            await topology.apply(bus, chosen)
        made.append(bus)
        return bus

    yield make
    for bus in made:
        await bus.close()


@pytest.fixture
async def bus(make_bus: MakeBus) -> Bus:
    return await make_bus()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def stopping() -> AsyncIterator[asyncio.Event]:
    """An event that is set when the test ends, for what runs beside it."""
    event = asyncio.Event()
    yield event
    event.set()


@pytest.fixture
async def background(stopping: asyncio.Event) -> AsyncIterator[Callable[[Awaitable[object]], None]]:
    """Run awaitables beside the test; at its end ``stopping`` is set and they must end, and their errors show."""
    tasks: list[asyncio.Future[object]] = []

    def start(awaitable: Awaitable[object]) -> None:
        tasks.append(asyncio.ensure_future(awaitable))

    yield start
    stopping.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs a real control plane when there is none."""
    return True if collection_path.name in REAL_ONLY and config.getoption("--cluster") != "real" else None


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A role that a test runs in this process configures the logs; the next test captures them."""
    yield
    structlog.reset_defaults()
