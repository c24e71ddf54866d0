"""Text becomes token ids and back, with a tokenizer folder of MiniMind, Hugging Face or our own."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers

from minimind_sft.data.tokenizer_files import read_text, read_tokenizer_files
from minimind_sft.errors import UserError, describe, one_line

END_OF_DOCUMENT = "<|endoftext|>"
# Unicode's supplementary private use area A: characters that no text standard gives a meaning.
MARKS_START, MARKS_END = 0xF0000, 0xFFFFE


@dataclass(frozen=True)
class Marks:
    """One private-use character for every added token, and a shield; none of them occurs in the text at hand.

    tokenizer: encodes a mark as the token it stands for, and everything else as text.
    """

    of_token: dict[str, str]
    shield: str
    tokenizer: tokenizers.Tokenizer

    @cached_property
    def tokens(self) -> dict[int, str]:
        """What each mark stands for, by its code point; a shield stands for nothing."""
        return {ord(mark): token for token, mark in self.of_token.items()} | {ord(self.shield): ""}

    def spelled(self, text: str) -> str:
        """The text with marks put back into the tokens they stand for, and without shields."""
        return self._pattern.sub(lambda mark: self.tokens[ord(mark[0])], text)

    @cached_property
    def _pattern(self) -> re.Pattern:
        return re.compile(f"[{chr(min(self.tokens))}-{chr(max(self.tokens))}]")


class Tokenizer:
    """The text side of a tokenizer folder.

    special: the strings of `bos_token`, `eos_token`, `pad_token` and `unk_token`, as far as there are any.
    chat_template: the Jinja source that came with the folder, or None.
    named_templates: all sources that came with it under a name, `default` and `tool_use` for example.
    fingerprint: SHA-256 (hex) of all that decides which ids a text gets.
    notices: how the folder was read, where that is worth a line.
    """

    notices: tuple[str, ...] = ()

    def __init__(self, state: dict, special: dict[str, str], chat_template: str | None = None,
                 named_templates: dict[str, str] | None = None):
        self._state = {**state, "added_tokens": state.get("added_tokens") or [], "truncation": None, "padding": None}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self._state))
        self._marks: dict[int, Marks] = {}
        self._added = {token["content"]: token for token in self._state["added_tokens"]}
        self.special = special
        self.chat_template, self.named_templates = chat_template, named_templates or {}
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        content = [{k: v for k, v in self._state.items() if k != "version"}, special]
        self.fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Reads tokenizer.json, tokenizer_config.json and what else there is of a tokenizer in the folder.

        Raises:
            UserError: naming the file, if one is missing or is not what its name says.
        """
        folder = Path(path)
        files = read_tokenizer_files(folder)
        templates = _chat_templates(folder, files.config)
        try:
            tokenizer = cls(files.state, files.special, *templates)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer ({one_line(error)})") from error
        for token, place in files.added_from.items():
            said, has = tokenizer._added[token]["id"], tokenizer.token_to_id(token)
            if said != has:
                raise UserError(f"{place}: {token!r} has the id {said}, but {has} is the next one that tokenizer.json "
                                "leaves free")
        tokenizer.notices = tuple(files.notices)
        return tokenizer

    def __reduce__(self):
        return Tokenizer, (self._state, self.special, self.chat_template, self.named_templates)

    def encode(self, text: str) -> list[int]:
        """Ids as Hugging Face gives them: control tokens that the text spells out become control tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of text that is only text: nothing in it can become a control token."""
        return self.marks(text).tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens written out."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._tokenizer.id_to_token(token_id)

    @property
    def added_tokens(self) -> list[str]:
        """Tokens that are found in a text before it is split into pieces, control tokens among them."""
        return list(self._added)

    @property
    def bos_id(self) -> int | None:
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._special_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._special_id("pad_token")

    @property
    def unknown_id(self) -> int | None:
        """The token that the model puts where its vocabulary cannot spell the text; None where it can spell all."""
        model = self._state["model"]
        if isinstance(model.get("unk_token"), str):
            return self.token_to_id(model["unk_token"])
        return model.get("unk_id")

    @property
    def end_of_document_id(self) -> int:
        """The token that closes a text in pretraining: `<|endoftext|>`, or eos where there is no such token.

        Raises:
            UserError: if there is neither.
        """
        found = self.token_to_id(END_OF_DOCUMENT) if END_OF_DOCUMENT in self._added else self.eos_id
        if found is None:
            raise UserError(f"the tokenizer has neither {END_OF_DOCUMENT} nor an eos_token to end a document with")
        return found

    def control_tokens(self, template_source: str = "") -> list[str]:
        """Added tokens with a meaning beyond their letters: special ones, bos/eos/pad, what the template names."""
        named = set(self.special.values())
        return [token for token, entry in self._added.items()
                if entry["special"] or token in named or token in template_source]

    def marks(self, *texts: str) -> Marks:
        """Marks of which none occurs in `texts`.

        Raises:
            UserError: if the texts leave no run of private-use characters free, or if the tokenizer would make
                control tokens out of ordinary text.
        """
        width = len(self._added) + 1
        for start in range(MARKS_START, MARKS_END - width, width):
            taken = re.compile(f"[{chr(start)}-{chr(start + width - 1)}]")
            if not any(taken.search(text) for text in texts):
                if start not in self._marks:
                    self._marks[start] = self._make_marks(start)
                return self._marks[start]
        raise UserError("the text uses up the private-use characters U+F0000 to U+FFFFD that control tokens need")

    def _make_marks(self, start: int) -> Marks:
        of_token = {token: chr(start + index) for index, token in enumerate(self._added)}
        state = _rename_tokens(self._state, of_token)
        try:
            renamed = tokenizers.Tokenizer.from_str(json.dumps(state))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(f"the tokenizer's model builds a control token out of text ({one_line(error)})") from error
        for token, mark in of_token.items():
            assert renamed.token_to_id(mark) == self.token_to_id(token), token
        return Marks(of_token, chr(start + len(of_token)), renamed)

    def _special_id(self, name: str) -> int | None:
        return self.token_to_id(self.special[name]) if name in self.special else None


class TextStream:
    """Text out of ids that come one at a time, in whole characters only."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the ids said last: some decoders treat the first token of a text differently
        self._ids: list[int] = []
        self._said = 0

    def push(self, token_id: int) -> str:
        """What can be said now; empty while the last character is not complete."""
        self._ids.append(token_id)
        text = self._pending()
        # An unfinished character decodes to one U+FFFD at the end. A real U+FFFD there waits for the next token.
        if text.endswith("\ufffd"):
            said, self._said = self._said, len(text) - 1
            return text[said:-1]
        said = text[self._said:]
        self._before, self._ids, self._said = self._ids, [], 0
        return said

    def flush(self) -> str:
        """The rest, an unfinished character as U+FFFD; the stream starts anew."""
        rest = self._pending()[self._said:]
        self._before, self._ids, self._said = [], [], 0
        return rest

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._ids)[len(before):]


def _rename_tokens(state: dict, new_names: dict[str, str]) -> dict:
    """The tokenizer with its added tokens renamed, wherever they stand."""
    def renamed(token: str) -> str:
        return new_names.get(token, token)

    model = dict(state["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {renamed(token): token_id for token, token_id in vocab.items()}
    else:
        model["vocab"] = [[renamed(token), score] for token, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed(model["unk_token"])
    added = [{**token, "content": renamed(token["content"])} for token in state["added_tokens"]]
    return {**state, "model": model, "added_tokens": added, "post_processor": None}


def _chat_templates(folder: Path, config: dict) -> tuple[str | None, dict[str, str]]:
    """Reads (the default template, all that have a name).

    They stand in chat_template.jinja and additional_chat_templates/<name>.jinja, or in tokenizer_config.json as one
    string, as {name: template}, or as a list of {"name", "template"}. Files count where both exist.

    Raises:
        UserError: naming the file and the field, for anything else.
    """
    where = f"{folder / 'tokenizer_config.json'}: chat_template"
    given = config.get("chat_template")
    if isinstance(given, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in given):
            raise UserError(f'{where}: expected a list of objects {{"name", "template"}}')
        given = {entry["name"]: entry.get("template") for entry in given}
    named = given if isinstance(given, dict) else {}
    for name, template in named.items():
        if not isinstance(template, str):
            raise UserError(f"{where}: {name}: expected a string, found {describe(template)}")
    if not isinstance(given, str | dict | None):
        raise UserError(f"{where}: expected a string, found {describe(given)}")
    default = given if isinstance(given, str) else named.get("default")
    named = {**named, **{file.stem: read_text(file)
                         for file in sorted(folder.glob("additional_chat_templates/*.jinja"))}}
    file = folder / "chat_template.jinja"
    return read_text(file) if file.exists() else default, named

