"""A Git server on loopback, as Flux and a tenant's own git see one: smart HTTP, by git's own http-backend.

with serving(folder) as server:
    repository = server.make("oil")        # its URL is repository.url
    repository.push({"config/namespaces.yaml": text}, "Add namespaces")
"""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tether.dev_layout import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BRANCH = "main"
_ENVIRON = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    **{f"GIT_{who}_{what}": "tenant@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


class Repository:
    """A bare repository that the server shows, and the clone from which a tenant pushes to it."""

    def __init__(self, bare: Path, clone: Path, url: str) -> None:
        self.url = url
        self._clone = clone
        _git("init", "--quiet", "--bare", f"--initial-branch={BRANCH}", str(bare))
        _git("-C", str(bare), "config", "http.receivepack", "true")
        _git("init", "--quiet", f"--initial-branch={BRANCH}", str(clone))
        _git("-C", str(clone), "remote", "add", "origin", url)

    def push(self, files: Mapping[str, str | None], message: str) -> str:
        """Write files, remove those that are None, commit and push; return the commit."""
        for name, text in files.items():
            path = self._clone / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        clone = ("-C", str(self._clone))
        _git(*clone, "add", "--all")
        _git(*clone, "commit", "--quiet", "--message", message)
        _git(*clone, "push", "--quiet", "origin", BRANCH)
        return _git(*clone, "rev-parse", "HEAD").strip()


class GitServer:
    """Serves every repository that it made."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port

    def make(self, name: str) -> Repository:
        """Make an empty repository that anybody on this machine may read and push to."""
        return Repository(
            self._folder / "served" / f"{name}.git",
            self._folder / "clones" / name,
            f"http://{HOST}:{self._port}/{name}.git",
        )


@contextmanager
def serving(folder: Path) -> Iterator[GitServer]:
    """Serve a folder on a free port of loopback for as long as the block lasts."""
    root = folder / "served"
    root.mkdir()

    class Handler(_Handler):
        served = root

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield GitServer(folder, server.server_port)
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """The bridge from HTTP to the CGI program; one request for each connection, so that none stays open."""

    served: Path

    def do_GET(self) -> None:
        self._run(b"")

    def do_POST(self) -> None:
        self._run(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the signature of http.server
        """Say nothing: the tests tell what went wrong."""

    def _run(self, body: bytes) -> None:
        url = urlsplit(self.path)
        environ = {
            **os.environ,
            **_ENVIRON,
            "GIT_PROJECT_ROOT": str(self.served),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": self.client_address[0],
        }
        done = subprocess.run(
            ["git", "http-backend"],  # noqa: S607 -- the git of the PATH
            env=environ,
            input=body,
            capture_output=True,
            check=False,
        )
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        fields = [line.split(": ", 1) for line in head.decode().splitlines()]
        status = next((value.split()[0] for name, value in fields if name == "Status"), "200")
        self.send_response(int(status))
        for name, value in fields:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def _git(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 -- git, with arguments of ours
        ["git", *arguments],  # noqa: S607 -- the git of the PATH
        env={**os.environ, **_ENVIRON},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"git {' '.join(arguments)}: {done.stderr}"
    return done.stdout
