"""`BrokerConfig`: one frozen tree, read once.

Sources, weakest first: defaults, a TOML file, the environment (``SAGEBROKER_SESSION__MAX_SESSIONS=4``),
arguments. This is the only module that reads the environment. Units are in the names.
"""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from sagebroker.errors import ConfigError

GIB = 2**30
MIB = 2**20


class _Branch(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ContainerConfig(_Branch):
    """Limits of every session's container."""

    memory_bytes: int = Field(default=4 * GIB, ge=256 * MIB)
    """Memory of a session, swap included; the kernel alone is ended when it is exceeded."""
    cpus: float = Field(default=2.0, gt=0)
    """Processor time, in cores."""
    pids: int = Field(default=256, ge=32)
    """Processes and threads of a session."""
    tmp_bytes: int = Field(default=512 * MIB, ge=MIB)
    """Size of /tmp and of the home folder (each); both live in memory."""
    file_bytes: int = Field(default=2 * GIB, ge=MIB)
    """Largest single file a session may write."""
    files_bytes: int = Field(default=4 * GIB, ge=MIB)
    """All files of a session together."""
    open_files: int = Field(default=4096, ge=256)
    """Open file descriptors of one process in a session."""
    hard_life_s: float = Field(default=86_400.0, gt=0)
    """Age at which a container ends, whatever happens."""
    lease_limit_s: float = Field(default=600.0, ge=10)
    """Time without a broker after which a container ends by itself."""


class KernelConfig(_Branch):
    """How kernels are started, watched and stopped."""

    kernelspec: str = "sagemath"
    """Kernelspec a session is started from: a folder in ``kernelspecs/`` or a path."""
    image: str = ""
    """Image in place of the kernelspec's."""
    ready_limit_s: float = Field(default=90.0, gt=0)
    """Time from container creation to the first reply."""
    concurrent_starts: int = Field(default=max(1, min(3, (os.cpu_count() or 2) // 2)), ge=1)
    """Kernels started at once. A start is bound by the processor: 4 at once on 2 cores take
    9-10 s each instead of 2-4 s (measured)."""
    heartbeat_interval_s: float = Field(default=1.0, gt=0)
    """Time between pings."""
    heartbeat_suspect_s: float = Field(default=10.0, gt=0)
    """Silence after which the container is looked at; never a verdict by itself."""
    sigint_waits_s: tuple[float, ...] = (1.0, 1.3, 1.7)
    """Waits after each SIGINT of the interrupt ladder; after the last comes a new kernel."""


class SessionConfig(_Branch):
    """Limits of sessions and their cells."""

    max_sessions: int = Field(default=8, ge=1, le=75)
    """Sessions of one broker; a ZeroMQ context has sockets for 78."""
    max_stored_sessions: int = Field(default=500, ge=1)
    """Sessions, those that sleep counted; each may have files and checkpoints."""
    max_queued_cells: int = Field(default=16, ge=1)
    """Cells waiting in one session."""
    max_cells: int = Field(default=256, ge=1)
    """Cells that run or wait in all sessions of one broker."""
    time_limit_s: float = Field(default=600.0, gt=0)
    """Default time limit of a cell."""
    max_time_limit_s: float = Field(default=86_400.0, gt=0)
    """Largest time limit a caller may ask for."""
    kept_cells: int = Field(default=200, ge=10)
    """Ended cells remembered by a session."""
    kept_bytes: int = Field(default=64 * MIB, ge=MIB)
    """Outputs remembered by a session; older cells are forgotten first, the newest never."""
    stream_bytes: int = Field(default=2 * MIB, ge=10_000)
    """Text kept of each stream of a cell: the first and the last half."""
    display_bytes: int = Field(default=24 * MIB, ge=MIB)
    """Displayed data kept of a cell, all displays together."""
    max_displays: int = Field(default=200, ge=1)
    """Displays kept of a cell."""
    crash_limit: int = Field(default=3, ge=1)
    """Deaths within `crash_window_s` after which a session stops trying."""
    crash_window_s: float = Field(default=60.0, gt=0)
    """Window of `crash_limit`."""


class CheckpointConfig(_Branch):
    """Saved namespaces: what brings a session's variables back after its kernel's death."""

    enabled: bool = True
    """Save the namespace after each cell that may have changed it."""
    limit_bytes: int = Field(default=500 * MIB, ge=MIB)
    """Largest checkpoint; a variable that does not fit is left out, and that is told."""
    time_limit_s: float = Field(default=60.0, gt=0)
    """Time the saving process has; it runs beside the next cells."""
    keep: int = Field(default=3, ge=1)
    """Checkpoints kept of a session."""


class HibernationConfig(_Branch):
    """Sessions that sleep: their variables saved, their container gone."""

    at_end: bool = True
    """Let sessions sleep when their broker ends, so that the next one finds them by name; else they
    are closed then."""
    idle_s: float = Field(default=3600.0, ge=1)
    """Time without use after which a session sleeps, if all its variables can be saved."""
    save_limit_s: float = Field(default=20.0, gt=0)
    """Time to bring the last changes into a checkpoint before the container goes."""
    drain_s: float = Field(default=0.5, ge=0)
    """Time that running cells have to end by themselves when the broker ends."""


class TranscriptConfig(_Branch):
    """The record of all cells, kept on disk."""

    kept_cells: int = Field(default=2000, ge=10)
    """Cells kept of a session."""
    kept_bytes: int = Field(default=256 * MIB, ge=MIB)
    """Code and outputs kept of a session; older cells are forgotten first, the newest never."""


class ServeConfig(_Branch):
    """``sagebroker serve``: MCP and the JSON API over HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on; one beyond this machine needs tokens or an OAuth issuer."""
    port: int = Field(default=8765, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    url: str = ""
    """The address that clients use, where that is another: https://sage.example.org, behind a proxy."""
    allowed_hosts: tuple[str, ...] = ()
    """Further values of the Host header that are answered; name:* stands for any port."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may call, by Origin, such as https://lab.example.org; programs send none."""
    tls_certificate: Path | None = None
    """Certificate chain, PEM; with it, HTTPS is spoken."""
    tls_key: Path | None = None
    """Private key of the certificate, PEM."""
    max_body_bytes: int = Field(default=6 * MIB, ge=64 * 1024)
    """Largest request; the largest file that one call writes, 3 MiB, takes 4 in base64."""
    body_limit_s: float = Field(default=30.0, gt=0)
    """Silence within a request's body after which it is given up."""
    max_connections: int = Field(default=512, ge=8)
    """Connections at once; more are answered 503."""
    drain_s: float = Field(default=5.0, ge=0)
    """Time that answers have to be finished when the server ends."""
    idle_limit_s: float = Field(default=600.0, gt=0)
    """Time without a session that is awake and without a connection after which ``serve --local`` ends."""


class AuthConfig(_Branch):
    """Who may call over HTTP, beside the bearer tokens of ``sagebroker token``."""

    issuer: str = ""
    """OAuth authorization server whose JWTs are accepted, for instance https://login.example.org."""
    audience: str = ""
    """What those JWTs must be meant for; the server's own /mcp address if empty."""
    jwks_url: str = ""
    """Where the issuer's keys are; looked up in its metadata if empty."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """Signatures that are accepted."""
    user_claim: str = "sub"
    """The claim that names the user; it must never be given to somebody else."""


class UsersConfig(_Branch):
    """Limits of each user of a server that has several, and of all together."""

    max_sessions: int = Field(default=4, ge=1, le=75)
    """Sessions of one user that are awake."""
    total_sessions: int = Field(default=16, ge=1)
    """Sessions of all users that are awake."""
    max_stored_sessions: int = Field(default=32, ge=1)
    """Sessions of one user, those that sleep counted."""
    max_cells: int = Field(default=64, ge=1)
    """Cells of one user that run or wait."""
    calls_per_minute: float = Field(default=600.0, gt=0)
    """Calls of one user, in the long run."""
    burst_calls: int = Field(default=120, ge=1)
    """Calls of one user at once, after a time of quiet."""


def _in_small_letters(level: object) -> object:
    return level.lower() if isinstance(level, str) else level


LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], BeforeValidator(_in_small_letters)
]
"""How much is logged, in capitals too, as other programs have it."""


class LogConfig(_Branch):
    """Logging, always to stderr."""

    level: LogLevel = "warning"
    """debug, info, warning or error."""
    as_json: bool = False
    """One JSON object a line."""


def _default_state_dir() -> Path:
    return Path(platformdirs.user_state_dir("sagebroker"))


def _default_runtime_dir() -> Path:
    """A short path: a unix socket's path has at most 107 bytes (``sun_path``)."""
    if os.geteuid() == 0:
        return Path("/run/sagebroker")
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base and len(base) < 40 and os.access(base, os.W_OK):
        return Path(base) / "sagebroker"
    return Path(tempfile.gettempdir()) / f"sagebroker-{os.geteuid()}"


class JupyterConfig(_Branch):
    """JupyterLab, consoles and other Jupyter clients of a session."""

    may_interrupt_all: bool = True
    """Whether a client's interrupt also stops a cell that somebody else runs."""
    tcp_host: str = ""
    """Address at which sessions also take Jupyter clients of other machines, encrypted; empty for none. Whoever has a
    session's `connection-tcp.json` may do everything in it."""
    tcp_address: str = ""
    """Name or address under which those reach this machine; `tcp_host` by default."""


class BrokerConfig(BaseSettings):
    """The whole configuration; see the branches."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="SAGEBROKER_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    state_dir: Path = Field(default_factory=_default_state_dir)
    """What outlives the process: records and files of sessions."""
    runtime_dir: Path = Field(default_factory=_default_runtime_dir)
    """Sockets; a short path."""
    engine_url: str = ""
    """Engine to use in place of DOCKER_HOST and the usual sockets."""
    container: ContainerConfig = ContainerConfig()
    kernel: KernelConfig = KernelConfig()
    session: SessionConfig = SessionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    hibernation: HibernationConfig = HibernationConfig()
    transcript: TranscriptConfig = TranscriptConfig()
    serve: ServeConfig = ServeConfig()
    auth: AuthConfig = AuthConfig()
    users: UsersConfig = UsersConfig()
    jupyter: JupyterConfig = JupyterConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment; a `.env` file is never read."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings

    @classmethod
    def load(cls, path: Path | None = None, **overrides: Any) -> BrokerConfig:
        """Read the configuration file and the environment.

        Args:
            path: TOML file; without it the one that ``SAGEBROKER_CONFIG`` names, or else the one in
                the user's configuration folder, if it exists.
            overrides: Settings that go before all others.

        Raises:
            ConfigError: A file that somebody named is missing, a file is not TOML, or a value is not
                allowed.
        """
        named = path or _named_config_file()
        chosen = named or Path(platformdirs.user_config_dir("sagebroker")) / "config.toml"
        # A file that somebody named must be there: its limits are not to be dropped silently.
        values = _read_toml(chosen) if named or chosen.is_file() else {}
        try:
            # The environment overrides the file: only what it does not set is taken from there.
            merged = _merge(values, EnvSettingsSource(cls)())
            return cls(**_merge(merged, overrides))
        except SettingsError as error:
            raise ConfigError(
                f"A variable SAGEBROKER_… cannot be read: {error}.",
                hint="A branch of settings is a JSON object there; single settings have names such as "
                "SAGEBROKER_KERNEL__IMAGE.",
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"The setting {where!r} is not allowed: {first['msg']}.",
                hint=f"Correct it among the command's options, in the environment (SAGEBROKER_…) or in {chosen}.",
            ) from error

    def as_environment(self) -> dict[str, str]:
        """The variables that give another process this configuration, wherever it came from.

        What nobody has set stays unset there: a kernelspec's limits replace defaults only.
        """
        found = {}
        for name, value in self.model_dump(mode="json", exclude_unset=True).items():
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            found[f"SAGEBROKER_{name.upper()}"] = text
        return found | {
            "SAGEBROKER_STATE_DIR": str(self.state_dir.absolute()),
            "SAGEBROKER_RUNTIME_DIR": str(self.runtime_dir.absolute()),
        }


def _named_config_file() -> Path | None:
    named = os.environ.get("SAGEBROKER_CONFIG", "")
    return Path(named) if named else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from error


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        merged[key] = (
            _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def engine_environment() -> dict[str, str]:
    """The variables that say where the container engine is (``DOCKER_HOST`` and its like)."""
    names = (
        "DOCKER_HOST",
        "DOCKER_TLS_VERIFY",
        "DOCKER_CERT_PATH",
        "DOCKER_API_VERSION",
        "XDG_RUNTIME_DIR",
    )
    return {name: os.environ[name] for name in names if name in os.environ}


def environment() -> dict[str, str]:
    """The whole environment, for the image's build, which follows pip's and the proxies' variables."""
    return dict(os.environ)
