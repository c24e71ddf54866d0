"""Turns text into token ids and back, with a tokenizer folder of MiniMind, Hugging Face or our own."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from minimind_sft.data.bounded_tokenizer import BoundedTokenizer
from minimind_sft.data.gguf_tokenizer import read_gguf_tokenizer
from minimind_sft.data.prefix_space import Scheme, normalizer_prepends, prefix_scheme, without_prefix
from minimind_sft.data.template_sandbox import MAX_SOURCE_BYTES
from minimind_sft.data.tokenizer_checks import check_kept, check_unknown, spells_everything, unknown_token
from minimind_sft.data.tokenizer_files import TokenizerFiles, read_tokenizer_files
from minimind_sft.data.tokenizer_state import check_ids, has_unknown_regex
from minimind_sft.errors import UserError, describe
from minimind_sft.files import read_text
from minimind_sft.set_aside import is_there

END_OF_DOCUMENT = "<|endoftext|>"
# Unicode's supplementary private use area A: no standard gives these characters a meaning.
MARKS_START, MARKS_END = 0xF0000, 0xFFFFE
PRIVATE_IN_JSON = re.compile(r"\\udb[89ab][0-9a-f]\\ud[c-f][0-9a-f]{2}")
"""These characters, as surrogate pairs."""
MAX_NAMED_TEMPLATES = 100
MAX_PENDING = 64
"""Tokens whose text waits for the rest of a character: far more than one has, and few enough to decode again each time.
"""


@dataclass(frozen=True)
class Marks:
    """One private-use character for each added token, and a shield. None of them occurs in the text at hand.

    tokenizer: encodes a mark as the token it stands for, and everything else as ordinary text.
    prefix, inside: before which text `tokenizer` puts a space; `inside` puts one nowhere. None if both are the same.
    strip_before, strip_after: marks of tokens that take the whitespace before or after them with them.
    """

    of_token: dict[str, str]
    shield: str
    tokenizer: BoundedTokenizer
    prefix: Scheme = "none"
    inside: BoundedTokenizer | None = None
    strip_before: frozenset[str] = frozenset()
    strip_after: frozenset[str] = frozenset()

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The token of each mark by code point; the shield stands for nothing."""
        return {ord(mark): token for token, mark in self.of_token.items()} | {ord(self.shield): ""}

    @cached_property
    def all_marks(self) -> frozenset[str]:
        return frozenset(self.of_token.values())

    @property
    def depends_on_place(self) -> bool:
        """Whether the ids of a piece depend on what is before and after it."""
        return bool(self.inside or self.strip_before or self.strip_after)

    def find(self, text: str) -> int:
        """Returns where the first mark is, or the length of the text if it has none."""
        found = self._pattern.search(text)
        return found.start() if found else len(text)

    def spelled(self, text: str) -> str:
        """Returns the text with marks replaced by their tokens, and without shields."""
        return self._pattern.sub(lambda mark: self.tokens[ord(mark[0])], text)

    @cached_property
    def _pattern(self) -> re.Pattern:
        return re.compile(f"[{chr(min(self.tokens))}-{chr(max(self.tokens))}]")


class Tokenizer:
    """The text side of a tokenizer folder.

    special: the strings of `bos_token`, `eos_token`, `pad_token` and `unk_token`, if given.
    chat_template: the Jinja source in the folder, or None.
    named_templates: all Jinja sources in the folder that have a name, such as `default` and `tool_use`.
    adds_bos: whether the model was trained on texts that begin with bos. Chat templates write it themselves.
    fingerprint: SHA-256 (hex) of everything that decides which ids a text gets.
    name: where it was read from, as typed; `bundled` for the repository's own.
    notices: lines about how it was read.
    """

    name = "unnamed"
    notices: tuple[str, ...] = ()

    def __init__(self, state: dict, special: dict[str, str], chat_template: str | None = None,
                 named_templates: dict[str, str] | None = None, adds_bos: bool | None = None):
        self._state = {**state, "added_tokens": state.get("added_tokens") or [], "truncation": None, "padding": None}
        self._is_timed = has_unknown_regex(self._state)
        self._tokenizer = BoundedTokenizer(self._state, self._is_timed)
        self._marks: dict[int, Marks] = {}
        # `tokenizers` ignores empty ones
        self._added = {token["content"]: token for token in self._state["added_tokens"] if token["content"]}
        self.special = special
        self.chat_template, self.named_templates = chat_template, named_templates or {}
        if adds_bos is None:  # then the post-processor of tokenizer.json decides
            adds_bos = self._tokenizer.encode("", add_special_tokens=True)[:1] == [self.bos_id]
        self.adds_bos = adds_bos and self.bos_id is not None
        self.vocab_size = max(self._tokenizer.vocabulary().values(), default=-1) + 1
        content = json.dumps([{k: v for k, v in self._state.items() if k != "version"}, special], sort_keys=True)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._private = "".join(json.loads(f'"{found}"') for found in set(PRIVATE_IN_JSON.findall(content)))

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Reads tokenizer.json, tokenizer_config.json and the optional files of a tokenizer folder.

        Raises:
            UserError: naming a file that is missing or not what its name says.
        """
        folder = Path(path)
        files = read_tokenizer_files(folder)
        return cls._from_files(str(path), files, _chat_templates(folder, files.config), folder / "tokenizer.json")

    @classmethod
    def from_gguf(cls, path: str | Path) -> "Tokenizer":
        """Makes the tokenizer that a GGUF file describes.

        Raises:
            UserError: naming the file and the field that is missing, wrong or of another kind.
        """
        files = read_gguf_tokenizer(Path(path))
        templates = _given_templates(files.config, f"{path}: tokenizer.chat_template")
        return cls._from_files(str(path), files, templates, Path(path))

    @classmethod
    def _from_files(cls, name: str, files: TokenizerFiles, templates: tuple[str | None, dict[str, str]],
                    main: Path) -> "Tokenizer":
        try:
            tokenizer = cls(files.state, files.special, *templates, files.adds_bos)
        except UserError as error:
            raise UserError(f"{main}: {error}") from error
        for token, place in files.added_from.items():
            said, has = tokenizer._added[token]["id"], tokenizer.token_to_id(token)
            if said != has:
                raise UserError(f"{place}: {token!r} has the id {said}, but {has} is the next free id in "
                                "tokenizer.json")
        tokenizer.name, tokenizer.notices = name, tuple(files.notices)
        tokenizer._check(str(main))
        return tokenizer

    def _check(self, place: str) -> None:
        """Refuses a tokenizer that works, but not as its files say or not for every text."""
        check_ids(self._tokenizer.vocabulary(), self._state["added_tokens"], place)
        self.notices += tuple(check_unknown(self._state, self.special, END_OF_DOCUMENT, place))
        check_kept(self._tokenizer, place)
        try:
            self.marks()
        except UserError as error:
            raise UserError(f"{place}: {error}") from error

    def __reduce__(self) -> tuple:
        return Tokenizer, (self._state, self.special, self.chat_template, self.named_templates, self.adds_bos)

    def encode(self, text: str) -> list[int]:
        """Returns ids as Hugging Face does: control tokens that the text spells out become control tokens."""
        return self._tokenizer.encode(text)

    def encode_ordinary(self, text: str, inside: bool = False) -> list[int]:
        """Returns the ids of ordinary text: nothing in it can become a control token.

        `inside` tells that other text comes right before it; some tokenizers put a space before a text.
        """
        marks = self.marks(text)
        tokenizer = marks.inside if inside and marks.inside else marks.tokenizer
        return tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, with control tokens spelled out."""
        return self._tokenizer.decode(ids)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._tokenizer.id_to_token(token_id)

    @property
    def state(self) -> dict:
        """The content of tokenizer.json, with all added tokens."""
        return self._state

    @property
    def added_tokens(self) -> list[str]:
        """Tokens that are found in a text before it is split, control tokens among them."""
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
    def before_text(self) -> list[int]:
        """The ids that every text of pretraining begins with."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []

    @property
    def unknown_id(self) -> int | None:
        """The token for text that the vocabulary cannot spell; None if it can spell everything."""
        token = unknown_token(self._state)
        return None if token is None else self.token_to_id(token)

    @property
    def end_of_document_id(self) -> int:
        """The token that ends a text in pretraining: `<|endoftext|>`, or eos if the vocabulary lacks it.

        Raises:
            UserError: if it has neither.
        """
        found = self.token_to_id(END_OF_DOCUMENT) if END_OF_DOCUMENT in self._added else self.eos_id
        if found is None:
            raise UserError(f"the tokenizer has neither {END_OF_DOCUMENT} nor an eos_token to end a document with")
        return found

    def control_tokens(self, template_source: str = "") -> list[str]:
        """Returns added tokens that mean more than their letters: special ones, bos/eos/pad, those in the template.

        Raises:
            UserError: if one that the template writes also stands for text that the vocabulary cannot spell.
        """
        named, unknown = set(self.special.values()), unknown_token(self._state)
        if unknown in self._marked and unknown in template_source and not spells_everything(self._state):
            raise UserError(f"the tokenizer {self.name}: text that its vocabulary cannot spell becomes {unknown!r}, "
                            "which the chat template writes as a control token")
        return [token for token, entry in self._marked.items()
                if entry["special"] or token in named or token in template_source]

    def marks(self, *texts: str) -> Marks:
        """Returns marks that occur neither in `texts` nor anywhere in the tokenizer's files.

        Raises:
            UserError: if the texts leave no run of private-use characters free, or if the tokenizer would make
                control tokens out of ordinary text.
        """
        return self._marks_beside(texts) if texts else self._usual_marks

    def _marks_beside(self, texts: Sequence[str]) -> Marks:
        width = len(self._marked) + 1
        for start in range(MARKS_START, MARKS_END - width, width):
            taken = re.compile(f"[{chr(start)}-{chr(start + width - 1)}]")
            if not any(taken.search(text) for text in (*texts, self._private)):
                if start not in self._marks:
                    self._marks[start] = self._make_marks(start)
                return self._marks[start]
        raise UserError("the text uses up the private-use characters U+F0000 to U+FFFFD that control tokens need")

    @cached_property
    def _usual_marks(self) -> Marks:
        """The marks for texts without private-use characters."""
        return self._marks_beside(())

    @cached_property
    def _marked(self) -> dict[str, dict]:
        """The added tokens that get marks: all but runs of blanks, which are ordinary text."""
        return {token: entry for token, entry in self._added.items() if entry["special"] or not token.isspace()}

    def _make_marks(self, start: int) -> Marks:
        of_token = {token: chr(start + index) for index, token in enumerate(self._marked)}
        state, prefix = _rename_tokens(self._state, of_token), prefix_scheme(self._state)
        self._check_found()
        try:
            renamed = BoundedTokenizer(state, self._is_timed)
            inside = None if prefix == "none" else BoundedTokenizer(without_prefix(state), self._is_timed)
        except UserError as error:
            raise UserError(f"the tokenizer's model builds a control token out of text ({error})") from error
        for token, mark in of_token.items():
            assert renamed.token_to_id(mark) == self.token_to_id(token), token
        strip_before, strip_after = (frozenset(of_token[token] for token, entry in self._marked.items() if entry[side])
                                     for side in ("lstrip", "rstrip"))
        return Marks(of_token, chr(start + len(of_token)), renamed, prefix, inside, strip_before, strip_after)

    def _check_found(self) -> None:
        """Refuses tokens that are found or not by what is beside them, which differs between a piece and the text."""
        prepends = normalizer_prepends(self._state)
        for token, entry in self._marked.items():
            name = "single_word" if entry["single_word"] else "normalized"
            if entry["single_word"] or (entry["normalized"] and prepends):
                raise UserError(f"the tokenizer {self.name}: added_tokens: {token!r} has {name} true, so the text "
                                f"beside it decides whether it is found; set {name} to false in tokenizer.json")

    def _special_id(self, name: str) -> int | None:
        return self.token_to_id(self.special[name]) if name in self.special else None


class TextStream:
    """Turns ids that come one at a time into text, in whole characters only.

    before: the ids of the text that they continue; without it they are a text of their own.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._before = list(before)  # the ids of the last text: some decoders treat a first token differently
        self._ids: list[int] = []
        self._said = 0

    def push(self, token_id: int) -> str:
        """Returns the text that is complete by now; empty while the last character is not."""
        self._ids.append(token_id)
        text = self._pending()
        # An incomplete character decodes to U+FFFD at the end, with byte fallback one for each of its bytes. A real
        # U+FFFD there waits for the next token.
        if text.endswith("\ufffd") and len(self._ids) < MAX_PENDING:
            complete = len(text.rstrip("\ufffd"))
            new, self._said = text[self._said:complete], max(self._said, complete)
            return new
        new = text[self._said:]
        self._before, self._ids, self._said = self._ids, [], 0
        return new

    def flush(self) -> str:
        """Returns the rest, an incomplete character as U+FFFD, and starts anew."""
        rest = self._pending()[self._said:]
        self._before, self._ids, self._said = [], [], 0
        return rest

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._ids)[len(before):]


def _rename_tokens(state: dict, new_names: dict[str, str]) -> dict:
    """Returns the tokenizer's state with its added tokens renamed throughout.

    They are found in the text as it is, not as a normalizer leaves it, which could make the new names.
    """
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
    is_plain = state.get("normalizer") is None
    added = [{**token, "content": new_names[token["content"]], "normalized": is_plain and token["normalized"]}
             if token["content"] in new_names else token for token in state["added_tokens"]]
    return {**state, "model": model, "added_tokens": added, "post_processor": None}


def _chat_templates(folder: Path, config: dict) -> tuple[str | None, dict[str, str]]:
    """Returns (the default template, all named templates).

    They are in chat_template.jinja and additional_chat_templates/<name>.jinja, or in tokenizer_config.json as a string,
    as {name: template} or as a list of {"name", "template"}. Files take precedence.

    Raises:
        UserError: naming the file and the field, for anything else.
    """
    default, named = _given_templates(config, f"{folder / 'tokenizer_config.json'}: chat_template")
    more = sorted(islice(folder.glob("additional_chat_templates/*.jinja"), MAX_NAMED_TEMPLATES + 1))
    if len(more) > MAX_NAMED_TEMPLATES:
        raise UserError(f"{folder / 'additional_chat_templates'}: expected at most {MAX_NAMED_TEMPLATES} templates")
    named = {**named, **{file.stem: read_text(file, MAX_SOURCE_BYTES) for file in more}}
    file = folder / "chat_template.jinja"
    return read_text(file, MAX_SOURCE_BYTES) if is_there(file) else default, named


def _given_templates(config: dict, where: str) -> tuple[str | None, dict[str, str]]:
    """Returns the default template and the named ones in `chat_template`, whose place is `where`."""
    given = config.get("chat_template")
    if isinstance(given, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in given):
            raise UserError(f'{where}: expected a list of objects {{"name", "template"}}')
        name, times = Counter(entry["name"] for entry in given).most_common(1)[0] if given else ("", 1)
        if times > 1:
            raise UserError(f"{where}: {name}: {times} templates have this name")
        given = {entry["name"]: entry.get("template") for entry in given}
    named = given if isinstance(given, dict) else {}
    for name, template in named.items():
        if not isinstance(template, str):
            raise UserError(f"{where}: {name}: expected a string, found {describe(template)}")
    if not isinstance(given, str | dict | None):
        raise UserError(f"{where}: expected a string, found {describe(given)}")
    return given if isinstance(given, str) else named.get("default"), named
