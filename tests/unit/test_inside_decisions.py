from __future__ import annotations

import signal

import pytest

from sagebroker.inside.decisions import (
    LONGEST_TICK_S,
    OOM_MEMORY_S,
    SHORTEST_TICK_S,
    CrashWindow,
    Exit,
    LeaseWatch,
    OomWatch,
    Order,
    oom_kills,
    order_of,
    tick_s,
)

KILLED = Exit(signal.SIGKILL, None)


@pytest.mark.parametrize(
    ("arrived", "order"),
    [
        (set(), None),
        ({signal.SIGCHLD}, None),
        ({signal.SIGINT, signal.SIGCHLD}, Order.INTERRUPT),
        ({signal.SIGINT, signal.SIGUSR1}, Order.REPLACE),
        ({signal.SIGINT, signal.SIGUSR1, signal.SIGTERM}, Order.END),
    ],
)
def test_the_strongest_order_counts(arrived: set[int], order: Order | None) -> None:
    assert order_of(arrived) is order


def test_a_third_death_within_the_window_is_one_too_many() -> None:
    window = CrashWindow(limit=3, window_s=60)
    assert [window.died(at) for at in (0, 30, 59)] == [False, False, True]


def test_old_deaths_are_forgotten() -> None:
    window = CrashWindow(limit=3, window_s=60)
    assert [window.died(at) for at in (0, 30, 61, 89)] == [False, False, False, True]
    window.forget()
    assert not window.died(90)


def test_a_lease_expires_after_its_limit_without_a_touch() -> None:
    lease = LeaseWatch(limit_s=10, tick=2.5)
    assert [lease.expired(7, at) for at in (0, 2.5, 5, 7.5, 9.9, 10)] == [False] * 5 + [True]


def test_a_touch_begins_the_lease_anew_even_with_an_older_stamp() -> None:
    lease = LeaseWatch(limit_s=10, tick=2.5)
    assert not any(lease.expired(7, at) for at in (0, 4, 8))
    assert not lease.expired(3, 9.9)
    assert not any(lease.expired(3, at) for at in (12, 15, 19))


def test_a_gap_between_two_looks_counts_for_two_ticks_at_most() -> None:
    lease = LeaseWatch(limit_s=10, tick=2.5)
    assert not lease.expired(7, 0)
    assert not lease.expired(7, 3600)
    assert lease.expired(7, 7200)


def test_a_missing_lease_file_is_an_untouched_one() -> None:
    lease = LeaseWatch(limit_s=1, tick=0.25)
    assert not lease.expired(None, 0)
    assert not lease.expired(None, 0.5)
    assert lease.expired(None, 1.0)


def test_no_limit_is_no_lease() -> None:
    lease = LeaseWatch(limit_s=0, tick=5)
    assert not any(lease.expired(None, at * 5.0) for at in range(1000))


@pytest.mark.parametrize(
    ("limit_s", "tick"),
    [(0, LONGEST_TICK_S), (600, LONGEST_TICK_S), (2, 0.5), (0.01, SHORTEST_TICK_S)],
)
def test_the_lease_sets_the_tick(limit_s: float, tick: float) -> None:
    assert tick_s(limit_s) == tick


def test_a_rise_of_the_counter_explains_a_kill_for_a_while() -> None:
    ooms = OomWatch(4)
    assert not ooms.explains(KILLED, 0)
    ooms.observe(5, 100)
    ooms.observe(5, 105)
    assert ooms.explains(KILLED, 100 + OOM_MEMORY_S)
    assert not ooms.explains(KILLED, 101 + OOM_MEMORY_S)
    assert not ooms.explains(Exit(signal.SIGSEGV, None), 101)
    assert not ooms.explains(Exit(None, 0), 101)


def test_a_rise_under_an_earlier_kernel_explains_nothing() -> None:
    ooms = OomWatch(0)
    ooms.observe(1, 10)
    ooms.forget()
    assert not ooms.explains(KILLED, 11)


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        ({}, 0),
        ({"memory.events": "low 0\noom 2\noom_kill 3\noom_group_kill 0\n"}, 3),
        ({"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"}, 7),
        ({"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 0),
    ],
)
def test_the_counter_is_read_from_either_cgroup_version(texts: dict[str, str], count: int) -> None:
    assert oom_kills(texts) == count
