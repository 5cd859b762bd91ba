"""A world of pages that come along in any order, and clients that are cut off anywhere."""

from hypothesis import given
from hypothesis import strategies as st

from broker.job import Status
from broker.page_feed import Standing
from gateway.event_log import Known, events

ENDS = ["completed", "blank", "failed"]


def standing(
    status: Status = Status.PROCESSING, pages: dict[int, str] | None = None, total: int | None = 4
) -> Standing:
    progress = None if total is None else {"done": 0, "total": total, "unit": "pages"}
    return Standing(status, 1, progress, None, pages or {})


def told(known: Known, now: Standing) -> list[tuple[str, object]]:
    return [(event.name, event.data.model_dump()) for event in events(known, now)]


def test_who_knows_nothing_is_told_all_in_order() -> None:
    now = standing(pages={2: "processing", 1: "blank"})
    assert told(Known(), now) == [
        ("state", {"status": "processing", "attempts": 1}),
        ("page", {"number": 1, "status": "blank"}),
        ("page", {"number": 2, "status": "processing"}),
        ("progress", {"done": 1, "total": 4, "unit": "pages"}),
    ]


def test_the_end_is_told_after_the_last_page() -> None:
    names = [name for name, _ in told(Known(), standing(Status.COMPLETED, {1: "completed"}))]
    assert names == ["page", "progress", "state", "end"]


def test_who_knows_all_is_told_nothing() -> None:
    now = standing(Status.FAILED, {1: "failed", 3: "processing"})
    last = list(events(Known(), now))[-1]
    assert last.known.over
    assert told(Known.read(str(last.known)), now) == []


def test_a_job_that_waits_again_tells_so_with_its_attempt() -> None:
    known = list(events(Known(), standing()))[-1].known
    again = Standing(Status.QUEUED, 1, {"done": 0, "total": 4, "unit": "pages"}, None, {})
    assert told(known, again) == [("state", {"status": "queued", "attempts": 1})]


def test_an_id_that_is_none_means_that_nothing_is_known() -> None:
    for text in (None, "", "17", "processing.1;1/2;a;", "processing.1;1/2;3-1;", "x" * 100_000, "é.1;0/?;;"):
        assert Known.read(text) == Known()


def test_an_id_takes_little_room_however_many_pages_there_are() -> None:
    pages = dict.fromkeys(range(1, 5001), "completed") | {5001: "processing", 5003: "processing"}
    last = list(events(Known(), standing(pages=pages, total=6000)))[-1]
    assert str(last.known) == "processing.1;5000/6000;1-5000;5001,5003"


def test_a_forged_id_does_no_harm() -> None:
    most, some = (",".join(f"{first}-{first + 998}" for first in range(1, end, 1000)) for end in (999_999, 200_000))
    for pages in ("1-999999;1-999999", f";{most}", f";{some}", f"{most};"):
        assert Known.read(f"processing.1;0/?;{pages}") == Known()


STEPS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["processing", *ENDS])), max_size=40)


@given(STEPS, st.lists(st.integers(0, 3), max_size=60))
def test_however_often_a_client_is_cut_off_it_sees_each_end_once_and_no_page_is_missed(
    steps: list[tuple[int, str]], cuts: list[int]
) -> None:
    pages: dict[int, str] = {}
    seen: list[tuple[int, str]] = []
    known, left = Known(), list(cuts)
    for number, state in steps:
        if pages.get(number) not in ENDS:
            pages[number] = state
        news = list(events(known, standing(pages=pages)))
        # Cut off after any of them: what was not received is not known.
        received = news[: left.pop()] if left else news
        seen += [(event.data.number, event.data.status) for event in received if event.name == "page"]  # type: ignore[attr-defined]
        known = Known.read(str(received[-1].known)) if received else known
    rest = list(events(known, standing(Status.COMPLETED, pages)))
    seen += [(event.data.number, event.data.status) for event in rest if event.name == "page"]  # type: ignore[attr-defined]
    ended = [(number, state) for number, state in seen if state in ENDS]
    assert sorted(ended) == sorted((number, state) for number, state in pages.items() if state in ENDS)
    assert {number for number, _ in seen} == pages.keys()
    assert [event.name for event in rest][-1] == "end"
