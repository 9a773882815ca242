"""What a person sees of what others wrote: names and messages full of escape sequences, through every command."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import click
import msgspec
import pytest

from eventcore.bus import Bus
from eventcore.clock import now
from eventcore.events import AuditRecord
from eventcore.metrics import Metrics
from proxycore.access_log import AccessLog
from proxycore.measures import Measures
from tether import cli, demo_view, migrate
from tether.cli_doctor import print_lines
from tether.demo_view import StepResult
from tether.devcluster.nats import NatsServer
from tether.doctor_snapshot import Finding
from tether.migrate_look import Survey
from tether.migrate_plan import Found, plan
from tether.status_model import AccountStatus, Failure, Status, TenantStatus
from tether.status_view import render
from tether.tables import Console
from tether.terminal import say
from workers.ownership import Account

Tether = Callable[..., Awaitable[tuple[int, str, str]]]

ROOT = Path(__file__).parents[2]
HOSTILE = "gas\r\nok forged \x1b[2J\x1b]8;;http://evil\x07x\x9b31m\u202egpj.exe\u2028\x7f [red]r[/red] [link=http://e]l[/link]"
SHOWN = (
    r"gas\r\nok forged \u001b[2J\u001b]8;;http://evil\u0007x\u009b31m\u202egpj.exe\u2028\u007f [red]r[/red] "
    "[link=http://e]l[/link]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# The one module that writes for people, and those that write lines of their own through `printable`.
WRITERS = {
    "tether/terminal.py": "every command",
    "tether/tables.py": "tables",
    "eventcore/logs.py": "the log, whose renderers escape",
    "eventcore/process.py": "the last line of a role, see eventcore's test",
    "proxycore/access_log.py": "the access log, see below",
}


def writes(source: Path) -> Iterator[str]:
    """Yield the places of a module that write to a standard stream."""
    for node in ast.walk(ast.parse(source.read_text())):
        match node:
            case ast.Call(func=ast.Name(id="print" | "pprint")):
                yield f"{source}:{node.lineno}"
            case ast.Attribute(
                value=ast.Name(id="click"), attr="echo" | "secho" | "echo_via_pager" | "style" | "prompt"
            ):
                yield f"{source}:{node.lineno}"
            case ast.Attribute(value=ast.Name(id="click"), attr="confirm" | "progressbar" | "get_text_stream"):
                yield f"{source}:{node.lineno}"
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"),
                attr="write" | "writelines" | "buffer",
            ):
                yield f"{source}:{node.lineno}"
            case ast.ImportFrom(module="rich.console" | "rich" | "click", names=names):
                if {"Console", "print", "get_console", "echo", "secho"} & {name.name for name in names}:
                    yield f"{source}:{node.lineno}"
            case ast.Attribute(value=ast.Name(id="traceback"), attr="print_exc" | "print_exception"):
                yield f"{source}:{node.lineno}"
            case ast.Attribute(value=ast.Name(id="warnings"), attr="warn"):
                yield f"{source}:{node.lineno}"


def test_nothing_but_the_terminal_writes_to_a_terminal() -> None:
    packages = ("tether", "eventcore", "watchers", "workers", "proxycore")
    sources = [source for package in packages for source in (ROOT / package).rglob("*.py")]
    found = [at for source in sources for at in writes(source)]
    assert len(sources) > 100
    assert {str(Path(at.rpartition(":")[0]).relative_to(ROOT)) for at in found} == {*WRITERS} - {"tether/tables.py"}


@pytest.mark.parametrize(
    "line",
    [
        "print(1)",
        "click.echo(name)",
        "say = click.echo",
        "sys.stdout.write(name)",
        "sys.stderr.buffer.write(b'')",
        "from rich.console import Console",
        "from click import echo",
        "traceback.print_exc()",
    ],
)
def test_the_search_finds_each_way_to_write(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(line)
    assert list(writes(tmp_path / "a.py"))


def only_lines(text: str, count: int) -> list[str]:
    """Return the lines, after checking that there are so many and that each is printable."""
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == count, lines
    assert all(line.isprintable() for line in lines), lines
    return lines


def test_a_line_stays_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE, f"second {HOSTILE}", lead="  ")
    assert only_lines(capsys.readouterr().out, 2) == [f"  {SHOWN}", f"  second {SHOWN}"]


async def test_audit_tail(bus: Bus, nats_server: NatsServer, tether: Tether) -> None:
    names = ("object", "message", "cause", "account", "tenant")
    record = AuditRecord(
        time=now(), component="token", action="minted", outcome="done", **dict.fromkeys(names, HOSTILE)
    )
    await bus.audit(record)

    code, out, _ = await tether("audit", "tail", "--no-follow", TETHER_NATS_URL=nats_server.url)
    assert code == 0
    line = only_lines(out, 2)[1]
    assert line.count(SHOWN) == len(names) - 1  # the tenant is told where there is no account

    code, out, _ = await tether("audit", "tail", "--no-follow", "--json", TETHER_NATS_URL=nats_server.url)
    (line,) = only_lines(out, 1)
    assert msgspec.json.decode(line)["object"] == HOSTILE


async def test_status_of_a_bus(bus: Bus, nats_server: NatsServer, tether: Tether) -> None:
    await bus.audit(AuditRecord(time=now(), component="token", action="refused", outcome="refused", message=HOSTILE))

    code, out, err = await tether("status", TETHER_NATS_URL=nats_server.url)
    assert (code, err) == (0, "")
    assert all(line.isprintable() for line in out.split("\n"))
    assert not any(line.startswith("ok forged") for line in out.split("\n"))
    assert r"\u001b[2J" in out

    code, out, _ = await tether("status", "--json", TETHER_NATS_URL=nats_server.url)
    (line,) = only_lines(out, 1)
    assert [one["message"] for one in msgspec.json.decode(line)["failures"]] == [HOSTILE]


def test_status_in_colours() -> None:
    failure = Failure(time=now(), what=HOSTILE, worker=HOSTILE, object=HOSTILE, message=HOSTILE)
    status = Status(
        time=now(),
        tenants=(TenantStatus(name=HOSTILE, state=HOSTILE, owners=(HOSTILE,), namespaces=(HOSTILE,)),),
        accounts=(AccountStatus(account=HOSTILE, tenants=(HOSTILE,), behind=(HOSTILE,), wanted=1, home_of=HOSTILE),),
        failures=(failure,),
    )
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, color_system="truecolor", width=2000).print(render(status))

    text = screen.getvalue()
    plain = _COLOUR.sub("", text)
    assert text != plain
    assert all(line.isprintable() for line in plain.split("\n"))
    assert not re.search(r"^\s*ok forged", plain, re.MULTILINE)
    rows = [line for line in plain.split("\n") if SHOWN in line]
    assert len(rows) == 3
    assert rows[0].count(SHOWN) == 4


def test_a_table_that_was_not_cleaned_shows_nothing_raw_either() -> None:
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, width=400).print(HOSTILE.replace("\n", ""))
    assert _COLOUR.sub("", screen.getvalue()).removesuffix("\n").isprintable()
    assert "[red]r[/red]" in screen.getvalue()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([Finding(severity="error", check="c", object=HOSTILE, message=HOSTILE, remedy=HOSTILE)])
    assert only_lines(capsys.readouterr().out, 2) == [f"error    {SHOWN}: {SHOWN}", f"         -> {SHOWN}"]


def test_migrate(capsys: pytest.CaptureFixture[str]) -> None:
    found = Found(account=Account(HOSTILE, HOSTILE), tenants=(HOSTILE,), wrong_rights=(HOSTILE,), token="static")
    migrate._print_plan(Survey(found=(found,), addons=((HOSTILE, HOSTILE),)))  # noqa: SLF001 -- what a dry run prints
    lines = only_lines(capsys.readouterr().out, len(plan(found)) + 3)
    assert sum(SHOWN in line for line in lines) == len(lines) - 1


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["migrate", HOSTILE],
        ["tenant", "render", HOSTILE, "--owner", "oil-system/gitops"],
        ["tenant", "render", "oil", "--owner", HOSTILE],
        ["kubeconfig", "generate", "--serviceaccount", HOSTILE, "--server", "x", "--server-tls-secret-name", "y"],
        ["certs", "--life", HOSTILE],
        ["work", HOSTILE],
        ["topology", "diff", "--nats-url", HOSTILE],
        ["topology", "diff", "--nats-url", "nats://127.0.0.1:1", "--stream-prefix", HOSTILE],
        ["dev", "up", "--dir", "x", "--kubeconfig", HOSTILE],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(HOSTILE, "hostile"),
)
def test_what_is_refused_is_named_on_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) in {1, 2}
    only_lines(capsys.readouterr().err, 1)


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_bug(level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError(HOSTILE)

    monkeypatch.setitem(cli.cli.commands, "broken", broken)
    monkeypatch.setenv("TETHER_LOG_LEVEL", level)

    assert cli.run(["broken"]) == 70
    err = capsys.readouterr().err
    assert all(line.isprintable() for line in err.split("\n"))
    assert ("Traceback" in err) == (level == "debug")


def test_the_demo_in_lines_and_live(capsys: pytest.CaptureFixture[str]) -> None:
    step = StepResult(name="rbac", title=HOSTILE, detail=HOSTILE.replace("\r\n", " "))
    demo_view.PlainView().end(step)
    only_lines(capsys.readouterr().out, 2)

    live = demo_view.LiveView()
    live.begin(step)
    live.end(step)
    live.close()
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


def test_the_access_log(capsys: pytest.CaptureFixture[str]) -> None:
    class Lines(AccessLog):
        def feed(self, line: bytes) -> None:
            self._lines.put(line)

    log = Lines(Measures(Metrics()))
    log.start()
    log.feed(msgspec.json.encode({"path": HOSTILE}))
    log.close()
    (line,) = only_lines(capsys.readouterr().out, 1)
    assert msgspec.json.decode(line) == {"path": HOSTILE}
