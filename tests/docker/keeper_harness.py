"""One hardened container with the keeper as PID 1, driven by signals and a plain Jupyter client."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any, TypeVar

import docker
from jupyter_client.blocking.client import BlockingKernelClient

from sagebroker.kernel.folders import RestoreOrder

INSIDE = Path(__file__).parents[2] / "broker" / "sagebroker" / "inside"
SAGE: dict[str, Any] = {
    "preload": ["sage.all"],
    "kernel_class": "sage.repl.ipython_kernel.kernel.SageKernel",
}
READY_S = 90.0
"""For a Sage start on a busy machine; it takes 2 to 4 s on an idle one."""
ANSWER_S = 60.0
INTERRUPTS = 5
INTERRUPT_WAIT_S = 3.0
MODES = ("newest", "none")
POLL_S = 0.02
PROBE_S = 0.2
MIB = 2**20
T = TypeVar("T")


@dataclass
class Answer:
    """What one cell gave."""

    status: str
    streams: dict[str, str] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)
    ename: str = ""
    iopub_bytes: int = 0
    longest_stream: int = 0

    @property
    def text(self) -> str:
        """The value of the cell as plain text."""
        return self.results[-1] if self.results else ""

    @property
    def out(self) -> str:
        """Its standard output."""
        return self.streams.get("stdout", "")


def until(probe: Callable[[], T | None], limit_s: float = ANSWER_S, what: str = "") -> T:
    """Poll until the probe gives something true."""
    deadline = time.monotonic() + limit_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s} s: {what or probe}")
        time.sleep(POLL_S)


class Kept:
    """A running container with the keeper in it."""

    def __init__(self, container: Any, folder: Path, key: str) -> None:
        self.container = container
        self.sockets = folder / "s"
        self.lease = folder / "ctl" / "lease"
        self.files = folder / "files"
        self.checkpoints = folder / "checkpoints"
        self._folder = folder
        self._key = key
        self._client: BlockingKernelClient | None = None

    def status(self) -> dict[str, Any]:
        """The keeper's report; empty while there is none."""
        try:
            found: dict[str, Any] = json.loads((self.sockets / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def await_status(self, limit_s: float = ANSWER_S, **wanted: Any) -> dict[str, Any]:
        """The report, once the given entries are in it."""

        def reached() -> dict[str, Any] | None:
            status = self.status()
            return status if all(status.get(k) == v for k, v in wanted.items()) else None

        try:
            return until(reached, limit_s)
        except TimeoutError:
            raise TimeoutError(f"{wanted} not in {self.status()}; log: {self.log()}") from None

    def ask_restore(self, order: RestoreOrder = "newest") -> None:
        """Say what kernels that are forked from now on shall restore."""
        content = {"mode": "number", "number": order} if order not in MODES else {"mode": order}
        (self._folder / "ctl" / "restore.json").write_text(json.dumps(content))

    def restored(self) -> dict[str, Any]:
        """What the present kernel says of its restore, once it says so."""
        generation = self.status()["generation"]

        def report() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = json.loads((self.sockets / "restore.json").read_text())
            except OSError:
                return None
            return found if found["generation"] >= generation else None

        return until(report, what="a restore's report")

    def inside(self, module: str, call: str) -> dict[str, Any]:
        """What a function inside says as JSON; asked by a silent request, as the broker does."""
        expression = f"__import__('sagebroker_inside.{module}', fromlist=['_']).{call}"
        client = self.client()
        asked = client.execute(
            "", silent=True, store_history=False, user_expressions={"said": expression}
        )
        while (reply := client.get_shell_msg(timeout=ANSWER_S))["parent_header"]["msg_id"] != asked:
            pass
        said = reply["content"]["user_expressions"]["said"]
        assert said["status"] == "ok", said
        found: dict[str, Any] = json.loads(ast.literal_eval(said["data"]["text/plain"]))
        return found

    def state(self, *, write: bool = False, label: str = "") -> dict[str, Any]:
        """How far the kernel's checkpoints are."""
        return self.inside("checkpoint", f"state(write={write}, label={label!r})")

    def forget_checkpoints(self) -> None:
        """Remove all that is saved."""
        for path in self.checkpoints.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def replace_at_checkpoint(self, cell: int) -> None:
        """Replace the kernel by one that has the state after that cell."""
        self.disconnect()
        for manifest in self.manifests():
            if manifest["cell"] > cell:
                shutil.rmtree(self.checkpoints / str(manifest["number"]))
        self.replace()

    def manifests(self) -> list[dict[str, Any]]:
        """What the checkpoints say of themselves, oldest first."""
        numbers = sorted(int(p.name) for p in self.checkpoints.iterdir() if p.name.isdigit())
        return [
            json.loads((self.checkpoints / str(number) / "manifest.json").read_text())
            for number in numbers
        ]

    def checkpoint_of(self, cell: int, limit_s: float = ANSWER_S) -> dict[str, Any]:
        """The manifest of the newest checkpoint, once it is of that cell or a later one."""

        def found() -> dict[str, Any] | None:
            manifests = self.manifests()
            return manifests[-1] if manifests and manifests[-1]["cell"] >= cell else None

        try:
            return until(found, limit_s)
        except TimeoutError:
            names = [path.name for path in self.checkpoints.iterdir()]
            raise TimeoutError(f"no checkpoint of cell {cell}: {names}; {self.log()}") from None

    def log(self) -> str:
        """The end of the container's log."""
        with contextlib.suppress(docker.errors.APIError):
            return str(self.container.logs(tail=30).decode(errors="replace"))
        return ""

    def signal(self, name: str) -> None:
        """Signal PID 1 from outside."""
        self.container.kill(signal=name)

    def client(self) -> BlockingKernelClient:
        """A client to whom the present kernel answers."""
        if self._client is None:
            client = BlockingKernelClient()
            client.load_connection_info(self.connection(str(self.sockets / "k")))
            client.start_channels()
            self._client = client
            until(self._answers, READY_S, f"an answer of the kernel; log: {self.log()}")
        return self._client

    def _answers(self) -> bool:
        # Not wait_for_ready: it takes a kernel that is not there yet for a dead one.
        client = self.client()
        asked = client.kernel_info()
        try:
            while client.get_shell_msg(timeout=PROBE_S)["parent_header"].get("msg_id") != asked:
                pass
            while client.get_iopub_msg(timeout=PROBE_S)["parent_header"].get("msg_id") != asked:
                pass
        except Empty:
            return False
        return True

    def connection(self, ip: str) -> Any:
        """The connection file's content, for either side."""
        return connection(self._key, ip)

    def disconnect(self) -> None:
        """Forget the client, for the kernel behind it is another."""
        if self._client is not None:
            self._client.stop_channels()
            self._client.context.destroy(linger=0)
            self._client = None

    def replace(self, limit_s: float = ANSWER_S) -> dict[str, Any]:
        """Order a new kernel and wait until it runs."""
        before = self.status().get("replacements", 0)
        self.disconnect()
        self.signal("USR1")
        return self.await_status(limit_s, replacements=before + 1, state="running")

    def run(self, code: str, limit_s: float = ANSWER_S) -> Answer:
        """Run one cell to its end."""
        return self.collect(self.send(code), limit_s)

    def send(self, code: str) -> str:
        """Send one cell; the id to collect it by."""
        return str(self.client().execute(code, allow_stdin=False, stop_on_error=False))

    def interrupted(self, message_id: str) -> Answer:
        """A cell's end by SIGINT, repeated as the ladder does: Python drops one that comes in a callback."""
        for _ in range(INTERRUPTS):
            self.signal("INT")
            with contextlib.suppress(TimeoutError):
                return self.collect(message_id, INTERRUPT_WAIT_S)
        return self.collect(message_id)

    def collect(self, message_id: str, limit_s: float = ANSWER_S) -> Answer:
        """All that a cell sent, up to its idle and its reply."""
        client = self.client()
        answer = Answer("")
        deadline = time.monotonic() + limit_s
        while True:
            message = self._next(client, deadline)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            content = message["content"]
            kind = message["msg_type"]
            answer.iopub_bytes += len(json.dumps(content, ensure_ascii=False).encode())
            if kind == "stream":
                name, text = content["name"], content["text"]
                answer.streams[name] = answer.streams.get(name, "") + text
                answer.longest_stream = max(answer.longest_stream, len(text.encode()))
            elif kind == "execute_result":
                answer.results.append(content["data"].get("text/plain", ""))
            elif kind == "error":
                answer.ename = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while True:
            reply = client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            if reply["parent_header"].get("msg_id") == message_id:
                answer.status = reply["content"]["status"]
                return answer

    def rich(self, code: str) -> dict[str, Any]:
        """The value of a cell in all its formats."""
        client = self.client()
        asked = client.execute(code)
        deadline = time.monotonic() + ANSWER_S
        found: dict[str, Any] = {}
        while (message := self._next(client, deadline))["msg_type"] != "status" or (
            message["content"]["execution_state"] != "idle"
            or message["parent_header"].get("msg_id") != asked
        ):
            if message["msg_type"] in ("execute_result", "display_data"):
                found = message["content"]["data"]
        client.get_shell_msg(timeout=ANSWER_S)
        return found

    def _next(self, client: BlockingKernelClient, deadline: float) -> dict[str, Any]:
        left = deadline - time.monotonic()
        try:
            message: dict[str, Any] = client.get_iopub_msg(timeout=max(0.01, left))
        except Empty:
            raise TimeoutError(f"cell not ended; {self.status()}; log: {self.log()}") from None
        return message

    def await_output(self, text: str, limit_s: float = ANSWER_S) -> None:
        """Read standard output until the text is in it; what was read is gone."""
        deadline = time.monotonic() + limit_s
        seen = ""
        while text not in seen:
            message = self._next(self.client(), deadline)
            if message["msg_type"] == "stream":
                seen += message["content"]["text"]

    def gone(self) -> dict[str, Any] | None:
        """The container's end state, once it has ended."""
        self.container.reload()
        state: dict[str, Any] = self.container.attrs["State"]
        return None if state["Running"] else state

    def processes(self) -> list[str]:
        """Command lines of all processes of the container, from outside."""
        top = self.container.top(ps_args="-eo pid,args")
        return [row[-1] for row in top["Processes"] or []]


def connection(key: str, ip: str) -> Any:
    """A connection file over ipc."""
    ports = {
        f"{name}_port": at
        for at, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)
    }
    return {
        "transport": "ipc",
        "ip": ip,
        **ports,
        "key": key,
        "signature_scheme": "hmac-sha256",
        "kernel_name": "kept",
    }


@contextlib.contextmanager
def kept(
    image: str, *, memory: int = 1536 * MIB, uid: int | None = None, **settings: Any
) -> Iterator[Kept]:
    """A container, hardened as those of the broker are, that is gone afterwards.

    Args:
        image: What has ipykernel, and Sage for `SAGE`.
        memory: Limit in bytes.
        uid: Of the container's processes; a fresh one for root, else our own.
        settings: Entries of ``keeper.json``.
    """
    root = os.geteuid() == 0
    user = uid or (200_000 + secrets.randbelow(20_000) if root else os.geteuid())
    folder = Path(tempfile.mkdtemp(prefix="kp-", dir="/tmp"))
    key = secrets.token_hex(16)
    _make_folders(folder, user, key, {"preload": [], "lease_limit_s": 0.0, **settings}, root=root)
    engine = docker.from_env(timeout=60)
    container = None
    session = None
    try:
        container = engine.containers.create(image, **_hardening(folder, user, memory))
        container.start()
        session = Kept(container, folder, key)
        yield session
    finally:
        if session is not None:
            session.disconnect()
        if container is not None:
            container.remove(force=True, v=True)
        engine.close()
        if root:
            subprocess.run(["umount", str(folder / "s")], check=True)
        shutil.rmtree(folder)


def _make_folders(
    folder: Path, user: int, key: str, settings: dict[str, Any], *, root: bool
) -> None:
    for name in ("ctl", "ctl/s", "s", "files", "checkpoints"):
        (folder / name).mkdir()
    folder.chmod(0o711)
    if root:
        options = f"size=4m,nr_inodes=256,mode=700,uid={user},gid={user}"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / "s")], check=True
        )
    connection_file = folder / "ctl" / "connection.json"
    connection_file.write_text(json.dumps(connection(key, "/run/kernel/s/k")))
    connection_file.chmod(0o600)
    (folder / "ctl" / "keeper.json").write_text(json.dumps(settings))
    (folder / "ctl" / "lease").touch()
    for owned in (connection_file, folder / "s", folder / "files", folder / "checkpoints"):
        os.chown(owned, user, user)


def _hardening(folder: Path, user: int, memory: int) -> dict[str, Any]:
    def mount(source: Path, target: str, mode: str) -> dict[str, dict[str, str]]:
        return {str(source): {"bind": target, "mode": mode}}

    return {
        "name": f"exp-keeper-{secrets.token_hex(4)}",
        "labels": {"exp-keeper": "1"},
        "command": ["python3", "-I", "-B", "/opt/sagebroker/keeper.py"],
        "user": f"{user}:{user}",
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "mem_limit": memory,
        "memswap_limit": memory,
        "pids_limit": 256,
        "ipc_mode": "private",
        "working_dir": "/files",
        "environment": {"HOME": "/home/sage", "DOT_SAGE": "/home/sage/.sage"},
        "tmpfs": {
            "/tmp": f"size=256m,mode=1777,uid={user},gid={user},nosuid,nodev",
            "/home/sage": f"size=128m,mode=700,uid={user},gid={user},nosuid,nodev",
        },
        "volumes": {
            **mount(folder / "ctl", "/run/kernel", "ro"),
            **mount(folder / "s", "/run/kernel/s", "rw"),
            **mount(folder / "files", "/files", "rw"),
            **mount(folder / "checkpoints", "/checkpoint", "rw"),
            **mount(INSIDE, "/opt/sagebroker", "ro"),
        },
        "log_config": docker.types.LogConfig(type="json-file", config={"max-size": "1m"}),
    }
