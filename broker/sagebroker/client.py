"""The server of a state folder, from outside: found, started in the background, asked by its unix socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from sagebroker.config import environment
from sagebroker.errors import ServerError
from sagebroker.places import API_PATH, http_socket, server_lock, server_log
from sagebroker.store.folders import StateFolder

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig

CREATED: Final = 201
ANSWER_LIMIT_S: Final = 180.0
"""The slowest request starts a kernel, in its turn."""
START_LIMIT_S: Final = 60.0
"""For a server to accept connections: 1.5 s on an idle machine, and it may wait for the end of another."""
STARTS: Final = 2
"""A server does not start where another holds the state folder, which may be ending at that moment."""
MAX_LOG_BYTES: Final = 2**20
"""A larger log is put aside at the next start."""
QUOTED_BYTES: Final = 2000
"""The end of the log in an error: the last lines, with a traceback's end."""
_POLL_S: Final = 0.05
_CONNECT_LIMIT_S: Final = 2.0


def is_server(config: BrokerConfig, process: int | None) -> bool:
    """Whether a process is the server of this state folder. Blocks."""
    return process is not None and _signed(config) == str(process)


async def ask_server(
    config: BrokerConfig, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """The answer of the server of this state folder, and whether it has ``created`` something; None without one.

    Args:
        config: Says where its socket is.
        method: Of the request.
        path: Below ``/api``.
        body: What is sent, as JSON.

    Raises:
        ServerError: It refuses, or does not answer in time.
    """
    # Here: most commands do not need it, and it takes a while to load.
    import httpx2

    # In no thread: Jupyter's tools close their session when their interpreter ends, and Python 3.12
    # starts none any more then. It reads a line of a local file.
    place = _socket(config)
    if place is None:
        return None
    transport = httpx2.AsyncHTTPTransport(uds=str(place))
    try:
        async with httpx2.AsyncClient(transport=transport, timeout=ANSWER_LIMIT_S) as http:
            url = f"http://localhost{API_PATH}{path}"
            answer = await http.request(method, url, json=body)
    except httpx2.ConnectError:
        return None
    except httpx2.HTTPError as error:
        raise ServerError(
            f"The server of this state folder does not answer: {str(error) or type(error).__name__}.",
            hint="Look at its log, or end it.",
        ) from error
    found: dict[str, Any] = answer.json()
    found["created"] = answer.status_code == CREATED
    if answer.is_error:
        raise ServerError(str(found.get("message", f"The server answers {answer.status_code}.")))
    return found


async def ensure_server(config: BrokerConfig) -> None:
    """Some server of this state folder accepts connections; where none did, one starts in the background.

    It belongs to no terminal, listens on the unix sockets only, writes `server_log`, and ends by itself
    when nobody needs it (`ServeConfig.idle_limit_s`). Of several that are started at once one stays.

    Raises:
        ServerError: None is there in time; has the end of the log.
    """
    started: subprocess.Popen[bytes] | None = None
    starts = 0
    with anyio.move_on_after(START_LIMIT_S):
        while not await anyio.to_thread.run_sync(_accepts, config):
            is_coming = started is not None and started.poll() is None
            if not is_coming and not await anyio.to_thread.run_sync(_is_held, config):
                if starts == STARTS:
                    raise _not_started(config, "ended at once")
                started = await anyio.to_thread.run_sync(_start, config)
                starts += 1
            await anyio.sleep(_POLL_S)
        return
    raise _not_started(config, f"did not accept connections within {START_LIMIT_S:.0f} s")


def _socket(config: BrokerConfig) -> Path | None:
    instance = StateFolder(config.state_dir).instance()
    return None if instance is None else http_socket(config, instance)


def _accepts(config: BrokerConfig) -> bool:
    place = _socket(config)
    if place is None:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_LIMIT_S)
        try:
            probe.connect(str(place))
        except OSError:
            return False
    return True


def _signed(config: BrokerConfig) -> str:
    """The process that has signed the server's lock; empty where none has."""
    try:
        return server_lock(config).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _is_held(config: BrokerConfig) -> bool:
    """Whether a server has the state folder: it is coming up, or ending."""
    process = _signed(config)
    return bool(process) and Path(f"/proc/{process}").exists()


def _start(config: BrokerConfig) -> subprocess.Popen[bytes]:
    """Raises `ServerError`."""
    try:
        StateFolder(config.state_dir).open()
        log = server_log(config)
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        log.touch(mode=0o600)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "sagebroker", "serve", "--local", "--json"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env={**environment(), **config.as_environment()},
            )
    except OSError as error:
        raise ServerError(
            f"No server can be started in the background: {error}.",
            hint="Start one yourself: sagebroker serve --local.",
        ) from error
    # Whoever starts it may live for days: a server that has ended must not stay as a zombie.
    threading.Thread(target=process.wait, name="reaper", daemon=True).start()
    return process


def _not_started(config: BrokerConfig, what: str) -> ServerError:
    log = server_log(config)
    try:
        end = log.read_bytes()[-QUOTED_BYTES:].decode("utf-8", "replace").strip()
    except OSError as error:
        end = f"({error})"
    return ServerError(
        f"The server that was started in the background {what}. Its log, {log}, ends with:\n{end}\n",
        hint="Correct that; or start it yourself to see more: sagebroker --log-level info serve --local.",
    )
