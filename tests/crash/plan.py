"""What a run of the crash suite does, all of it decided by the seed: the errands of its clients, and the blows.

A blow falls when so many jobs have been accepted, not at a time, so that a seed means the same on any machine.
"""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from broker.job import Priority
from tests.documents import character_error_rate, page_png, scan_text
from worker.engines.simulator import word

TOKENS = 20
CLIENTS = ("ada", "ben", "cleo", "dan")
_PAGES = 7
# The share of errors among the characters of a clean page that still counts as read.
_MISREAD = 0.05


class Conduct(StrEnum):
    """What the client does about its job."""

    AWAIT = "submits, then waits for it by long-polls"
    SUBMIT_AND_AWAIT = "submits and waits in one request"
    CANCEL = "submits and cancels"
    LEAVE = "submits and never asks again"


class Kind(StrEnum):
    KILL = "kill -9"
    STOP = "SIGSTOP"
    TERM = "SIGTERM"


class Target(StrEnum):
    """``GATEWAY`` is a process that serves, ``SUPERVISOR`` the one that starts it again."""

    WORKER = "worker"
    GATEWAY = "gateway"
    SUPERVISOR = "supervisor"
    MONGOD = "mongod"


@dataclass(frozen=True, slots=True)
class Blow:
    """Falls when ``at`` jobs were accepted. ``which``: a number to choose by among the processes of that kind.

    ``hold``: seconds between SIGSTOP and SIGCONT.
    """

    at: int
    kind: Kind
    target: Target
    which: int
    hold: float


@dataclass(frozen=True, slots=True)
class Errand:
    """One job and what its client does about it. ``pause``: seconds from the answer to the cancel.

    ``keyed``: sent with an Idempotency-Key. ``fault``: what the simulator is asked to commit.
    """

    number: int
    task: str
    text: str
    conduct: Conduct
    pause: float
    keyed: bool
    priority: Priority
    client: str
    tokens: int
    fault: Mapping[str, Any] | None

    @property
    def key(self) -> str:
        return f"errand-{self.number}"

    @property
    def rejected(self) -> bool:
        """The simulator refuses it for good."""
        return self.fault is not None and self.fault["fault"] == "reject"

    def answered_by(self, result: Mapping[str, Any]) -> bool:
        """Whether this is the right result: to the letter, but for the few that a recogniser may misread."""
        if self.task == "ocr":
            return len(result["pages"]) == 1 and character_error_rate(result["text"], self.text) < _MISREAD
        return dict(result) == self._expected()

    def _expected(self) -> dict[str, Any]:
        seed, prompt_tokens = zlib.crc32(self.text.encode()), len(self.text.split())
        return {
            "message": {
                "role": "assistant",
                "content": " ".join(["[simulator]", *(word(seed, index) for index in range(self.tokens))]),
            },
            "finish_reason": "length",
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": self.tokens,
                "total_tokens": prompt_tokens + self.tokens,
            },
        }


_CONDUCTS = {Conduct.AWAIT: 40, Conduct.SUBMIT_AND_AWAIT: 20, Conduct.CANCEL: 15, Conduct.LEAVE: 25}
# In thousandths. A crash takes the jobs beside it along, and a hang lasts until the model's timeout.
_FAULTS = {None: 929, "error": 30, "garbage": 12, "slow": 15, "reject": 8, "hang": 4, "crash": 2}
_DECK = [(kind, target) for kind in Kind for target in (Target.WORKER, Target.GATEWAY, Target.MONGOD)]
# Nothing waits for a supervisor, so stopping one would prove nothing.
_DECK += [(Kind.KILL, Target.SUPERVISOR), (Kind.TERM, Target.SUPERVISOR), (Kind.KILL, Target.WORKER)]


def errands(seed: int, jobs: int) -> list[Errand]:
    """``jobs`` errands, numbered from 0; one in forty, and two at least, is a document of one page."""
    rng = random.Random(f"errands {seed}")
    documents = set(rng.sample(range(jobs), min(jobs, max(2, jobs // 40))))
    return [_errand(rng, number, seed, document=number in documents) for number in range(jobs)]


def _errand(rng: random.Random, number: int, seed: int, *, document: bool) -> Errand:
    (conduct,) = rng.choices(list(_CONDUCTS), list(_CONDUCTS.values()))
    (fault,) = rng.choices(list(_FAULTS), list(_FAULTS.values()))
    (priority,) = rng.choices(list(Priority), [1, 8, 1])
    tokens = rng.randint(5, TOKENS)
    committed = {"fault": fault, "after": rng.randrange(tokens), "attempts": rng.choice((1, 1, 2))}
    return Errand(
        number=number,
        task="ocr" if document else "chat",
        text=scan_text(1 + number % _PAGES) if document else f"Errand {number} of the run with seed {seed}",
        conduct=conduct,
        pause=rng.choice((0.0, 0.0, 0.1, 0.5)),
        keyed=rng.random() < 0.8,
        priority=priority,
        client=rng.choice(CLIENTS),
        tokens=tokens,
        fault=None if document or fault is None else committed,
    )


@cache
def document(text: str) -> bytes:
    return page_png(text)


def blows(seed: int, jobs: int, kills: int, lease: float) -> list[Blow]:
    """``kills`` blows spread over the first 95 % of the jobs. Each pair of kind and target comes about equally often.

    A SIGSTOP holds for 1.3 to 2.5 leases.
    """
    rng = random.Random(f"blows {seed}")
    deck: list[tuple[Kind, Target]] = []
    while len(deck) < kills:
        deck += rng.sample(_DECK, len(_DECK))
    stride = 0.95 * jobs / max(1, kills)
    return [
        Blow(
            at=int((number + rng.random()) * stride),
            kind=kind,
            target=target,
            which=rng.randrange(1000),
            hold=rng.uniform(1.3, 2.5) * lease,
        )
        for number, (kind, target) in enumerate(deck[:kills])
    ]
