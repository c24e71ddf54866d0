"""Reads the files of a tokenizer folder in the forms that different tools and versions write.

tokenizer.json holds the vocabulary, or vocab.json and merges.txt do (bpe_files.py). Its control tokens are listed
there (`added_tokens`), or in tokenizer_config.json (`added_tokens_decoder`, `eos_token` and the like),
added_tokens.json or special_tokens_map.json.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from minimind_sft.data.bpe_files import FILES, bpe_state, class_tokens, conversion
from minimind_sft.data.prefix_space import prefix_scheme
from minimind_sft.data.tokenizer_state import check_state
from minimind_sft.errors import UserError, describe, printable
from minimind_sft.files import read_object
from minimind_sft.set_aside import is_there

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
LISTS_OF_TOKENS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMED_AT_ONCE = 5
TYPES = {"tokenizer_class": (str, "a string"), **dict.fromkeys(("add_bos_token", "add_prefix_space", "legacy"),
                                                               (bool, "true or false"))}
"""The types of other fields of tokenizer_config.json; null is the same as no value."""

OTHER_FORMATS = {"tokenizer.model": "SentencePiece's", "vocab.txt": "BERT's"}
"""Files of other tokenizer formats, and the model that the format is known from."""


class TokenizerFiles(NamedTuple):
    """The content of a tokenizer folder.

    state: tokenizer.json with all added tokens.
    special: the strings of `SPECIAL_NAMES`, if given.
    config: tokenizer_config.json.
    added_from: the source of each token that is missing from the added tokens of tokenizer.json.
    notices: lines for the user about how the files were read.
    adds_bos: whether texts begin with bos; None if the post-processor in `state` decides it.
    """

    state: dict[str, Any]
    special: dict[str, str]
    config: dict[str, Any]
    added_from: dict[str, str]
    notices: list[str]
    adds_bos: bool | None = None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads the files of a tokenizer folder, except for its chat templates.

    Raises:
        UserError: naming the file or field that is missing, wrong or contradicts another.
    """
    try:
        _check_folder(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    optional = {name: read_object(folder / name) if is_there(folder / name) else {}
                for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")}
    config = optional["tokenizer_config.json"]
    _check_config(config, folder / "tokenizer_config.json")
    is_old = not is_there(folder / "tokenizer.json")
    main = folder / ("vocab.json" if is_old else "tokenizer.json")
    state = bpe_state(folder, config) if is_old else read_object(folder / "tokenizer.json")
    check_state(state, str(main))
    tokens = _Tokens(folder, state, main)
    naming = {"tokenizer_config.json": config, "special_tokens_map.json": optional["special_tokens_map.json"]}
    special = tokens.named(naming)
    # The unknown token stands for text outside the vocabulary; spelled out in a text it means nothing.
    listed = tokens.listed(naming) | {token for name, token in special.items() if name != "unk_token"}
    tokens.add_declared(config.get("added_tokens_decoder"))
    tokens.add_numbered(optional["added_tokens.json"], listed)
    if is_old or (folder / "config.json").exists():
        given = {name for content in naming.values() for name in content}
        defaults = class_tokens(folder, config)
        special |= {name: token for name, token in defaults.items() if name not in given and tokens.know(token)}
        listed |= {special[name] for name in defaults if name in special}
    tokens.add_special(listed)
    tokens.check_named(special)
    notices = tokens.notices() + _unlike_transformers(folder, state, config)
    return TokenizerFiles(tokens.completed(state), special, config, tokens.added_from, notices,
                          config.get("add_bos_token"))


def _check_config(config: dict[str, Any], path: Path) -> None:
    """Refuses fields of tokenizer_config.json with a value of another type."""
    for name, (kind, expected) in TYPES.items():
        if not isinstance(config.get(name), kind | None):
            raise UserError(f"{path}: {name}: expected {expected}, found {describe(config[name])}")


def _check_folder(folder: Path) -> None:
    """Refuses a folder without a tokenizer, with advice if it has one in another format."""
    if folder.is_file():
        raise UserError(f"{folder}: a file, expected the folder of a tokenizer: give {folder.parent}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with tokenizer.json and tokenizer_config.json")
    if (folder / "tokenizer.json").exists() or all((folder / file).exists() for file in FILES):
        return
    found = next((file for file in OTHER_FORMATS if (folder / file).exists()), None)
    if found:
        raise UserError(f"{folder}: no tokenizer.json, only {found} ({OTHER_FORMATS[found]} format): "
                        f"{conversion(folder)} writes one (pip install transformers sentencepiece protobuf)")
    raise UserError(f"{folder}: no tokenizer.json in it; a tokenizer folder has tokenizer.json and "
                    "tokenizer_config.json")


def _unlike_transformers(folder: Path, state: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Says if transformers 5 puts spaces before other texts: for its Llama class, `legacy` decides, not the file."""
    if str(config.get("tokenizer_class")).removesuffix("Fast") != "LlamaTokenizer":
        return []
    ours, theirs = prefix_scheme(state), "always" if config.get("legacy") else "first"
    if ours in ("none", theirs):
        return []
    where = {"always": "every control token and the start", "first": "only the start"}
    return [f"{folder / 'tokenizer.json'}: it puts a space after {where[ours]} of a text, and that counts, as in "
            f"transformers 4; transformers 5 does so after {where[theirs]} (tokenizer_config.json: legacy)"]


class _Tokens:
    """Collects the tokens of a folder and their ids while its files are compared."""

    def __init__(self, folder: Path, state: dict[str, Any], main: Path):
        self._folder, self._main = folder, main
        self._added = {entry["content"]: entry for entry in _added_entries(state.get("added_tokens"), self._main)}
        self._had_added = bool(self._added)
        self._ids = {**_vocabulary(state), **{token: entry["id"] for token, entry in self._added.items()}}
        self._tokens = {token_id: token for token, token_id in self._ids.items()}
        self._notices: list[str] = []
        self._place_of: dict[str, str] = {}
        self.added_from: dict[str, str] = {}

    def named(self, files: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Returns `bos_token` and the like, each from the first file that has it."""
        special: dict[str, str] = {}
        for file, content in files.items():
            for name in SPECIAL_NAMES:
                if content.get(name) in (None, "") and content.get(name) is not False:
                    continue
                place = f"{self._folder / file}: {name}"
                token = self._token(content[name], place)
                self._place_of.setdefault(name, place)
                if special.setdefault(name, token) != token:
                    self._notices.append(f"{place} is {printable(token)}, but tokenizer_config.json says "
                                      f"{printable(special[name])}, which counts")
        return special

    def listed(self, files: dict[str, dict[str, Any]]) -> set[str]:
        """Returns the special tokens without a name.

        Raises:
            UserError: naming file and field, if a list holds something else than tokens.
        """
        found = set()
        for file, content in files.items():
            for name in LISTS_OF_TOKENS:
                place, values = f"{self._folder / file}: {name}", content.get(name)
                if values is None:
                    continue
                if not isinstance(values, list | dict):
                    raise UserError(f"{place}: expected a list of tokens, found {describe(values)}")
                found |= {self._token(value, place)
                          for value in (values.values() if isinstance(values, dict) else values)}
        return found

    def add_declared(self, entries: Any) -> None:
        """Adds the tokens of `added_tokens_decoder`: {"5": {"content": "<x>", ...}}.

        Raises:
            UserError: naming file and field, if it holds something else.
        """
        place = f"{self._folder / 'tokenizer_config.json'}: added_tokens_decoder"
        if not isinstance(entries, dict | None):
            raise UserError(f"{place}: expected an object, found {describe(entries)}")
        for key, entry in (entries or {}).items():
            if not (key.isascii() and key.isdigit()):
                raise UserError(f"{place}: expected ids as names, found {key!r}")
            if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
                raise UserError(f"{place}.{key}: expected an object with the token as content, found {describe(entry)}")
            flags = {flag: entry[flag] for flag in FLAGS if flag in entry}
            if odd := next((flag for flag, value in flags.items() if not isinstance(value, bool)), None):
                raise UserError(f"{place}.{key}: {odd}: expected true or false, found {describe(flags[odd])}")
            self._add(entry["content"], int(key), flags, place)

    def add_numbered(self, ids: dict[str, Any], special: set[str]) -> None:
        """Adds the tokens of added_tokens.json: {"<x>": 5}.

        Raises:
            UserError: naming the token, if it has no id.
        """
        place = str(self._folder / "added_tokens.json")
        for token, token_id in ids.items():
            if type(token_id) is not int or token_id < 0:
                raise UserError(f"{place}: {printable(token)}: expected an id, found {describe(token_id)}")
            self._add(token, token_id, {"special": token in special}, place)

    def add_special(self, tokens: set[str]) -> None:
        """Marks vocabulary entries as special."""
        known, unknown = (sorted(found) for found in (tokens & self._ids.keys(), tokens - self._ids.keys()))
        for token in known:
            self._add(token, self._ids[token], {"special": True}, "the special tokens of the other files")
        if unknown:
            self._notices.append(f"{self._folder}: no file gives the special token {_some(unknown)} an id; it stays "
                              "ordinary text")

    def check_named(self, special: dict[str, str]) -> None:
        """
        Raises:
            UserError: for a named special token that is not in the vocabulary; names its field.
        """
        for name, token in special.items():
            if self._ids and token not in self._ids:
                raise UserError(f"{self._place_of[name]}: {token!r} is not in {self._main.name}")

    def know(self, token: str) -> bool:
        """Whether a file gives the token an id."""
        return token in self._ids

    def completed(self, state: dict[str, Any]) -> dict[str, Any]:
        """Returns the content of tokenizer.json with all added tokens."""
        if not self.added_from:
            return state
        return {**state, "added_tokens": sorted(self._added.values(), key=lambda entry: entry["id"])}

    def notices(self) -> list[str]:
        """Returns lines for the user about how the files were read."""
        said = list(self._notices)
        if self._main.name in FILES:  # it never lists them
            return said
        if self.added_from:
            said.append(f"{self._main}: its added_tokens lack {_some(self.added_from)}; taken from "
                        f"{' and '.join(dict.fromkeys(self.added_from.values()))}")
        similar = [] if self._had_added else [token for token in self._ids if token not in self._added
                                              and re.fullmatch(r"<\|?\w+\|?>", token)]
        if similar:
            said.append(f"{self._main}: it has no added_tokens, and no other file names {_some(similar)}: in a text "
                        "they are ordinary characters")
        return said

    def _token(self, value: Any, place: str) -> str:
        """Returns a token given as a string, an object with its content, an id, or a list of one of these."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            value = value.get("content", value)
        if type(value) is int:
            if value not in self._tokens:
                raise UserError(f"{place}: no token has the id {value}")
            return self._tokens[value]
        if isinstance(value, list) and value:
            raise UserError(f"{place}: expected one token, found a list of {len(value)} ({_some(map(str, value))}): "
                            "keep only the right one")
        if not isinstance(value, str):
            raise UserError(f"{place}: expected a token, found {describe(value)}")
        return value

    def _add(self, token: str, token_id: int, flags: dict[str, bool], place: str) -> None:
        if self._ids.get(token, token_id) != token_id:
            raise UserError(f"{place}: {token!r} has the id {token_id}, but {self._ids[token]} in {self._main.name}")
        if self._tokens.get(token_id, token) != token:
            raise UserError(f"{place}: {token!r} has the id {token_id}, which is {self._tokens[token_id]!r} in "
                            f"{self._main.name}")
        if token in self._added or not token:
            return
        is_special = flags.get("special", False)
        defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not is_special,
                    "special": is_special}
        self._added[token] = {"id": token_id, "content": token, **defaults, **flags}
        self._ids[token], self._tokens[token_id] = token_id, token
        self.added_from[token] = place


def _added_entries(entries: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(entries, list | None):
        raise UserError(f"{path}: added_tokens: expected a list, found {describe(entries)}")
    for index, entry in enumerate(entries or []):
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int):
            raise UserError(f"{path}: added_tokens[{index}]: expected an object with id and content, found "
                            f"{describe(entry)}")
    return entries or []


def _vocabulary(state: dict[str, Any]) -> dict[str, int]:
    """Returns the model's tokens and ids; {} if there is no valid model, which `tokenizers` will report."""
    model = state.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # pairs of a token and its score
        return {entry[0]: index for index, entry in enumerate(vocab)
                if isinstance(entry, list) and entry and isinstance(entry[0], str)}
    return {token: token_id for token, token_id in (vocab if isinstance(vocab, dict) else {}).items()
            if type(token_id) is int}


def _some(names: Any) -> str:
    first, *more = (printable(name) for name in names)
    rest = f" and {len(more) - NAMED_AT_ONCE + 1} more" if len(more) >= NAMED_AT_ONCE else ""
    return ", ".join([first, *more[:NAMED_AT_ONCE - 1]]) + rest
