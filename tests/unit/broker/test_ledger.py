"""Whose memory is whose: by physical device, whoever of the workers uses it."""

from broker.ledger import Ledger
from broker.snapshot import FAILED, READY, SLEEPING, STOPPING, Device, Model, Resident, Snapshot

BOTH = frozenset({"w1", "w2"})
ONE = Device("w1", "g1", 10), Device("w2", "g1", 10)


def model(name: str, need: int | None, *residents: Resident, gpus: int = 1, host_need: int = 0) -> Model:
    return Model(name, need, BOTH, gpus=gpus, host_need=host_need, residents=residents)


def ledger(*models: Model, devices: tuple[Device, ...] = ONE, host: int = 0) -> Ledger:
    return Ledger(Snapshot(models, devices, host_memory={"w1": host}))


def test_what_an_engine_of_one_worker_holds_is_missing_to_the_other() -> None:
    book = ledger(model("a", 7, Resident("w1", ("g1",), READY, 7)))
    new = model("new", 4)
    assert [(spot.worker, book.free(spot), book.missing(spot, "g1")) for spot in book.spots(new)] == [
        ("w1", False, 1),
        ("w2", False, 1),
    ]


def test_what_is_promised_on_one_worker_is_promised_on_the_other() -> None:
    book = ledger()
    here, there = book.spots(model("a", 6))
    book.reserve(here)
    assert not book.free(there)


def test_memory_of_those_who_go_can_be_promised_but_not_used() -> None:
    book = ledger(model("a", 7, Resident("w1", ("g1",), STOPPING, 7)))
    [spot, _] = book.spots(model("new", 10))
    assert (book.free(spot), book.free_soon(spot)) == (False, True)
    book.reserve(spot)
    assert not book.free_soon(spot)


def test_an_engine_that_is_told_to_go_twice_frees_its_memory_once() -> None:
    going = Resident("w1", ("g1",), STOPPING, 7)
    book = ledger(model("a", 7, going))
    book.frees(going)
    [spot, _] = book.spots(model("new", 10))
    assert book.room(spot) == 10


def test_a_sleeping_engine_needs_only_what_it_does_not_hold() -> None:
    asleep = model("a", 8, Resident("w2", ("g1",), SLEEPING, 3))
    wake, elsewhere = ledger(asleep).spots(asleep)
    assert (wake.worker, wake.need, wake.wakes) == ("w2", (5,), True)
    assert (elsewhere.worker, elsewhere.need, elsewhere.wakes) == ("w1", (8,), False)


def test_a_model_goes_nowhere_where_its_engine_failed() -> None:
    book = ledger()
    assert [spot.worker for spot in book.spots(model("a", 5, Resident("w1", (), FAILED, 0)))] == ["w2"]


def test_a_model_over_several_devices_gets_the_roomiest_in_their_own_order() -> None:
    devices = Device("w1", "g3", 10), Device("w1", "g1", 10), Device("w1", "g2", 10)
    book = ledger(model("a", 5, Resident("w1", ("g1",), READY, 5)), devices=devices)
    [spot] = book.spots(model("wide", 4, gpus=2))
    assert (spot.devices, spot.need) == (("g3", "g2"), (4, 4))


def test_a_need_that_is_not_known_is_all_of_a_device() -> None:
    devices = Device("w1", "g1", 10), Device("w2", "g2", 24)
    assert [spot.need for spot in ledger(devices=devices).spots(model("a", None))] == [(10,), (24,)]


def test_main_memory_is_taken_by_those_who_sleep_and_given_once() -> None:
    book = ledger(model("a", 5, Resident("w1", ("g1",), SLEEPING, 1), host_need=6), host=10)
    second = model("b", 5, host_need=4)
    assert book.take_host(second, "w1")
    assert not book.take_host(second, "w1")
    assert not book.take_host(second, "w2")
