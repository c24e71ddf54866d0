"""Chats with a model, one turn at a time, and streams its answers."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import MAX_CHARACTERS, Conversation
from minimind_sft.data.tokenizer import TextStream, Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_stream
from minimind_sft.inference.stopping import chat_stop_ids, document_end_ids, document_ids
from minimind_sft.terminal import counted

THINK_START, THINK_END = "<think>", "</think>"


@dataclass
class Chat:
    """A running conversation.

    historys: the number of earlier messages that the model sees; a question and its answer are two. 0: none; -1: all.
        An odd number counts as one less, because the model never sees an answer without its question. If the messages
        do not fit into the model's context, the oldest leave its view for good. Room for an answer of `max_new_tokens`
        stays free, but at most half the context.
    notify: receives a line when messages leave for lack of room, and when the conversation becomes longer than
        `trained_length`.
    stop_ids: tokens that end an answer, besides the template's end of turn and the tokenizer's end of document.
    trained_length: tokens of the longest document in training, if that is known.
    messages: all questions and answers.
    out_of_view: the number of oldest messages that have left the model's view.
    unanswered: a question whose answer was interrupted; `regenerate` asks it again.
    in_use: tokens of the context that the last prompt and its answer took; None before there is one.
    starts_thinking: whether the last prompt ends inside reasoning, which the answer goes on with.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    template: ChatTemplate
    settings: SamplingSettings
    system: str | None = None
    tools: list[dict] | None = None
    historys: int = 0
    thinking: bool = False
    notify: Callable[[str], None] = print
    stop_ids: Collection[int] = ()
    trained_length: int | None = None
    messages: list[dict] = field(default_factory=list)
    out_of_view: int = 0
    unanswered: dict | None = None
    in_use: int | None = None
    starts_thinking: bool = False
    _attempts: int = 0
    _told_length: bool = False

    @property
    def context(self) -> int:
        """Tokens that the model can take in at most."""
        return self.model.config.context

    def check_opening(self, dashes: str = "--") -> None:
        """Checks that the template renders the system turn, tools and reasoning.

        Raises:
            UserError: names the flag, if the template refuses the system turn, tools or reasoning, or leaves them out.
        """
        opening = [*self._opening(), {"role": "user", "content": "QUESTION"}]
        if self.system:
            with _naming(f"{dashes}system"):
                check_text(self.system)
                self.template.generation_prompt_ids(opening, None, self.thinking)
        if self.tools:
            with _naming(f"{dashes}tools"):
                self.template.generation_prompt_ids(opening, self.tools, self.thinking)
        if self.thinking:
            thought = {"role": "assistant", "content": "ANSWER", "reasoning_content": "REASONING"}
            with _naming("--open_thinking" if dashes == "--" else "/thinking"):
                self.template.encode(Conversation((*opening, thought), self.tools, "an answer with reasoning"))

    def reply(self, question: str) -> Iterator[str]:
        """Yields the answer, one piece of text per token, empty while its character is incomplete.

        Question and answer join the history after the last piece. If the caller stops earlier, the history stays as it
        was, and `regenerate` asks the question again.

        Raises:
            UserError: before the first piece, if the question is not valid text, if the template refuses the
                conversation, or if the question alone leaves no room in the model's context.
        """
        check_text(question)
        asked = [*self.messages, {"role": "user", "content": question}]
        self._attempts = 0
        prompt = self._fitting(asked)
        self.unanswered = asked[-1]
        try:
            yield from self._answer(asked, prompt)
        except UserError:
            self.unanswered = None
            raise

    def regenerate(self) -> Iterator[str]:
        """Yields another answer to the last question, drawn with the next seed; it replaces the one before.

        Raises:
            UserError: before the first piece, if there is no question, or as `reply`.
        """
        if not (self.unanswered or self.messages):
            raise UserError("there is no question to answer again")
        asked = [*self.messages, self.unanswered] if self.unanswered else self.messages[:-1]
        self._attempts += 1
        yield from self._answer(asked, self._fitting(asked))

    def undo(self) -> str | None:
        """Forgets the last question with its answer and returns its text; None if there is none."""
        if self.unanswered:
            undone, self.unanswered = self.unanswered, None
            return undone["content"]
        questions = self._questions(self.messages)
        if not questions:
            return None
        undone = self.messages[questions[-1]]
        self._keep(self.messages[:questions[-1]])
        return undone["content"]

    def clear(self) -> None:
        """Forgets all questions and answers."""
        self._keep([])

    def resume(self, conversation: Conversation) -> None:
        """Goes on with another conversation, its system turn and its tools.

        Raises:
            UserError: if the template refuses it.
        """
        self.template.encode(conversation)
        messages = list(conversation.messages)
        self.system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        self.tools = conversation.tools
        self.out_of_view = 0
        waiting = messages.pop() if messages[-1]["role"] != "assistant" else None
        self._keep(messages)
        self.unanswered = waiting

    def change(self, **settings: Any) -> None:
        """Changes `system` or `thinking`.

        Raises:
            UserError: names the command, if the template does not render it.
        """
        replace(self, **settings).check_opening(dashes="/")
        for name, value in settings.items():
            setattr(self, name, value)

    def _answer(self, asked: list[dict], prompt: list[int]) -> Iterator[str]:
        """Yields the answer to the last message, and keeps both after the last piece."""
        stop_ids = chat_stop_ids(self.template, self.stop_ids)
        settings = replace(self.settings, seed=self.settings.seed + self._attempts)
        ids: list[int] = []

        def counted() -> Iterator[int]:
            for token_id in generate_stream(self.model, prompt, settings, stop_ids):
                ids.append(token_id)
                yield token_id

        pieces = []
        for piece in _texts(TextStream(self.tokenizer), counted()):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, assistant_message("".join(pieces), self.thinking or self.starts_thinking)]
        self.unanswered, self.in_use = None, len(prompt) + len(ids)

    def _fitting(self, asked: list[dict]) -> list[int]:
        """Returns the ids of the prompt for the last message, with the earlier messages that fit into the context.

        Sets `starts_thinking`.
        """
        questions = [index for index in self._questions(asked) if index >= self.out_of_view]
        *earlier, last = questions or [0]
        in_view = len(earlier) if self.historys < 0 else min(self.historys // 2, len(earlier))
        starts = [*earlier[len(earlier) - in_view:], last]

        def messages_from(dropped: int) -> list[dict]:
            return [*self._opening(), *asked[starts[dropped]:]]

        def prompt_from(dropped: int) -> list[int]:
            return self.template.generation_prompt_ids(messages_from(dropped), self.tools, self.thinking)

        context = self.context
        longest = context - min(self.settings.max_new_tokens, context // 2)
        dropped, prompt = 0, prompt_from(0)
        if len(prompt) > longest and in_view:
            dropped = bisect_left(range(in_view), True, key=lambda count: len(prompt_from(count)) <= longest)
            prompt = prompt_from(dropped)
            if len(prompt) < context:
                self.out_of_view = starts[dropped]
                self.notify(f"[the model's context of {context:,} tokens is full: dropped the "
                            f"{counted(starts[dropped] - starts[0], 'oldest message')}]")
        self._notify_of_length(len(prompt))
        self.starts_thinking = opens_reasoning(self.template, messages_from(dropped), self.tools, self.thinking)
        return prompt

    def _notify_of_length(self, tokens: int) -> None:
        if self.trained_length and tokens > self.trained_length and not self._told_length:
            self._told_length = True
            self.notify(f"[the conversation has {tokens:,} tokens, more than these weights ever saw in training "
                        f"({self.trained_length:,}): /reset starts over]")

    def _opening(self) -> list[dict]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _keep(self, messages: list[dict]) -> None:
        """Keeps these messages, and forgets what was said about others."""
        self.messages, self.unanswered, self.in_use = messages, None, None
        self.out_of_view = min(self.out_of_view, len(messages))
        self._attempts, self._told_length = 0, False

    @staticmethod
    def _questions(messages: list[dict]) -> list[int]:
        """Returns where the questions are. What follows one up to the next, such as tool calls, belongs to it."""
        return [index for index, message in enumerate(messages) if message["role"] == "user"]


def opens_reasoning(template: ChatTemplate, messages: Sequence[dict], tools: list[dict] | None, thinking: bool) -> bool:
    """Tells whether the template opens the reasoning before an answer; tags that a message spells do not count.

    Raises:
        UserError: if the template refuses the messages.
    """
    history, asked = (template.render(messages, tools, asks, thinking) for asks in (False, True))
    header = asked.removeprefix(history)
    return header.rfind(THINK_START) > header.rfind(THINK_END)


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag}: {error}") from error


def check_text(text: str) -> None:
    """Checks that `text` is valid and not absurdly long.

    Raises:
        UserError: for bytes that are not text (they arrive as lone surrogates), and for absurdly long text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = ord(text[error.start])
        what = (f"byte 0x{found - 0xdc00:02x} at character {error.start + 1}, which is not a character in the "
                "terminal's encoding" if 0xdc80 <= found <= 0xdcff else f"\\u{found:04x}, half a character")
        raise UserError(f"expected text, found {what}") from error
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"expected at most {MAX_CHARACTERS:,} characters, found {len(text):,}")


def _texts(text: TextStream, token_ids: Iterator[int]) -> Iterator[str]:
    for token_id in token_ids:
        yield text.push(token_id)
    if rest := text.flush():
        yield rest


def assistant_message(text: str, thinking: bool) -> dict:
    """Returns the message for an answer; with `thinking`, the text before `</think>` is its reasoning."""
    if not thinking or THINK_END not in text:
        return {"role": "assistant", "content": text}
    reasoning, content = text.split(THINK_END, 1)
    reasoning = reasoning.removeprefix(THINK_START)  # some templates leave it to the model to open the reasoning
    return {"role": "assistant", "content": content.strip("\n"), "reasoning_content": reasoning.strip("\n")}


@dataclass
class Continuation:
    """Continues texts with weights that have only been pretrained.

    framed: MiniMind pretrains on texts between bos and eos, as Llama's makers did, and this project on texts that end
        with `<|endoftext|>`.
    stop_ids: further tokens that end a text.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    settings: SamplingSettings
    framed: bool = False
    stop_ids: Collection[int] = ()
    starts_thinking: bool = False
    in_use: int | None = None

    @property
    def context(self) -> int:
        return self.model.config.context

    def reply(self, text: str) -> Iterator[str]:
        """Yields how `text` goes on, up to the end of the document; pieces as in `Chat.reply`.

        Raises:
            UserError: before the first piece, if the text is empty, is not valid text, or leaves no room for more.
        """
        check_text(text)
        ids = document_ids(self.tokenizer, text, self.framed)
        ends = {*document_end_ids(self.tokenizer, self.framed), *self.stop_ids}
        # Some decoders drop the blank before a text's first word, and here it is not the first.
        return _texts(TextStream(self.tokenizer, before=ids), generate_stream(self.model, ids, self.settings, ends))
