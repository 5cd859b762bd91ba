"""A small part of ``python -m tests.crash.documents``, which says what is looked at."""

from pathlib import Path

from tests.crash.documents import Blow, Outcome, Scene, differences, scan

PAGES = 8


def test_a_document_goes_on_at_the_page_where_its_worker_or_mongod_was_killed(tmp_path: Path) -> None:
    document = scan(PAGES)
    with Scene(tmp_path) as scene:
        plain = scene.read(document, None)
        for blow in (Blow("worker", 5), Blow("mongod", 3), Blow("tesseract", 2)):
            struck = scene.read(document, blow)
            assert differences(plain, struck) == [], blow
            assert len(struck.pages) == PAGES


def test_what_differs_is_told() -> None:
    page = {"number": 1, "text": "one"}
    plain = Outcome([page, page | {"number": 2}], "one", begun=2, errors=[], seconds=1.0)
    other = Outcome([page | {"text": "two"}, page | {"number": 2}], "two", begun=200, errors=[], seconds=1.0)
    assert differences(plain, plain) == []
    assert len(differences(plain, other)) == 3
    assert len(differences(plain, Outcome([page], "one", begun=1, errors=[], seconds=1.0))) == 1
