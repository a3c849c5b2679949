"""`Users`: every user's broker, in one process.

A user's sessions live in a state folder of their own, so that no name, number or query can reach
another user's: there is no owner to compare, and what is not yours is not there. The brokers share
what the machine has once: the engine, the starts, the watch over the process's memory.
"""

from __future__ import annotations

from typing import Final, Protocol

from sagebroker.broker import Broker

LOCAL_USER: Final = ""
"""Who owns the state folder itself: whoever runs the command line, stdio, the unix socket."""


class Users(Protocol):
    """Gives each user a broker."""

    async def broker_of(self, user: str) -> Broker:
        """The user's broker, entered. Raises `BrokerError` where it cannot be."""
        ...


class SoleUser:
    """One broker for whoever asks: stdio has one user."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def broker_of(self, user: str) -> Broker:
        """The broker."""
        del user
        return self._broker
