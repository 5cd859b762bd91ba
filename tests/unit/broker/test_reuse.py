"""What a result depends on, and what it does not."""

from broker.reuse import HOW_IT_RUNS
from config import OpenaiSettings
from config.models import ModelEntry
from config.shape import members

HERE = {"task": "chat", "engine": "openai", "base_url": "http://h/v1"}


def said_of(**entry: object) -> dict[str, object]:
    settings = OpenaiSettings.model_validate({**HERE, **entry})
    return settings.model_dump(mode="json", exclude=set(HOW_IT_RUNS))


def test_how_a_model_is_asked_does_not_make_its_answers_others() -> None:
    plain = said_of()
    assert plain == said_of(
        balance="weight",
        breaker={"failures": 2},
        connect_timeout=1,
        read_timeout=2,
        allowed_models=["*"],
        fallbacks=["other"],
    )
    assert plain != said_of(model="theirs")
    assert plain != said_of(base_url="http://other/v1")


def test_each_key_is_there() -> None:
    known = {name for entry in members(ModelEntry) for name in entry.model_fields}
    assert known >= HOW_IT_RUNS
