"""What a vision model is asked about a page, in the words that it knows, and how a further try differs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ocr.grammar import Refs


class Instruction(StrEnum):
    DOCUMENT = "document"
    """Markdown with tables and the places of its parts."""
    TEXT = "text"
    OCR = "ocr"
    """Each line of text with its place."""
    FIGURE = "figure"
    """A diagram or chart as a table."""
    DESCRIBE = "describe"
    LOCATE = "locate"
    """The places of a term."""


class Dialect(StrEnum):
    DEEPSEEK = "deepseek"
    """DeepSeek-OCR and DeepSeek-OCR-2, which were trained on a few prompts."""
    PLAIN = "plain"
    """Any vision model that takes an instruction in words."""


_TERM = "{term}"
# Those of DeepSeek-OCR stand in its README, word by word.
PROMPTS: Mapping[Dialect, Mapping[Instruction, str]] = {
    Dialect.DEEPSEEK: {
        Instruction.DOCUMENT: "<|grounding|>Convert the document to markdown.",
        Instruction.TEXT: "Free OCR.",
        Instruction.OCR: "<|grounding|>OCR this image.",
        Instruction.FIGURE: "Parse the figure.",
        Instruction.DESCRIBE: "Describe this image in detail.",
        Instruction.LOCATE: f"Locate <|ref|>{_TERM}<|/ref|> in the image.",
    },
    Dialect.PLAIN: {
        Instruction.DOCUMENT: "Convert this page to markdown, with its tables. Answer with the markdown only.",
        Instruction.TEXT: "Transcribe all text of this page as it stands. Answer with the text only.",
        Instruction.OCR: "Transcribe this image line by line as it stands. Answer with the text only.",
        Instruction.FIGURE: "Convert the figure in this image to a markdown table. Answer with the table only.",
        Instruction.DESCRIBE: "Describe this image in detail.",
        Instruction.LOCATE: f'Where in this image is "{_TERM}"? Answer with the lines that contain it.',
    },
}
# What else gives a text of the page where one prompt leads into a loop.
_INSTEAD = {
    Instruction.DOCUMENT: Instruction.TEXT,
    Instruction.OCR: Instruction.TEXT,
    Instruction.TEXT: Instruction.OCR,
}
# How much more is left to chance at a second try with the same prompt.
_WARMER = 0.3
_WARMEST = 1.0

_SPECIAL = re.compile("<(?=[|\uff5c]|image>)", re.IGNORECASE)
_ALL_BUT_GROUNDING = re.compile("<(?!\\|grounding\\|>|\\|/?ref\\|>)(?=[|\uff5c]|image>)", re.IGNORECASE)
_IMAGE = re.compile(r"<image>[ \t]*\n?", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """Of one try. `refs`: what the answer's tags hold; None: it is plain markdown."""

    prompt: str
    temperature: float
    refs: Refs | None


@dataclass(frozen=True)
class Wish:
    """What the client wants to know. Its own `prompt` goes before the instruction; `temperature`: of the first try."""

    instruction: Instruction = Instruction.DOCUMENT
    term: str = ""
    prompt: str | None = None
    temperature: float = 0.0


def variation(attempt: int, wish: Wish, dialect: Dialect) -> Question:
    """The try ``attempt`` (from 1): the odd ones at the client's temperature, the even ones at a higher one. After two
    tries another prompt follows where one has the same answer, after all of them the temperature rises further."""
    prompts = _prompts(wish, dialect)
    turn, warmer = divmod(attempt - 1, 2)
    prompt, refs = prompts[turn % len(prompts)]
    temperature = wish.temperature + _WARMER * (warmer + turn // len(prompts))
    return Question(prompt, max(wish.temperature, min(_WARMEST, round(temperature, 3))), refs)


def _prompts(wish: Wish, dialect: Dialect) -> Sequence[tuple[str, Refs | None]]:
    grounded = dialect is Dialect.DEEPSEEK
    if wish.prompt is not None and wish.prompt.strip():
        return [(own_prompt(wish.prompt, dialect), Refs.KINDS if grounded else None)]
    instructions = [wish.instruction]
    if wish.instruction in _INSTEAD:
        instructions.append(_INSTEAD[wish.instruction])
    return [(_prompt(instruction, wish.term, dialect), _refs(instruction, dialect)) for instruction in instructions]


def _prompt(instruction: Instruction, term: str, dialect: Dialect) -> str:
    return PROMPTS[dialect][instruction].replace(_TERM, as_text(term))


def _refs(instruction: Instruction, dialect: Dialect) -> Refs | None:
    if dialect is Dialect.PLAIN:
        return None
    return Refs.TEXTS if instruction in (Instruction.OCR, Instruction.LOCATE) else Refs.KINDS


def as_text(words: str) -> str:
    """What a client means as text: a model's special token in it is parted, as it would end the question or stand for
    another picture. No page shows one but to readers, who read it so as well."""
    return _SPECIAL.sub("< ", " ".join(words.split()))


def own_prompt(prompt: str, dialect: Dialect) -> str:
    """A client's own prompt. It may ask for places as DeepSeek-OCR's own do; the picture is put before it anyway."""
    prompt = _IMAGE.sub("", prompt).strip()
    return _ALL_BUT_GROUNDING.sub("< ", prompt) if dialect is Dialect.DEEPSEEK else _SPECIAL.sub("< ", prompt)
