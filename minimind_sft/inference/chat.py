"""Chats with a model, one turn at a time, and streams its answers."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import MAX_CHARACTERS, Conversation
from minimind_sft.data.tokenizer import TextStream, Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_stream
from minimind_sft.inference.stopping import chat_stop_ids, document_end_ids

THINK_END = "</think>"


@dataclass
class Chat:
    """A running conversation.

    historys: the number of earlier messages that the model sees; a question and its answer are two. 0: none; -1: all.
        An odd number counts as one less, because the model never sees an answer without its question. If the messages
        do not fit into the model's context, the oldest are dropped for good. Room for an answer of `max_new_tokens`
        stays free, but at most half the context.
    notify: receives a line when messages are dropped for lack of room.
    stop_ids: tokens that end an answer, besides the template's end of turn and the tokenizer's end of document.
    messages: the questions and answers that the model saw last, and the newest ones.
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
    messages: list[dict] = field(default_factory=list)

    def check_opening(self) -> None:
        """Checks that the template renders the system turn, tools and reasoning.

        Raises:
            UserError: names the flag, if the template refuses the system turn, tools or reasoning, or leaves them out.
        """
        opening = [*self._opening(), {"role": "user", "content": "QUESTION"}]
        if self.system:
            with _naming("--system"):
                check_text(self.system)
                self.template.generation_prompt_ids(opening, None, self.thinking)
        if self.tools:
            with _naming("--tools"):
                self.template.generation_prompt_ids(opening, self.tools, self.thinking)
        if self.thinking:
            thought = {"role": "assistant", "content": "ANSWER", "reasoning_content": "REASONING"}
            with _naming("--open_thinking"):
                self.template.encode(Conversation((*opening, thought), self.tools, "an answer with reasoning"))

    def reply(self, question: str) -> Iterator[str]:
        """Yields the answer as `stream_text` does.

        Question and answer join the history after the last piece. If the caller stops earlier, the history stays as it
        was.

        Raises:
            UserError: before the first piece, if the question is not valid text, if the template refuses the
                conversation, or if the question alone leaves no room in the model's context.
        """
        check_text(question)
        asked = {"role": "user", "content": question}
        history, prompt = self._fitting(asked)
        stop_ids = chat_stop_ids(self.template, self.stop_ids)
        pieces = []
        for piece in stream_text(self.model, self.tokenizer, prompt, self.settings, stop_ids):
            pieces.append(piece)
            yield piece
        self.messages = [*history, asked, assistant_message("".join(pieces), self.thinking)]

    def clear(self) -> None:
        """Forgets all questions and answers."""
        self.messages = []

    def _fitting(self, asked: dict) -> tuple[list[dict], list[int]]:
        """Returns the earlier messages that fit into the context, and the prompt's ids."""
        exchanges = len(self.messages) // 2
        in_view = exchanges if self.historys < 0 else min(self.historys // 2, exchanges)
        history = self.messages[len(self.messages) - 2 * in_view:]

        def prompt_without(dropped: int) -> list[int]:
            messages = [*self._opening(), *history[2 * dropped:], asked]
            return self.template.generation_prompt_ids(messages, self.tools, self.thinking)

        context = self.model.config.context
        longest = context - min(self.settings.max_new_tokens, context // 2)
        prompt = prompt_without(0)
        if len(prompt) <= longest or not history:
            return history, prompt
        dropped = bisect_left(range(in_view), True, key=lambda count: len(prompt_without(count)) <= longest)
        prompt = prompt_without(dropped)
        if len(prompt) < context:
            self.notify(f"[the model's context of {context:,} tokens is full: the {2 * dropped} oldest messages are "
                        "dropped]")
        return history[2 * dropped:], prompt

    def _opening(self) -> list[dict]:
        return [{"role": "system", "content": self.system}] if self.system else []


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


def stream_text(model: LanguageModel, tokenizer: Tokenizer, prompt: list[int], settings: SamplingSettings,
                stop_ids: set[int]) -> Iterator[str]:
    """Yields the text of the answer to `prompt`, one piece per token, empty while its character is incomplete."""
    return _texts(TextStream(tokenizer), generate_stream(model, prompt, settings, stop_ids))


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
    return {"role": "assistant", "content": content.strip("\n"), "reasoning_content": reasoning.strip("\n")}


def continue_text(model: LanguageModel, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings,
                  between_bos_and_eos: bool = False, stop_ids: Collection[int] = ()) -> Iterator[str]:
    """Yields how a pretrained model continues `prompt`, up to the end of the document; pieces as in `stream_text`.

    MiniMind pretrains on texts between bos and eos, as Llama's makers did, and this project on texts that end with
    `<|endoftext|>`.

    Args:
        stop_ids: further tokens that end the text.

    Raises:
        UserError: before the first piece, if the prompt is empty, is not valid text, or leaves no room for an answer.
    """
    check_text(prompt)
    ids, ends = tokenizer.encode_ordinary(prompt), {*document_end_ids(tokenizer), *stop_ids}
    if between_bos_and_eos and tokenizer.bos_id is not None and tokenizer.eos_id is not None:
        ids, ends = [tokenizer.bos_id, *ids], {*ends, tokenizer.eos_id}
    # Some decoders drop the blank before a text's first word, and here it is not the first.
    return _texts(TextStream(tokenizer, before=ids), generate_stream(model, ids, settings, ends))
