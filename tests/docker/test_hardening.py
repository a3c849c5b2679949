"""What must fail from inside a session's container, tried inside one; and the engine's own word for it.

Each probe is a Python program run as PID 1 of a container made as the broker makes them; it leaves its
findings in ``/files/found.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from sagebroker.config import engine_environment
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.engine import FoundEngine, find_engine
from sagebroker.container.runtime import ContainerStatus
from sagebroker.container.spec import ContainerSpec
from sagebroker.testing.containers import SMALL

pytestmark = pytest.mark.docker

LIMIT_S = 60

PRELUDE = """
import ctypes, errno, json, os, socket, sys, time
found = {}
def attempt(name, action):
    '''Record "done", or the name of the error.'''
    try:
        action()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, type(error).__name__)
libc = ctypes.CDLL(None, use_errno=True)
def call(name, function, *args):
    ctypes.set_errno(0)
    result = function(*args)
    found[name] = "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""
EPILOGUE = """
with open("/files/found.json", "w") as out:
    json.dump(found, out)
"""


@pytest.fixture(params=["docker", "podman"])
async def engine(request: pytest.FixtureRequest) -> FoundEngine:
    url = request.getfixturevalue("podman_url") if request.param == "podman" else ""
    return await find_engine(url, engine_environment())


async def _finish(runtime: DockerRuntime, spec: ContainerSpec) -> ContainerStatus:
    container = await runtime.create(spec)
    await runtime.start(container)
    with anyio.fail_after(LIMIT_S):
        while (status := await runtime.inspect(container)).is_running:
            await anyio.sleep(0.05)
    return status


async def _probe(runtime: DockerRuntime, make_spec: Any, program: str, **changes: Any) -> Any:
    """Run ``program`` in a container and return what it found."""
    source = PRELUDE + textwrap.dedent(program) + EPILOGUE
    spec = make_spec(command=("python3", "-I", "-c", source), **changes)
    status = await _finish(runtime, spec)
    output = await runtime.logs(status.id, tail=30)
    assert status.exit_code == 0, output
    return json.loads((make_spec.folders().files / "found.json").read_text())


async def test_no_privilege_is_there_or_can_be_gained(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    found = await _probe(
        runtime,
        make_spec,
        r"""
        for line in open("/proc/self/status"):
            key, _, value = line.partition(":")
            if key.startswith("Cap") or key in ("NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups"):
                found[key] = value.split()
        attempt("setuid 0", lambda: os.setuid(0))
        attempt("setgid 0", lambda: os.setgid(0))
        attempt("chown", lambda: os.chown("/files", 0, 0))
        attempt("mknod", lambda: os.mknod("/files/disk", 0o60600, os.makedev(8, 0)))
        attempt("chroot", lambda: os.chroot("/files"))
        attempt("sethostname", lambda: socket.sethostname("other"))
        attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
        attempt("memory of the machine", lambda: open("/dev/mem", "rb"))
        attempt("kernel memory", lambda: open("/proc/kcore", "rb").read(1) or (_ for _ in ()).throw(OSError(1, "")))
        attempt("sysctl", lambda: open("/proc/sys/kernel/hostname", "w"))
        attempt("sysrq", lambda: open("/proc/sysrq-trigger", "w"))
        attempt("sys", lambda: open("/sys/kernel/mm/ksm/run", "w"))
        attempt("cgroup", lambda: open("/sys/fs/cgroup/cgroup.procs", "w"))
        attempt("cgroup v1", lambda: open("/sys/fs/cgroup/memory/memory.limit_in_bytes", "w"))
        call("mount", libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)
        call("remount", libc.mount, b"none", b"/", b"", 32, None)
        call("umount", libc.umount2, b"/run/kernel", 0)
        call("user namespace", libc.unshare, 0x10000000)
        call("mount namespace", libc.unshare, 0x00020000)
        call("network namespace", libc.unshare, 0x40000000)
        call("keyctl", libc.syscall, 250, 0, -3, 1)
        call("add_key", libc.syscall, 248, b"user", b"k", b"v", 1, -3)
        call("bpf", libc.syscall, 321, 0, None, 0)
        call("perf_event_open", libc.syscall, 298, None, 0, -1, -1, 0)
        call("init_module", libc.syscall, 175, None, 0, b"")
        call("reboot", libc.syscall, 169, 0, 0, 0, None)
        call("userfaultfd", libc.syscall, 323, 0)
        """,
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found.pop(name)[0], 16) == 0, name
    assert found.pop("NoNewPrivs") == ["1"]
    assert found.pop("Seccomp") == ["2"]
    uid = str(make_spec().uid)
    assert found.pop("Uid") == [uid] * 4
    assert "0" not in found.pop("Groups")
    assert len(found.pop("Gid")) == 4
    assert found
    assert {name: result for name, result in found.items() if result == "done"} == {}


async def test_no_network_is_there(runtime: DockerRuntime, make_spec: Any) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        found = await _probe(
            runtime,
            make_spec,
            f"""
            def connect(address):
                with socket.socket() as link:
                    link.settimeout(2)
                    link.connect(address)
            attempt("internet", lambda: connect(("192.0.2.1", 80)))
            attempt("bridge gateway", lambda: connect(("172.17.0.1", {listener.getsockname()[1]})))
            attempt("metadata service", lambda: connect(("169.254.169.254", 80)))
            attempt("host's port", lambda: connect(("127.0.0.1", {listener.getsockname()[1]})))
            attempt("IPv6", lambda: socket.create_connection(("2001:db8::1", 80), timeout=2))
            attempt("DNS", lambda: socket.getaddrinfo("example.org", 80))
            attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
            attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            found["interfaces"] = [name for _, name in socket.if_nameindex() if not name.startswith(
                ("tunl", "sit", "ip6", "gre", "erspan", "ip_vti", "gretap"))]
            """,
        )
    assert found.pop("interfaces") == ["lo"]
    assert "done" not in found.values(), found


async def test_only_its_own_places_can_be_written(runtime: DockerRuntime, make_spec: Any) -> None:
    found = await _probe(
        runtime,
        make_spec,
        """
        writable = []
        for folder, folders, _ in os.walk("/"):
            if folder == "/":
                folders[:] = [name for name in folders if name not in ("proc", "sys")]
            probe = os.path.join(folder, ".probe")
            try:
                os.close(os.open(probe, os.O_CREAT | os.O_WRONLY))
                os.unlink(probe)
                writable.append(folder)
                folders.clear()
            except OSError:
                pass
        found["writable"] = sorted(writable)
        for name, path in (("connection file", "/run/kernel/connection.json"), ("code", "/opt/sagebroker/x")):
            attempt(name, lambda: open(path, "w"))
        attempt("kernel folder", lambda: os.rename("/run/kernel/s", "/run/kernel/t"))
        attempt("passwd", lambda: open("/etc/passwd", "a"))
        attempt("hosts", lambda: open("/etc/hosts", "a"))
        attempt("resolv.conf", lambda: open("/etc/resolv.conf", "a"))
        """,
    )
    assert found.pop("writable") == [
        "/dev/mqueue",
        "/dev/shm",
        "/files",
        "/home/sage",
        "/run/kernel/s",
        "/tmp",
    ]
    assert set(found.values()) <= {"EROFS", "EACCES", "EBUSY"}, found


async def test_neither_the_engine_nor_another_session_can_be_seen(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    other = make_spec(session="two", command=("sleep", "600"))
    secret = make_spec.folders("two").files / "secret"
    secret.write_text("of session two")
    await runtime.start(await runtime.create(other))
    found = await _probe(
        runtime,
        make_spec,
        """
        found["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        found["files"] = os.listdir("/files")
        found["sockets"] = [
            os.path.join(folder, name) for folder, _, names in os.walk("/run") for name in names
            if name.endswith(".sock")
        ]
        found["unix"] = open("/proc/net/unix").read().count("docker")
        found["shm"] = open("/proc/sysvipc/shm").read().count("\\n")
        found["mounts"] = sorted({line.split()[1] for line in open("/proc/mounts")})
        attempt("kill", lambda: os.kill(-1, 9))
        """,
    )
    assert found["processes"] == [1]
    assert found["files"] == []
    assert found["sockets"] == []
    assert found["unix"] == 0
    assert found["shm"] == 1  # the heading
    assert not [place for place in found["mounts"] if "docker" in place]
    assert found["kill"] == "ESRCH"  # there is nobody else
    assert (await runtime.inspect(other.name)).is_running


async def test_distinct_uids_keep_sessions_apart_even_on_the_same_folder(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives each session a uid of its own")
    spec = make_spec()
    make_spec.folders().files.chmod(0o700)
    command = ("python3", "-I", "-c", "import os; os.listdir('/files')")
    stranger = replace(
        spec, uid=spec.uid + 1, gid=spec.gid + 1, command=command, working_dir="/tmp"
    )
    status = await _finish(runtime, stranger)
    assert "PermissionError" in await runtime.logs(status.id, tail=5)


def _assert_out_of_memory(status: ContainerStatus, engine: FoundEngine) -> None:
    assert status.exit_code == 137
    # Podman does not always notice; of a kernel the keeper says it, by the cgroup's own counter.
    assert status.oom_killed or engine.info.name == "podman"


async def test_memory_over_the_limit_kills_and_is_flagged(
    runtime: DockerRuntime, engine: FoundEngine, make_spec: Any
) -> None:
    program = "hold = []\nwhile True: hold.append(bytearray(16 * 2**20))"
    status = await _finish(runtime, make_spec(command=("python3", "-I", "-c", program)))
    _assert_out_of_memory(status, engine)


async def test_memory_in_tmpfs_counts_too(
    runtime: DockerRuntime, engine: FoundEngine, make_spec: Any
) -> None:
    spec = make_spec()
    places = tuple(replace(place, size_bytes=2**40) for place in spec.tmpfs)
    program = "import os\nout = open('/tmp/big', 'wb')\nwhile True: out.write(os.urandom(2**20))"
    limits = replace(SMALL, file_bytes=2**40)
    command = ("python3", "-I", "-c", program)
    status = await _finish(runtime, replace(spec, tmpfs=places, limits=limits, command=command))
    _assert_out_of_memory(status, engine)


async def test_limits_of_processes_files_and_space_hold(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    found = await _probe(
        runtime,
        make_spec,
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        children = []
        def forks():
            while True:
                pid = os.fork()
                if not pid:
                    signal.pause()
                children.append(pid)
        attempt("forks", forks)
        found["children"] = len(children)
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        def fill(path):
            out = os.open(path, os.O_CREAT | os.O_WRONLY)
            while True:
                os.write(out, bytes(2**20))
        attempt("file", lambda: fill("/files/big"))
        found["file size"] = os.path.getsize("/files/big")
        os.unlink("/files/big")
        attempt("tmp", lambda: fill("/tmp/big"))
        attempt("home", lambda: fill("/home/sage/big"))
        attempt("shm", lambda: fill("/dev/shm/big"))
        opened = []
        def descriptors():
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        attempt("descriptors", descriptors)
        for fd in opened:
            os.close(fd)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
            found["raised"] = True
        except ValueError:
            found["raised"] = False
        found["core"] = resource.getrlimit(resource.RLIMIT_CORE)
        """,
    )
    assert found["forks"] == "EAGAIN"
    assert found["children"] < SMALL.pids
    assert found["file"] == "EFBIG"
    assert found["file size"] == SMALL.file_bytes
    assert found["tmp"] == found["home"] == found["shm"] == "ENOSPC"
    assert found["descriptors"] == "EMFILE"
    assert found["raised"] is False
    assert found["core"] == [0, 0]


async def test_the_number_of_files_in_memory_is_bounded(
    runtime: DockerRuntime, engine: FoundEngine, make_spec: Any
) -> None:
    program = """
        number = 0
        while True:
            os.close(os.open("/tmp/%d" % number, os.O_CREAT))
            number += 1
    """
    spec = make_spec(command=("python3", "-I", "-c", PRELUDE + textwrap.dedent(program)))
    status = await _finish(runtime, spec)
    if engine.info.name == "podman":
        # It takes no limit for a tmpfs: the files count as memory.
        _assert_out_of_memory(status, engine)
    else:
        assert "No space left" in await runtime.logs(status.id, tail=5)


async def test_what_a_session_compiled_can_be_loaded_from_its_tmpfs(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    found = await _probe(
        runtime,
        make_spec,
        """
        import shutil, _ctypes
        source = _ctypes.__file__
        for place in ("/tmp", "/home/sage"):
            attempt(place, lambda: ctypes.CDLL(shutil.copy(source, place + "/copy.so")))
        """,
    )
    assert found == {"/tmp": "done", "/home/sage": "done"}


async def test_a_setuid_program_gains_nothing(runtime: DockerRuntime, make_spec: Any) -> None:
    """The engine's user may own the folder: a setuid file there would be root's."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of root's")
    _install_setuid_id(make_spec.folders().code)
    status = await _finish(runtime, make_spec(command=("/opt/sagebroker/id", "-u")))
    assert (await runtime.logs(status.id, tail=1)).strip() == str(make_spec().uid)


def _install_setuid_id(folder: Path) -> None:
    shutil.copy("/usr/bin/id", folder / "id")
    (folder / "id").chmod(0o4755)
