from tests.unit.config.conftest import Load, Refusal


def test_no_answer_is_used_again_unless_it_is_asked_for(load: Load) -> None:
    settings = load("models:\n  m: {task: chat, engine: simulator}\n")
    assert settings.models["m"].cache is None
    assert (settings.cache.ttl, settings.cache.max_entries) == (3600.0, 10_000)


def test_a_model_may_have_times_of_its_own(load: Load) -> None:
    settings = load(
        "cache: {ttl: 5m, max_entries: 7}\n"
        "models:\n"
        "  a: {task: chat, engine: simulator, cache: {}}\n"
        "  b: {task: embedding, engine: simulator, cache: {ttl: 2h, any_temperature: true}}\n"
    )
    a, b = settings.models["a"].cache, settings.models["b"].cache
    assert a is not None
    assert b is not None
    assert (a.ttl, a.any_temperature, b.ttl, b.any_temperature) == (None, False, 7200.0, True)
    assert settings.cache.ttl == 300.0


def test_documents_have_no_use_for_it(refusal: Refusal) -> None:
    (problem,) = refusal("models:\n  m: {task: ocr, engine: tesseract, cache: {}}\n")
    assert problem.endswith("models.m.cache: what was read before is used again without it")
