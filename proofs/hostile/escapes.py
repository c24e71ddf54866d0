"""Control characters and HTML in everything that a program may print or put on a page."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from hostile.programs import succeed
from hostile.tries import Outcome, Try

KIND = "control characters in names, data and answers"

EVIL = ("\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\u202eevil\u2066", "\x08\x08\x08", "\x7f", "\x1b[1;31m\x1b[8m",
        "\x0c\x0b", "a\nerror: b", "\u2028line", "\x1bP1$r\x1b\\", "\u200f", "<img src=x onerror=alert(1)>\x1b[H")
HTML = "<img src=x"
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that no page may have; marks of direction belong in Arabic and Hebrew text."""
TRAINER = "trainer/train_full_sft.py"
TINY = ["--from_weight", "none", "--hidden_size", "16", "--num_hidden_layers", "1", "--max_steps", "2",
        "--max_seq_len", "128", "--device", "cpu", "--dtype", "float32", "--log_interval", "1"]
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}EVIL{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistantEVIL{% endif %}")
Maker = Callable[[Path, str], list[str]]
"""Writes what one try needs into a folder, with a hostile text in it, and returns the command."""


def row(text: str = "", **fields: object) -> dict:
    turns = [{"role": "user", "content": f"hi {text}"}, {"role": "assistant", "content": f"yes {text}"}]
    return {"conversations": turns, **fields}


def write(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def nothing_shows(outcome: Outcome) -> str | None:
    """Looks for HTML from the data on the pages that the program wrote. The runner looks at what it printed."""
    newest = max(outcome.folder.glob("try*"), key=lambda one: int(one.name.removeprefix("try")))
    for page in newest.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if HTML in text:
            return f"{page.name}: HTML from the data"
        if UNSEEN.search(text):
            return f"{page.name}: a control character"
    return None


def _name(evil: str) -> str:
    """Returns a text that may be a file's name."""
    return "a" + evil.replace("/", "")


def _train(folder: Path, evil: str) -> list[str]:
    data = write(folder / "rows.jsonl", *[row(evil, kind=evil)] * 8, *[row(kind="plain")] * 8)
    return [TRAINER, "--data_path", str(data), *TINY, "--eval_share", "0.5", "--save_dir", str(folder)]


def _inspect(folder: Path, *flags: str) -> list[str]:
    return ["scripts/inspect_data.py", *flags, "--html", str(folder / "page.html")]


MAKERS: dict[str, Maker] = {
    "kind, trained and answered": _train,
    "name of the data": lambda folder, evil: [
        TRAINER, "--data_path", str(write(folder / f"{_name(evil)}.jsonl", *[row()] * 8)), *TINY,
        "--save_dir", str(folder)],
    "name of the folder": lambda folder, evil: [*_train(folder, "")[:-1], str(folder / _name(evil))],
    "name of the weights": lambda folder, evil: [*_train(folder, ""), "--save_weight", _name(evil)],
    "name of an unknown field": lambda folder, evil: [
        TRAINER, "--data_path", str(write(folder / "rows.jsonl", row(**{evil: 1}))), *TINY, "--save_dir", str(folder)],
    "role": lambda folder, evil: _inspect(folder, str(write(folder / "rows.jsonl", {
        "conversations": [{"role": evil, "content": "x"}]}))),
    "rows that are shown": lambda folder, evil: _inspect(folder, str(write(
        folder / "rows.jsonl", *[row(evil, kind=evil, source=evil)] * 3)), "--show", "3"),
    "bad rows that are named": lambda folder, evil: _inspect(folder, str(write(folder / f"{_name(evil)}.jsonl", row(),
                                                                              {evil: 1}, [evil]))),
    "report as JSON": lambda folder, evil: ["scripts/inspect_data.py", str(write(folder / f"{_name(evil)}.jsonl", row(),
                                                                               {evil: evil})), "--json"],
    "tokens of a template": lambda folder, evil: _inspect(
        folder, str(write(folder / "rows.jsonl", row())), "--chat_template", str(_text(
            folder / "t.jinja", "{{ raise_exception(" + json.dumps(evil) + ") }}"))),
    "template that writes it": lambda folder, evil: _inspect(
        folder, str(write(folder / "rows.jsonl", row())), "--chat_template", str(_text(
            folder / "t.jinja", TEMPLATE.replace("EVIL", evil)))),
    "converted rows": lambda folder, evil: ["scripts/convert_data.py", str(write(
        folder / f"{_name(evil)}.jsonl", row(evil), {evil: 1}, [evil], row(evil, **{evil: evil}))), "--out",
        str(folder / f"o{_name(evil)}.jsonl")],
    "prompt": lambda folder, evil: _chat(folder, "--prompt", f"hi {evil}", evil, "--system", evil),
    "answer": lambda folder, evil: _chat(folder, "--prompt", evil, "--temperature", "30", "--max_new_tokens", "400",
                                         "--seed", str(len(evil))),
    "scores by kind": lambda folder, evil: _chat(
        folder, "--score", str(write(folder / f"{_name(evil)}.jsonl", *[row(evil, kind=evil)] * 3)), "--score_out",
        str(folder / f"s{_name(evil)}.jsonl"), "--max_new_tokens", "3"),
    "answered file": lambda folder, evil: _chat(
        folder, "--batch_in", str(write(folder / f"{_name(evil)}.jsonl", row(evil), {"prompt": evil})), "--batch_out",
        str(folder / "answers.jsonl"), "--max_new_tokens", "3"),
    "unknown weights": lambda folder, evil: ["eval_llm.py", "--weight", evil, "--prompt", "hi"],
    "unknown adapter": lambda folder, evil: _chat(folder, "--prompt", "hi", "--lora_weight", evil),
    "sidecar": lambda folder, evil: _with_sidecar(folder, evil),
    "tools file": lambda folder, evil: _chat(folder, "--prompt", "hi", "--tools", str(write(
        folder / f"{_name(evil)}.json", [{"type": evil, "function": {"name": evil}}]))),
    "typed commands": lambda folder, evil: _chat(folder),
    "evaluated kinds": lambda folder, evil: [
        "scripts/evaluate.py", *_weights(folder), "--data_path", str(write(folder / f"{_name(evil)}.jsonl",
                                                                         *[row(evil, kind=evil)] * 3)),
        "--max_new_tokens", "3", "--out", str(folder / "results.json"), "--overwrite"],
    "evaluated subjects": lambda folder, evil: [
        "scripts/evaluate.py", *_weights(folder), "--choices", str(write(folder / f"{_name(evil)}.jsonl", {
            "question": f"what {evil}", "choices": ["a", evil + "b"], "answer": 0, "subject": f"s{evil}"}))],
    "evaluated text": lambda folder, evil: [
        "scripts/evaluate.py", *_weights(folder), "--text_path",
        str(_text(folder / f"{_name(evil)}.txt", f"words {evil}"))],
    "metrics on a page": lambda folder, evil: [
        "scripts/compare_runs.py", *(str(_metrics(folder / f"{letter}{_name(evil)}_metrics.jsonl", evil))
                                     for letter in "ab"), "--html", str(folder / "page.html")],
    "metrics in a picture": lambda folder, evil: [
        "scripts/plot_metrics.py", str(_metrics(folder / f"{_name(evil)}_metrics.jsonl", evil)), "--out",
        str(folder / f"{_name(evil)}.png"), "--title", evil],
    "a field of the metrics": lambda folder, evil: ["scripts/compare_runs.py", *[str(write(
        folder / f"{_name(evil)}_metrics.jsonl", {"step": evil, "loss": 1}))] * 2],
    "tokenizer's data": lambda folder, evil: [
        "trainer/train_tokenizer.py", "--data_path", str(write(folder / f"{_name(evil)}.jsonl", {"text": evil * 50})),
        "--vocab_size", "300", "--save_dir", str(folder / f"t{_name(evil)}")],
    "memory of weights": lambda folder, evil: ["scripts/estimate_memory.py", "--from_weight", f"./{evil}.pth"],
    "converted weights": lambda folder, evil: ["scripts/convert_model.py", *_weights(folder), "--to", "huggingface",
                                               "--output", str(folder / f"hf{_name(evil)}")],
    "merged adapters": lambda folder, evil: ["scripts/merge_lora.py", *_weights(folder), "--lora_weight", evil],
    "unknown flag": lambda folder, evil: [TRAINER, f"--{evil}", evil],
    "unknown choice": lambda folder, evil: [TRAINER, "--truncation", evil],
    "language": lambda folder, evil: ["scripts/convert_data.py", str(write(folder / "rows.jsonl", row())), "--out",
                                      str(folder / "o.jsonl"), "--language", evil],
    "dialogue field": lambda folder, evil: [
        "scripts/convert_data.py", str(write(folder / "rows.jsonl", row())), "--out", str(folder / "o.jsonl"),
        "--dialogue_field", evil, "--drop_fields", evil],
}


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _metrics(path: Path, evil: str) -> Path:
    score = {"loss": 2.0, "token_accuracy": 0.5, "tokens": 9}
    answer = {"kind": evil, "question": evil, "expected": evil, "answer": evil, "exact": False}
    return write(path, {"step": 0, "run": {"id": evil, "name": evil, "stage": evil, "command": evil, "total_steps": 2,
                                           "settings": {evil: evil}, "model": {evil: evil}, "machine": {evil: evil},
                                           "versions": {evil: evil}, "data": [{"name": evil, "rows": 2}]}},
                 {"step": 1, "loss": 2.0, "learning_rate": 0.1, evil: 3},
                 {"step": 1, "eval_loss": 2.0, "by_source": {evil: score}, "by_kind": {evil: score},
                  "exact_by_kind": {evil: [1, 2]}, "answers": [answer]},
                 {"step": 2, "warning": evil, "name": evil}, {"step": 2, "end": "finished", "seconds": 1})


def _weights(folder: Path) -> list[str]:
    return ["--weight", str(folder.parent / "base" / "full_sft_16.pth"), "--save_dir", str(folder.parent / "base")]


def _chat(folder: Path, *flags: str) -> list[str]:
    return ["eval_llm.py", *_weights(folder), *(["--max_new_tokens", "3"] * ("--max_new_tokens" not in flags)), *flags]


def _with_sidecar(folder: Path, evil: str) -> list[str]:
    base = folder.parent / "base"
    sidecar = json.loads((base / "full_sft_16.json").read_text(encoding="utf-8"))
    sidecar = {**sidecar, "tokenizer": {"path": evil, "sha256": evil}, "format": evil, "training": {"command": evil},
               evil: evil}
    (folder / "w.pth").write_bytes((base / "full_sft_16.pth").read_bytes())
    write(folder / "w.json", sidecar)
    return ["eval_llm.py", "--weight", str(folder / "w.pth"), "--prompt", "hi", "--max_new_tokens", "3"]


def make_base(folder: Path) -> None:
    """Trains small weights for the programs that need some."""
    data = write(folder / "rows.jsonl", *[row()] * 8)
    succeed(folder, TRAINER, "--data_path", str(data), *TINY, "--eval_share", "0", "--save_dir", str(folder))


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    """Yields every place with hostile texts in turn, then random places with random mixtures of them."""
    make_base(folder / "base")
    for number in range(count):
        places = list(MAKERS)
        if number < count // 2:
            place, evil = places[number % len(places)], EVIL[(number * 7 + number // len(places)) % len(EVIL)]
        else:
            place, evil = random.choice(places), "".join(random.sample(EVIL, 3))
        own = folder / f"try{number}"
        own.mkdir()
        command = MAKERS[place](own, evil)
        typed = f"/{evil}\n/save {own}/{_name(evil)}\n/system {evil}\nhi {evil}\n/undo\n" * (place == "typed commands")
        yield Try(f"{place}: {evil!a}", command, "either", stdin=typed, check=nothing_shows)
