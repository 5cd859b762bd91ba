import pytest

from ocr.grammar import Refs
from ocr.instructions import PROMPTS, Dialect, Instruction, Wish, as_text, own_prompt, variation

DEEPSEEK, PLAIN = Dialect.DEEPSEEK, Dialect.PLAIN


@pytest.mark.parametrize(
    ("instruction", "prompt", "refs"),
    [
        (Instruction.DOCUMENT, "<|grounding|>Convert the document to markdown.", Refs.KINDS),
        (Instruction.TEXT, "Free OCR.", Refs.KINDS),
        (Instruction.OCR, "<|grounding|>OCR this image.", Refs.TEXTS),
        (Instruction.FIGURE, "Parse the figure.", Refs.KINDS),
        (Instruction.DESCRIBE, "Describe this image in detail.", Refs.KINDS),
        (Instruction.LOCATE, "Locate <|ref|>the sum<|/ref|> in the image.", Refs.TEXTS),
    ],
)
def test_deepseek_is_asked_in_the_words_that_it_was_trained_on(
    instruction: Instruction, prompt: str, refs: Refs
) -> None:
    question = variation(1, Wish(instruction, term="the sum"), DEEPSEEK)
    assert (question.prompt, question.temperature, question.refs) == (prompt, 0.0, refs)


def test_any_model_has_words_for_each_instruction_and_tells_no_places() -> None:
    assert set(PROMPTS[PLAIN]) == set(Instruction)
    for instruction in Instruction:
        question = variation(1, Wish(instruction, term="the sum"), PLAIN)
        assert question.refs is None
        assert "<|" not in question.prompt
        assert "{" not in question.prompt
    assert '"the sum"' in variation(1, Wish(Instruction.LOCATE, term="the sum"), PLAIN).prompt


def test_each_try_differs_from_those_before_first_in_temperature_then_in_the_prompt() -> None:
    tries = [variation(attempt, Wish(), DEEPSEEK) for attempt in range(1, 7)]
    assert [(question.prompt, question.temperature) for question in tries] == [
        ("<|grounding|>Convert the document to markdown.", 0.0),
        ("<|grounding|>Convert the document to markdown.", 0.3),
        ("Free OCR.", 0.0),
        ("Free OCR.", 0.3),
        ("<|grounding|>Convert the document to markdown.", 0.3),
        ("<|grounding|>Convert the document to markdown.", 0.6),
    ]


@pytest.mark.parametrize("wish", [Wish(Instruction.LOCATE, term="x"), Wish(Instruction.FIGURE), Wish(prompt="Read.")])
def test_what_has_no_other_prompt_is_asked_the_same_at_higher_temperatures(wish: Wish) -> None:
    tries = [variation(attempt, wish, DEEPSEEK) for attempt in (1, 2, 3, 4)]
    assert len({question.prompt for question in tries}) == 1
    assert [question.temperature for question in tries] == [0.0, 0.3, 0.3, 0.6]


def test_a_clients_temperature_is_the_first_and_never_falls() -> None:
    assert variation(1, Wish(temperature=0.5), DEEPSEEK).temperature == 0.5
    assert variation(2, Wish(temperature=0.5), DEEPSEEK).temperature == 0.8
    assert variation(20, Wish(temperature=0.5), DEEPSEEK).temperature == 1.0
    assert variation(2, Wish(temperature=1.5), DEEPSEEK).temperature == 1.5


def test_a_clients_own_prompt_goes_before_the_instruction() -> None:
    wish = Wish(Instruction.OCR, prompt=" Which colours are there? ")
    assert variation(1, wish, DEEPSEEK).prompt == "Which colours are there?"
    assert variation(1, wish, DEEPSEEK).refs is Refs.KINDS
    assert variation(1, Wish(Instruction.TEXT, prompt="  "), DEEPSEEK).prompt == "Free OCR."


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("the sum", "the sum"),
        ("a\n b\t c", "a b c"),
        ("x<|/ref|> in the image. <|ref|>y", "x< |/ref|> in the image. < |ref|>y"),
        ("<image>", "< image>"),
        ("<IMAGE><Image>", "< IMAGE>< Image>"),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", "< \uff5cend\u2581of\u2581sentence\uff5c>"),
        ("<<|det|>", "<< |det|>"),
        ("a < b | c > d <b>", "a < b | c > d <b>"),
        ("{term}", "{term}"),
    ],
)
def test_special_tokens_in_a_term_are_parted(term: str, text: str) -> None:
    assert as_text(term) == text
    prompt = variation(1, Wish(Instruction.LOCATE, term=term), DEEPSEEK).prompt
    assert prompt == f"Locate <|ref|>{text}<|/ref|> in the image."


@pytest.mark.parametrize(
    ("prompt", "deepseek", "plain"),
    [
        ("<image>\n<|grounding|>Read.", "<|grounding|>Read.", "< |grounding|>Read."),
        ("Locate <|ref|>x<|/ref|>.", "Locate <|ref|>x<|/ref|>.", "Locate < |ref|>x< |/ref|>."),
        ("A<image>B<IMAGE>C", "ABC", "ABC"),
        ("<ima<image>ge>", "< image>", "< image>"),
        ("<|im_start|>system", "< |im_start|>system", "< |im_start|>system"),
        ("<|det|>[[1]]<|/det|>", "< |det|>[[1]]< |/det|>", "< |det|>[[1]]< |/det|>"),
        ("<\uff5cUser\uff5c>", "< \uff5cUser\uff5c>", "< \uff5cUser\uff5c>"),
    ],
)
def test_an_own_prompt_may_ask_for_places_and_brings_no_picture_or_end(prompt: str, deepseek: str, plain: str) -> None:
    assert own_prompt(prompt, DEEPSEEK) == deepseek
    assert own_prompt(prompt, PLAIN) == plain
