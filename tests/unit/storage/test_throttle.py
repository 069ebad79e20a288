"""Limits per second: rates, bursts, order and changes while requests wait."""

import trio
import trio.testing

from storage.throttle import Limits, Throttle


async def pass_all(throttle: Throttle, count: int, length: int = 4096) -> float:
    """Send requests from many tasks; return how many seconds that took."""
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(throttle.take, length)
    return trio.current_time() - started


async def test_requests_pass_at_their_rate_after_the_burst(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(Limits(requests_per_s=100, burst_s=1))
    await trio.sleep(10)  # idle time counts for one second only
    assert 3.9 <= await pass_all(throttle, 500) <= 4.1


async def test_bytes_pass_at_their_rate(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(Limits(bytes_per_s=1 << 20, burst_s=0.5))
    await trio.sleep(10)
    assert 9.4 <= await pass_all(throttle, 160, 65536) <= 9.6


async def test_a_request_larger_than_the_burst_gets_through(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(Limits(bytes_per_s=1000, burst_s=0.1))
    assert 19 <= await pass_all(throttle, 3, 10_000) <= 20.1


async def test_the_stricter_limit_applies(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(Limits(requests_per_s=10, bytes_per_s=1 << 30, burst_s=0))
    assert 4.8 <= await pass_all(throttle, 50) <= 5.1


async def test_no_request_waits_without_limits(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(Limits())
    assert Limits().unlimited
    assert await pass_all(throttle, 1000, 1 << 30) == 0


async def test_a_try_that_fails_takes_no_share(autojump_clock: trio.testing.MockClock) -> None:
    throttle = Throttle(Limits(requests_per_s=10, burst_s=0))
    assert throttle.try_take(1)
    assert not any(throttle.try_take(1) for _ in range(100))
    await trio.sleep(0.11)
    assert throttle.try_take(1)


async def test_waiting_requests_pass_in_order_and_new_limits_apply_to_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    throttle = Throttle(Limits(requests_per_s=1, burst_s=0))
    order: list[int] = []

    async def one(number: int) -> None:
        await throttle.take(1)
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(one, number)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(2.5)
        assert order == [0, 1, 2]
        throttle.change(Limits(requests_per_s=1000, burst_s=0))
        with trio.fail_after(0.1):
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.05)
        assert sorted(order) == [0, 1, 2, 3, 4]
