"""What ``roundhouse chat`` does: a conversation with a model, on a terminal or, for one question, through pipes."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any

import click

from gateway.commands import progress, terminal
from gateway.commands.connection import PATIENCE, async_client
from roundhouse import AsyncClient, AsyncStream, End, Model, Piece, Reasoning, Restart, RoundhouseApiError, Text

HELP = """/help         this
/clear        forget the conversation
/model NAME   go on with another model; without a name: which there are
Ctrl-C        stop the answer; at the prompt: leave
Ctrl-D        leave"""
# Seconds between two looks at what keeps an answer waiting.
LOOK = 1.0
INTERRUPTED = 130
# Names that are listed where none is near.
MOST_NAMES = 10


class NoSuchModel(RoundhouseApiError):
    code = "model_not_found"


def run(model: str, options: Mapping[str, Any]) -> int:
    """The command's exit status. ``options``: those of ``AsyncClient.stream``."""
    with asyncio.Runner() as runner:
        conversation = Conversation(model, options)
        try:
            runner.run(conversation.begin())
            if sys.stdin.isatty():
                return _talk(conversation, runner)
            return _answer_once(conversation, runner)
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            runner.run(conversation.api.aclose())


def _answer_once(conversation: "Conversation", runner: asyncio.Runner) -> int:
    question = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if not question:
        raise click.UsageError("There is no question on standard input.")
    runner.run(conversation.ask(question))
    return 0


def _talk(conversation: "Conversation", runner: asyncio.Runner) -> int:
    # To edit a line, and to get back those before.
    with suppress(ImportError):
        import readline  # noqa: F401
    progress.say(f"{conversation.model}: /help tells what there is, Ctrl-D leaves.")
    while (line := _line()) is not None:
        if not line:
            continue
        try:
            runner.run(conversation.obey(line) if line.startswith("/") else conversation.ask(line))
        except RoundhouseApiError as error:
            progress.say(f"roundhouse: {error}")
        except KeyboardInterrupt:
            if not conversation.stopped:
                raise
            progress.say("(stopped)")
    return 0


def _line() -> str | None:
    """None at the end."""
    prompt = "> "
    if not sys.stdout.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        line = input(prompt)
    except EOFError:
        print(file=sys.stderr)
        return None
    # What was typed in another encoding than the terminal's cannot be sent as it is.
    return line.encode("utf-8", "replace").decode().strip()


class Conversation:
    """``stopped``: whether the last line was a question whose answer was stopped, and its job cancelled."""

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self.model = model
        self.api: AsyncClient = async_client(self._trouble)
        self.stopped = False
        self._options = options
        self._messages: list[Mapping[str, Any]] = []
        self._show: Callable[[str], None] | None = None
        self._told_of_trouble = False

    async def begin(self) -> None:
        """Raises RoundhouseApiError: ``model_not_found``, ``gateway_unreachable`` …"""
        self.api.patience = 0.0
        await self._use(self.model)
        self.api.patience = PATIENCE

    async def _use(self, name: str) -> None:
        model = chat_model(name, await self.api.models())
        self.model = name
        if model.state != "ready":
            progress.say(f"{name} is not ready ({model.state}); what is asked of it waits until it is.")

    async def obey(self, line: str) -> None:
        """A command of the conversation."""
        # Ctrl-C in it stops no answer, and so leaves.
        self.stopped = False
        command, _, argument = line.partition(" ")
        match command, argument.strip():
            case "/help", "":
                progress.say(HELP)
            case "/clear", "":
                self._messages.clear()
                progress.say("(forgotten)")
            case "/model", "":
                names = [model.name for model in await self.api.models() if model.task == "chat"]
                progress.say(f"{self.model}; there are: {', '.join(names)}")
            case "/model", name:
                await self._use(name)
            case _:
                progress.say(f"There is no {command} like that; /help tells what there is.")

    async def ask(self, question: str) -> None:
        """Writes the answer to standard output, as it comes where that is a terminal, else when it is whole."""
        self.stopped = False
        messages = [*self._messages, {"role": "user", "content": question}]
        answer = Writing(sys.stdout.isatty())
        try:
            async with self.api.stream(self.model, messages, restarts=True, **self._options) as stream:
                await self._follow(stream, answer)
        except asyncio.CancelledError:
            self.stopped = True
            raise
        finally:
            answer.finish()
            if answer.text and (answer.whole or self.stopped):
                self._messages = [*messages, {"role": "assistant", "content": answer.text}]

    async def _follow(self, stream: AsyncStream, answer: "Writing") -> None:
        piece = await self._first(stream)
        while piece is not None:
            self._told_of_trouble = False
            answer.write(piece)
            piece = await anext(stream, None)

    async def _first(self, stream: AsyncStream) -> Piece | None:
        with _waiting(f"{self.model}: asked") as self._show:
            watcher = asyncio.create_task(self._watch(stream))
            try:
                return await anext(stream, None)
            finally:
                watcher.cancel()
                await asyncio.wait({watcher})
                self._show = None

    async def _watch(self, stream: AsyncStream) -> None:
        """Shows why there is no answer yet."""
        with suppress(RoundhouseApiError):
            while self._show is not None:
                await asyncio.sleep(LOOK)
                states = {model.name: model.state for model in await self.api.models()}
                state = states.get(self.model, "ready")
                standing = terminal.job_state((await self.api.job(stream.job_id)).body) if stream.job_id else "asked"
                self._show(f"{self.model}: {standing}{'' if state == 'ready' else f' (the model: {state})'}")

    def _trouble(self, error: RoundhouseApiError, pause: float) -> None:
        line = f"{error}; trying again"
        if self._show is not None:
            self._show(line)
        elif not self._told_of_trouble and pause:
            self._told_of_trouble = True
            progress.say(f"\nroundhouse: {line}")


@contextmanager
def _waiting(text: str) -> Iterator[Callable[[str], None]]:
    """Shows that there is no answer yet, where anybody looks. What is yielded changes the text."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with progress.spinner(text) as show:
        yield show


def chat_model(name: str, models: list[Model]) -> Model:
    """The model of that name. Raises NoSuchModel, which tells names near it, or what else there is."""
    chats = [model.name for model in models if model.task == "chat"]
    for model in models:
        if model.name == name:
            if model.task != "chat":
                raise NoSuchModel(f"{name} does {model.task}, not chat; for that there are: {_named(chats)}.")
            return model
    near = get_close_matches(name, chats, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {_named(chats)}."
    raise NoSuchModel(f"There is no model {name!r}; {hint}")


def _named(names: list[str]) -> str:
    return ", ".join([*names[:MOST_NAMES], *(["…"] if len(names) > MOST_NAMES else [])]) or "none"


class Writing:
    """An answer on its way to standard output. ``live``: piece by piece."""

    def __init__(self, live: bool) -> None:
        self.text = ""
        self.whole = False
        self._live = live
        self._thinking = False

    def write(self, piece: Piece) -> None:
        match piece:
            case Text(text, 0):
                if self._thinking:
                    self._thinking = False
                    self._print("\n\n")
                self.text += text
                self._print(text)
            case Reasoning(text, 0):
                self._thinking = True
                self._print(text, dim=True)
            case Restart():
                self.text = ""
                self._print("\n(The worker was lost; the answer begins anew.)\n")
            case End(reason, _):
                self.whole = True
                if reason == "length":
                    self._print(" … (cut off: it may be no longer)")

    def _print(self, text: str, *, dim: bool = False) -> None:
        if self._live:
            shown = terminal.writable(terminal.plain(text), sys.stdout)
            print(click.style(shown, dim=True) if dim else shown, end="", flush=True)

    def finish(self) -> None:
        if self._live:
            print(flush=True)
        elif self.whole:
            print(terminal.writable(terminal.plain(self.text), sys.stdout), flush=True)
