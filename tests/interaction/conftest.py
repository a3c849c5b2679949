"""A real MCP client against the server: in memory and over stdio, in both protocol eras.

The kernels are real ipykernels without a container (`sagebroker.testing.local_runtime`), so that
this tier needs no engine; ``tests/sage`` has the same server with Sage in containers.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, HibernationConfig
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.server.app import make_server
from sagebroker.testing.local_runtime import LocalRuntime

ERAS = ["auto", "legacy"]
"""The client's mode: stateless 2026-07-28, and the handshake era up to 2025-11-25."""

LOCAL_SERVER = Path(__file__).with_name("local_server.py")


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def open_broker(config: BrokerConfig) -> AsyncIterator[Broker]:
    """A broker whose kernels run on this machine."""
    image = KernelSpec.load("sagemath").broker.image
    async with LocalRuntime(image) as runtime, Broker(config, runtime) as broker:
        yield broker


@asynccontextmanager
async def open_in_memory(broker: Broker, era: str) -> AsyncIterator[Client]:
    """A client of a server that lends ``broker`` and leaves its closing to the caller."""
    async with Client(make_server(lambda: nullcontext(broker)), mode=era) as client:
        yield client


def local_server(folder: Path) -> StdioServerParameters:
    """A server process with its state in ``folder``."""
    return StdioServerParameters(command=sys.executable, args=[str(LOCAL_SERVER), str(folder)])


def local_serve(folder: Path) -> list[str]:
    """The command of a server for several users, with its state in ``folder``."""
    return [sys.executable, str(LOCAL_SERVER), str(folder), "serve"]


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    """Sessions end with the broker in memory; those of a server process sleep, as they do for users."""
    return config.model_copy(update={"hibernation": HibernationConfig(at_end=False)})


@pytest.fixture
async def broker(config: BrokerConfig) -> AsyncIterator[Broker]:
    async with open_broker(config) as opened:
        yield opened


@pytest.fixture
async def memory_client(broker: Broker, era: str) -> AsyncIterator[Client]:
    async with open_in_memory(broker, era) as opened:
        yield opened


@pytest.fixture(params=["memory", "stdio"])
async def client(
    request: pytest.FixtureRequest, config: BrokerConfig, short_dir: Path, era: str
) -> AsyncIterator[Client]:
    if request.param == "stdio":
        async with Client(local_server(short_dir), mode=era) as opened:
            yield opened
    else:
        async with open_broker(config) as broker, open_in_memory(broker, era) as opened:
            yield opened
