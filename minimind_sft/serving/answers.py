"""Turns the tokens of an answer into what its client receives: reasoning, content, tool calls, probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from minimind_sft.data.token_bytes import TokenBytes
from minimind_sft.data.tokenizer import TextStream, Tokenizer
from minimind_sft.inference.answer_parts import unfinished
from minimind_sft.inference.chat import THINK_END, THINK_START
from minimind_sft.inference.request import Token
from minimind_sft.serving.tool_calls import CallPiece, CallReader

FinishReason = Literal["stop", "length", "tool_calls"]


class TokenText(NamedTuple):
    """A token as OpenAI's interface shows it. Its bytes may be a part of a character."""

    token: str
    bytes: tuple[int, ...]
    logprob: float


class TokenLogprob(NamedTuple):
    """A token of the answer, and the most likely ones at its place."""

    chosen: TokenText
    best: tuple[TokenText, ...]


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: content, reasoning, or a piece of a call.

    logprobs: of the tokens since the last delta that had some; the text of their last characters may follow later.
    """

    content: str = ""
    reasoning: str = ""
    call: CallPiece | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class AnswerReader:
    """Reads the tokens of one answer.

    Stop strings are looked for in the content, not in reasoning and calls. The answer ends with the character before
    the one that is complete first.

    Attributes:
        stopped: whether a stop string was met, or the one call is complete. Nothing is read after it.
        reasoning_tokens: tokens of the answer so far that are reasoning.
        finish_reason: why the answer ended; "stop" until `end`. "tool_calls" if at least one call is complete, unless
            the answer was cut off.

    Args:
        thinking: whether the prompt opened the reasoning. If not, the answer may open it as its first text. None: the
            whole answer is content, `<think>` included.
        calls: reads the calls of this answer; None: there are none, and text that looks like one is content.
        before: the ids of the text that the answer continues; none in a chat, whose answers are texts of their own.
        logprobs: whether the tokens have some to report.
    """

    def __init__(self, tokenizer: Tokenizer, thinking: bool | None, calls: CallReader | None = None,
                 stops: Sequence[str] = (), before: Sequence[int] = (), logprobs: bool = False):
        self.stopped = False
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason = "stop"
        self._text = TextStream(tokenizer, before)
        self._reasoning = ReasoningReader(thinking)
        self._calls = calls
        self._stops = StopFinder(stops)
        self._bytes = TokenBytes(tokenizer) if logprobs else None
        self._logprobs: list[TokenLogprob] = []

    def push(self, tokens: Sequence[Token]) -> list[Delta]:
        """Takes the next tokens. Returns what is certain by now; what may become a stop string or a tag waits."""
        deltas: list[Delta] = []
        for token in tokens:
            if self.stopped:
                break
            if self._bytes is not None and token.logprob is not None:
                self._logprobs.append(self._logprob(token))
            deltas += self._read(self._text.push(token.id))
            self.reasoning_tokens += self._reasoning.is_open
        return self._with_logprobs(deltas)

    def end(self, finish: str | None) -> list[Delta]:
        """Returns the rest of the answer.

        Args:
            finish: the engine's reason; "length" if the answer was cut off. A stop string outweighs it.
        """
        deltas: list[Delta] = []
        if not self.stopped:
            deltas += self._read(self._text.flush(), at_end=True)
        has_calls = self._calls is not None and self._calls.complete > 0
        self.finish_reason = ("length" if finish == "length" and not self.stopped else
                              "tool_calls" if has_calls else "stop")
        if self._logprobs and not deltas:
            deltas.append(Delta())
        return self._with_logprobs(deltas)

    def _read(self, text: str, at_end: bool = False) -> list[Delta]:
        reasoning, content = self._reasoning.push(text)
        if at_end:
            rest = self._reasoning.end()
            reasoning, content = reasoning + rest[0], content + rest[1]
        pieces: list[str | CallPiece] = [content] if content else []
        if self._calls:
            pieces = self._calls.push(content) + (self._calls.end() if at_end else [])
        deltas = [Delta(reasoning=reasoning)] * bool(reasoning) + self._before_stop(pieces, at_end)
        self.stopped = self._stops.found or (self._calls is not None and self._calls.is_over)
        return deltas

    def _before_stop(self, pieces: Sequence[str | CallPiece], at_end: bool) -> list[Delta]:
        """Returns the deltas before a stop string, which cannot go on beyond a call."""
        deltas: list[Delta] = []
        for piece in pieces:
            content = self._stops.push(piece) if isinstance(piece, str) else self._stops.end()
            deltas += [Delta(content)] * bool(content)
            if self._stops.found:
                return deltas
            if isinstance(piece, CallPiece):
                deltas.append(Delta(call=piece))
        rest = self._stops.end() if at_end else ""
        return deltas + [Delta(rest)] * bool(rest)

    def _with_logprobs(self, deltas: list[Delta]) -> list[Delta]:
        if not deltas or not self._logprobs:
            return deltas
        first, *others = deltas
        logprobs, self._logprobs = tuple(self._logprobs), []
        return [replace(first, logprobs=logprobs), *others]

    def _logprob(self, token: Token) -> TokenLogprob:
        assert token.logprob is not None
        best = tuple(self._token_text(token_id, logprob) for token_id, logprob in token.best)
        return TokenLogprob(self._token_text(token.id, token.logprob), best)

    def _token_text(self, token_id: int, logprob: float) -> TokenText:
        assert self._bytes is not None
        spelled = self._bytes.of(token_id)
        return TokenText(spelled.decode(errors="replace"), tuple(spelled), logprob)


class ReasoningReader:
    """Tells reasoning from content. Line feeds around both tags belong to the template, not to the text.

    Args:
        thinking: as in `AnswerReader`.

    Attributes:
        is_open: whether the text is in the reasoning.
    """

    def __init__(self, thinking: bool | None):
        self._part: Literal["beginning", "reasoning", "content"] = "content" if thinking is None else "beginning"
        self.is_open = bool(thinking)
        self._waiting = ""
        self._strips = False
        """Whether line feeds that come next are dropped: nothing but the tag stands before them."""

    def push(self, text: str) -> tuple[str, str]:
        """Returns (reasoning, content)."""
        self._waiting += text
        if self._part == "beginning" and not self._begins():
            return "", ""
        reasoning = self._read_reasoning() if self._part == "reasoning" else ""
        return reasoning, self._read_content() if self._part == "content" else ""

    def end(self) -> tuple[str, str]:
        """Returns what waited for more text."""
        rest, self._waiting = self._waiting, ""
        if self._part == "reasoning" or (self._part == "beginning" and self.is_open):
            return rest.rstrip("\n"), ""
        return "", rest

    def _begins(self) -> bool:
        """Decides which part the answer begins with, if that can be told by now."""
        start = self._waiting.lstrip()
        if start.startswith(THINK_START):  # some models write the tag although the prompt has it
            self._waiting, self.is_open = start.removeprefix(THINK_START), True
        elif THINK_START.startswith(start):  # also if it is empty
            return False
        self._part, self._strips = ("reasoning", True) if self.is_open else ("content", False)
        return True

    def _read_reasoning(self) -> str:
        text, tag, after = self._waiting.partition(THINK_END)
        if self._strips:
            text = text.lstrip("\n")
        if tag:
            self._part, self._strips, self._waiting = "content", True, after
            self.is_open = False
            return text.rstrip("\n")
        ready = text[:len(text) - unfinished(text, [THINK_END])].rstrip("\n")
        self._waiting = text[len(ready):]
        self._strips = self._strips and not ready
        return ready

    def _read_content(self) -> str:
        content, self._waiting = self._waiting, ""
        if self._strips:
            content = content.lstrip("\n")
            self._strips = not content
        return content


class StopFinder:
    """Lets text through up to the first stop string, and holds back what may be the beginning of one.

    found: whether there was one.
    """

    def __init__(self, stops: Sequence[str]):
        self.found = False
        self._stops = [stop for stop in stops if stop]
        self._waiting = ""

    def push(self, text: str) -> str:
        """Returns the text that is certainly before a stop string."""
        if not self._stops or not text:
            return text
        self._waiting += text
        places = [(place + len(stop), place) for stop in self._stops if (place := self._waiting.find(stop)) >= 0]
        if places:
            self.found = True
            return self._waiting[:min(places)[1]]
        end = len(self._waiting) - unfinished(self._waiting, self._stops)
        ready, self._waiting = self._waiting[:end], self._waiting[end:]
        return ready

    def end(self) -> str:
        """Returns what waited: it has become no stop string."""
        rest, self._waiting = self._waiting, ""
        return rest
