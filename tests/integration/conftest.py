"""A whole broker over real kernels of this machine, without containers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.integration.moments import Doomed, killed

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, HibernationConfig
from sagebroker.testing.local_runtime import LocalRuntime


@pytest.fixture
async def runtime(sage_image: str) -> AsyncIterator[LocalRuntime]:
    async with LocalRuntime(sage_image) as local:
        yield local
        assert not local.containers, "a session left its container"


def sleepy(config: BrokerConfig) -> BrokerConfig:
    """With sessions that sleep when their broker ends."""
    sleep = HibernationConfig(at_end=True, drain_s=0.1)
    return config.model_copy(update={"hibernation": sleep})


@pytest.fixture
def impatient(config: BrokerConfig) -> BrokerConfig:
    """Sessions sleep as soon as nobody uses them; 1 s is the shortest that may be configured."""
    sleep = HibernationConfig(at_end=True, idle_s=1.0)
    return config.model_copy(update={"hibernation": sleep})


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    """Sessions end with their broker, unless a test wants them to sleep."""
    return config.model_copy(update={"hibernation": HibernationConfig(at_end=False)})


@pytest.fixture
async def broker(config: BrokerConfig, runtime: LocalRuntime) -> AsyncIterator[Broker]:
    async with Broker(config, runtime) as opened:
        yield opened


@pytest.fixture
def doomed(config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> Doomed:
    @asynccontextmanager
    async def run() -> AsyncIterator[Broker]:
        with killed(monkeypatch):
            async with Broker(config, runtime) as broker:
                yield broker

    return run
