"""The fair order as pure code: by rank, by share, and without starvation."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.fairness import Clock, Lane, Waiting, effective_level, in_order

AGING = 120.0


def lane(
    subject: str, *jobs: tuple[str, int] | tuple[str, int, float], level: int = 1, more: bool = False
) -> Lane[str]:
    waiting = [Waiting(job[0], (job[1], 0), job[2] if len(job) == 3 else 0.0) for job in jobs]
    return Lane(subject, level, waiting, more)


def order(*lanes: Lane[str], clock: Clock | None = None, most: int = 100, **weights: float) -> str:
    return "".join(in_order(lanes, clock or Clock(), weights, AGING, most))


def test_levels_are_strict_and_within_one_the_oldest_of_a_client_comes_first() -> None:
    low, high = lane("ann", ("a", 1), ("b", 2), level=2), lane("ann", ("c", 3), ("d", 4), level=0)
    assert order(low, high) == "cdab"


def test_clients_take_turns_whatever_one_of_them_has_sent() -> None:
    many = lane("ann", *((letter, n) for n, letter in enumerate("abcdef")))
    few = lane("bob", ("x", 10), ("y", 11))
    assert order(many, few) == "axbycdef"


def test_a_client_of_weight_two_gets_two_turns_for_one() -> None:
    ann = lane("ann", *((letter, n) for n, letter in enumerate("abcdef")))
    bob = lane("bob", *((letter, n) for n, letter in enumerate("uvwxyz", 10)))
    assert order(ann, bob, most=9, ann=2.0) == "aubcvdewf"


@pytest.mark.parametrize(("waited", "level"), [(0, 2), (119.9, 2), (120, 1), (239, 1), (240, 0), (9999, 0), (-5, 2)])
def test_a_waiting_job_rises_one_level_for_each_time_of_aging(waited: float, level: int) -> None:
    assert effective_level(2, waited, AGING) == level


def test_a_low_job_that_has_waited_long_enough_is_not_held_up_by_high_ones() -> None:
    high = lane("ann", *((letter, n) for n, letter in enumerate("bcd", 5)), level=0)
    assert order(high, lane("bob", ("a", 1, 239.0), level=2)) == "bcda"
    assert order(high, lane("bob", ("a", 1, 240.0), level=2)) == "abcd"


def test_a_client_that_was_away_has_saved_up_nothing() -> None:
    clock = Clock()
    order(lane("ann", *((str(n), n) for n in range(9))), lane("bob", *((str(n), n) for n in range(9))), clock=clock)
    assert order(lane("bob", ("b", 1), ("c", 2)), lane("new", ("x", 3), ("y", 4)), clock=clock) in ("bxcy", "xbyc")


def test_the_order_ends_where_an_unseen_job_might_come_next() -> None:
    ann = lane("ann", ("a", 1), more=True)
    bob = lane("bob", ("x", 2), ("y", 3), ("z", 4), more=True)
    assert order(ann, bob) == "ax"


def test_a_lane_that_shows_all_it_has_stops_nobody() -> None:
    assert order(lane("ann", ("a", 1)), lane("bob", ("x", 2), ("y", 3))) == "axy"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 5)), max_size=8))
def test_every_job_is_chosen_once_and_a_lane_in_its_own_order(made: list[tuple[str, int, int]]) -> None:
    number = count()
    lanes = [
        Lane(subject, level, [Waiting(n, (n, 0), 0.0) for n in (next(number) for _ in range(size))])
        for subject, level, size in made
    ]
    chosen = in_order(lanes, Clock(), {}, AGING, 1000)
    assert sorted(chosen) == sorted(job.key for entry in lanes for job in entry.jobs)
    for entry in lanes:
        mine = [job.key for job in entry.jobs]
        assert [key for key in chosen if key in mine] == mine


@given(st.integers(1, 20), st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=3))
def test_looking_no_further_than_needed_gives_the_same_order(most: int, made: list[tuple[str, int]]) -> None:
    """What is chosen from the heads alone is how the order from all that wait begins."""
    number = count()
    whole = [
        Lane(f"{subject}{i}", 1, [Waiting(n, (n, 0), 0.0) for n in (next(number) for _ in range(size))])
        for i, (subject, size) in enumerate(made)
    ]
    heads = [Lane(entry.subject, entry.level, entry.jobs[:1], more=True) for entry in whole]
    begun = in_order(heads, Clock(), {}, AGING, most)
    assert begun
    assert in_order(whole, Clock(), {}, AGING, most)[: len(begun)] == begun


def waits(clients: dict[str, float], service: float, until: float) -> dict[str, list[float]]:
    """A model with one place on a virtual clock: each client sends a job every ``clients[name]`` seconds."""
    arrivals = sorted((n * every, name) for name, every in clients.items() for n in range(int(until / every)))
    waiting: dict[str, list[tuple[float, int]]] = {name: [] for name in clients}
    found: dict[str, list[float]] = {name: [] for name in clients}
    clock, now, sent = Clock(), 0.0, 0
    while sent < len(arrivals) or any(waiting.values()):
        if not any(waiting.values()):
            now = max(now, arrivals[sent][0])
        while sent < len(arrivals) and arrivals[sent][0] <= now:
            waiting[arrivals[sent][1]].append((arrivals[sent][0], sent))
            sent += 1
        lanes = [
            Lane(name, 1, [Waiting(name, (jobs[0][1], 0), now - jobs[0][0])], more=len(jobs) > 1)
            for name, jobs in waiting.items()
            if jobs
        ]
        (name,) = in_order(lanes, clock, {}, AGING, 1)
        found[name].append(now - waiting[name].pop(0)[0])
        now += service
        if now > until:
            break
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def test_light_clients_wait_as_if_the_heavy_one_were_a_client_like_them() -> None:
    """Ten clients, one of which sends 95 % of the work: p95 of each other within 1.5 times of that among equals."""
    light = {f"light {n}": 20.0 + n for n in range(9)}
    rate = sum(1 / every for every in light.values())
    heavy = {"heavy": 1 / (rate * 19)}
    equal = {"heavy": 24.0}
    service = 1.0  # with equals the place is idle half of the time; with the heavy one it never is
    crowded, alone = waits(light | heavy, service, 4000.0), waits(light | equal, service, 4000.0)
    for name in light:
        assert percentile(crowded[name], 0.95) <= 1.5 * max(percentile(alone[name], 0.95), service)


def test_a_low_job_is_claimed_within_the_bound_though_high_ones_never_end() -> None:
    """Two steps up, and one turn of each client that is there."""
    clock, now, service, submitted = Clock(), 0.0, 1.0, 0.0
    while True:
        high = [Lane(f"c{n}", 0, [Waiting(f"c{n}", (int(now) + n, 1), 0.0)], more=True) for n in range(5)]
        low = Lane("low", 2, [Waiting("low", (0, 0), now - submitted)])
        if in_order([*high, low], clock, {}, AGING, 1) == ["low"]:
            break
        now += service
    assert 2 * AGING <= now <= 2 * AGING + 6 * service
