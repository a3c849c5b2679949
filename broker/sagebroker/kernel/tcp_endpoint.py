"""`TcpEndpoint`: an endpoint for Jupyter clients on another machine, encrypted with CurveZMQ.

Whoever has the connection file may do everything in the session: the file's key signs messages, and its key pair proves
the server to the client and encrypts (jupyter_client 8.9 and newer).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

import zmq
import zmq.asyncio

from sagebroker.errors import ConfigError
from sagebroker.kernel.connection import SIGNATURE_SCHEME, SOCKET_NAMES, SocketName
from sagebroker.kernel.endpoint import Endpoint

_MAX_PORT: Final = 65_535


@dataclass(kw_only=True)
class TcpPlace:
    """Where the sockets are, and what clients need to know."""

    host: str
    """Address to listen at."""
    address: str
    """Under which clients reach it."""
    key: bytes = field(repr=False)
    public_key: bytes
    secret_key: bytes = field(repr=False)
    ports: dict[SocketName, int] = field(default_factory=dict)
    """Those taken before, which are wanted again; then those that were taken."""

    @classmethod
    def made_of(cls, text: str, *, host: str, address: str, key: bytes) -> TcpPlace:
        """The place that an earlier connection file tells, or one with new keys and free ports.

        Args:
            text: Of the file; empty for none.
            host: Address to listen at.
            address: Under which clients reach it.
            key: With which messages are signed.
        """
        try:
            told = json.loads(text)
            public, secret = told["curve_publickey"].encode(), told["curve_secretkey"].encode()
            if zmq.curve_public(secret) != public:
                raise ValueError("the keys are no pair")
            ports = {name: int(told[f"{name}_port"]) for name in SOCKET_NAMES}
        except (ValueError, KeyError, TypeError, AttributeError):
            public, secret = zmq.curve_keypair()
            ports = {}
        known = {name: port for name, port in ports.items() if 0 < port <= _MAX_PORT}
        return cls(
            host=host,
            address=address,
            key=key,
            public_key=public,
            secret_key=secret,
            ports=known,
        )

    def to_values(self) -> dict[str, Any]:
        """The content of the connection file, keys included."""
        return {
            "transport": "tcp",
            "ip": self.address,
            **{f"{name}_port": port for name, port in self.ports.items()},
            "key": self.key.decode("ascii"),
            "signature_scheme": SIGNATURE_SCHEME,
            "curve_publickey": self.public_key.decode("ascii"),
            "curve_secretkey": self.secret_key.decode("ascii"),
        }


class TcpEndpoint(Endpoint):
    """See the module.

    Args:
        place: Where; its ports are known when it is bound.
        options: Of every endpoint.
    """

    def __init__(self, place: TcpPlace, **options: Any) -> None:
        super().__init__(place.key, **options)
        self._place = place

    def _bind(self, name: SocketName, socket: zmq.asyncio.Socket) -> None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._place.secret_key)
        socket.setsockopt(zmq.IPV6, int(":" in self._place.host))
        at = f"tcp://{f'[{self._place.host}]' if ':' in self._place.host else self._place.host}"
        wanted = self._place.ports.get(name)
        try:
            socket.bind(f"{at}:{wanted or '*'}")
        except zmq.ZMQError:
            if wanted is None:
                raise
            # Somebody else has it now: clients have to read the connection file again.
            socket.bind(f"{at}:*")
        bound = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self._place.ports[name] = int(bound.rstrip(b"\0").rpartition(b":")[2])

    def _refusal(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"Jupyter clients of other machines cannot be served at {self._place.host!r}: {error}.",
            hint="Set jupyter.tcp_host to an address of this machine, or to nothing.",
        )
