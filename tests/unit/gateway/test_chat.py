"""What a conversation does with Ctrl-C, apart from its answers."""

import asyncio
import os
import signal
from typing import Any

import pytest

from gateway.commands import chat


class Silent:
    """A gateway that never tells its models; meanwhile somebody presses Ctrl-C."""

    async def models(self) -> list[Any]:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        return []


def test_ctrl_c_in_a_command_leaves_also_after_an_answer_that_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ROUNDHOUSE_TOKEN", "t")
    lines = iter(["/model", None])
    monkeypatch.setattr(chat, "_line", lambda: next(lines))
    with asyncio.Runner() as runner:
        conversation = chat.Conversation("m", {})
        monkeypatch.setattr(conversation, "api", Silent())
        conversation.stopped = True
        with pytest.raises(KeyboardInterrupt):
            chat._talk(conversation, runner)
