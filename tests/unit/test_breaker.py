"""The circuit breaker, without a clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagebroker.container.breaker import CircuitBreaker


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(threshold=5, first_pause_s=5, longest_pause_s=30)
    for _ in range(5):
        breaker.failed(now)
    return breaker


def test_it_is_closed_at_first() -> None:
    breaker = CircuitBreaker()
    assert breaker.allows(0)
    assert not breaker.is_open
    assert breaker.retry_after_s(0) == 0


def test_it_opens_with_the_fifth_failure_in_a_row_and_says_so_once() -> None:
    breaker = CircuitBreaker(threshold=5)
    assert [breaker.failed(0) for _ in range(7)] == [False] * 4 + [True, False, False]
    assert not breaker.allows(1)


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = CircuitBreaker(threshold=5)
    for _ in range(20):
        for _ in range(4):
            breaker.failed(0)
        breaker.succeeded()
    assert breaker.allows(0)


def test_after_the_pause_one_caller_may_try() -> None:
    breaker = opened()
    assert breaker.retry_after_s(2) == 3
    assert not breaker.allows(4.9)
    assert breaker.allows(5)
    assert not breaker.allows(5)
    assert not breaker.allows(9.9)


def test_a_good_trial_closes_it() -> None:
    breaker = opened()
    breaker.allows(5)
    breaker.succeeded()
    assert breaker.allows(5)
    assert breaker.failures == 0


def test_bad_trials_double_the_pause_up_to_its_bound() -> None:
    breaker = opened()
    now, pauses = 0.0, []
    for _ in range(5):
        pauses.append(breaker.retry_after_s(now))
        now += pauses[-1]
        assert breaker.allows(now)
        breaker.failed(now)
    assert pauses == [5, 10, 20, 30, 30]


def test_a_trial_that_never_tells_is_replaced() -> None:
    breaker = opened()
    assert breaker.allows(5)
    assert breaker.allows(10)


def test_failures_of_calls_made_regardless_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    for _ in range(10):
        breaker.failed(1)
    assert breaker.retry_after_s(1) == 4


@given(st.lists(st.sampled_from(["fail", "succeed", "ask"]), max_size=200))
def test_it_is_never_shut_for_longer_than_its_longest_pause(steps: list[str]) -> None:
    breaker = CircuitBreaker(threshold=3, first_pause_s=1, longest_pause_s=8)
    for now, step in enumerate(steps):
        if step == "fail":
            breaker.failed(now)
        elif step == "succeed":
            breaker.succeeded()
            assert breaker.allows(now)
        else:
            breaker.allows(now)
        assert 0 <= breaker.retry_after_s(now) <= 8
