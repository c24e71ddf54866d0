"""Conversations with a model: one turn at a time, streamed; or many questions at once, scored."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import Conversation
from minimind_sft.data.tokenizer import TextStream, Tokenizer
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_batch, generate_stream

THINK_END = "</think>"


@dataclass
class Chat:
    """A conversation that goes on; `historys` messages before the newest question stay in view (0: none, -1: all)."""

    model: LanguageModel
    tokenizer: Tokenizer
    template: ChatTemplate
    settings: SamplingSettings
    system: str | None = None
    historys: int = 0
    thinking: bool = False
    messages: list[dict] = field(default_factory=list)

    def reply(self, question: str) -> Iterator[str]:
        """The answer as `stream_text` gives it. The turn joins the history when the last piece was taken."""
        asked = {"role": "user", "content": question}
        prompt = self.template.generation_prompt_ids([*self._in_view(), asked], thinking=self.thinking)
        stop_ids = {self.template.end_of_turn_id, self.tokenizer.end_of_document_id}
        pieces = []
        for piece in stream_text(self.model, self.tokenizer, prompt, self.settings, stop_ids):
            pieces.append(piece)
            yield piece
        self.messages += [asked, assistant_message("".join(pieces), self.thinking)]

    def _in_view(self) -> list[dict]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        kept = len(self.messages) if self.historys < 0 else self.historys
        return opening + (self.messages[-kept:] if kept else [])


def stream_text(model: LanguageModel, tokenizer: Tokenizer, prompt: list[int], settings: SamplingSettings,
                stop_ids: set[int]) -> Iterator[str]:
    """The text after `prompt`, one piece per token: empty while a character's bytes are incomplete."""
    text = TextStream(tokenizer)
    for token_id in generate_stream(model, prompt, settings, stop_ids):
        yield text.push(token_id)
    if rest := text.flush():
        yield rest


def assistant_message(text: str, thinking: bool) -> dict:
    """The message that an answer is in later prompts; while thinking is open, what precedes `</think>` is reasoning."""
    if not thinking or THINK_END not in text:
        return {"role": "assistant", "content": text}
    reasoning, content = text.split(THINK_END, 1)
    return {"role": "assistant", "content": content.strip("\n"), "reasoning_content": reasoning.strip("\n")}


def continue_text(model: LanguageModel, tokenizer: Tokenizer, prompt: str,
                  settings: SamplingSettings) -> Iterator[str]:
    """What a pretrained model puts after `prompt`, up to the end of the document; pieces as in `stream_text`."""
    return stream_text(model, tokenizer, tokenizer.encode_text(prompt), settings, {tokenizer.end_of_document_id})


@dataclass(frozen=True)
class Scored:
    """One question, what was expected and what the model said."""

    kind: str
    place: str
    expected: str
    answer: str

    @property
    def exact(self) -> bool:
        return self.answer.strip() == self.expected.strip()


def score(model: LanguageModel, tokenizer: Tokenizer, template: ChatTemplate,
          questions: Sequence[tuple[str, Conversation]], settings: SamplingSettings, batch_size: int) -> list[Scored]:
    """Answers the last turn of each (kind, conversation), greedily, with thinking off, and compares it."""
    settings = replace(settings, temperature=0.0)
    stop_ids = {template.end_of_turn_id, tokenizer.end_of_document_id}
    results = []
    with tqdm(total=len(questions), desc="answering", unit=" questions", leave=False, disable=None) as bar:
        for start in range(0, len(questions), batch_size):
            asked = questions[start:start + batch_size]
            prompts = [template.generation_prompt_ids(list(conversation.messages[:-1]), tools=conversation.tools)
                       for _, conversation in asked]
            answers = generate_batch(model, prompts, settings, stop_ids)
            results += [Scored(kind, conversation.place, conversation.messages[-1]["content"], tokenizer.decode(ids))
                        for (kind, conversation), ids in zip(asked, answers, strict=True)]
            bar.update(len(asked))
    return results


def score_table(results: Iterable[Scored]) -> Iterator[str]:
    """Lines of an aligned table, exact match per kind, the last one the total."""
    results = list(results)
    asked = Counter(result.kind for result in results)
    right = Counter(result.kind for result in results if result.exact)
    width = max(map(len, asked))
    yield f"{'kind':<{width}}  questions  exact match"
    for kind in sorted(asked):
        yield f"{kind:<{width}}  {asked[kind]:>9}  {right[kind] / asked[kind]:>11.1%}"
    yield f"exact match: {sum(right.values()) / len(results):.1%} ({len(results)} questions)"


