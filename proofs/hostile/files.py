"""Pipes, devices and folders in place of files, and JSON that readers understand differently."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hostile.small_models import small_adapter, small_weights, written_as
from hostile.tries import Try
from minimind_sft.paths import REPOSITORY

KIND = "pipes, devices and odd JSON in place of files"

ROWS = [{"conversations": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(8)]
CHOICES = [{"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": "sums"}]
METRICS = [{"step": step, "loss": 3.0 - step / 10, "learning_rate": 0.01} for step in range(1, 4)]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
PATIENT = 30.0
"""Seconds for tries in which a program trains or loads a model; a wait for a pipe has no end."""


@dataclass(frozen=True)
class Place:
    """A file that a program reads: its name below the folder of a try, and the command."""

    file: str
    command: Sequence[str]
    is_json: bool = False


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    good = folder / "good"
    make_good(good)
    places = readers()
    right = random.sample(places, min(len(places), max(count // 3, 1)))
    bad = folder / "bad"
    for place in right:
        shutil.copytree(good, fresh(bad))
        yield Try(f"{place.file}: as it was, {place.command[0]}", in_folder(place.command, bad), "accepted",
                  seconds=PATIENT)
    cases = [(place, thing) for place in places for thing in THINGS  # a terabyte of data is only much to read
             if not (thing is a_terabyte_of_zeros and place.file.startswith(("rows", "text", "choices")))]
    cases += [(place, text) for place in places if place.is_json for text in TEXTS]
    random.shuffle(cases)
    for place, change in cases[:max(count - len(right), 0)]:
        shutil.copytree(good, fresh(bad))
        change(bad / place.file, random)
        # The inspector has done its work when its report says that no row can be read.
        may_pass = (place.file, change) in MAY_PASS or place.command[0].endswith("inspect_data.py")
        yield Try(f"{place.file}: {change.__name__.replace('_', ' ')}, {place.command[0]}",
                  in_folder(place.command, bad), "either" if may_pass else "refused", seconds=PATIENT)


def make_good(folder: Path) -> None:
    """Makes one file of each sort."""
    folder.mkdir()
    for name, rows in (("rows.jsonl", ROWS), ("choices.jsonl", CHOICES), ("a_metrics.jsonl", METRICS),
                       ("b_metrics.jsonl", METRICS)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (folder / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    (folder / "text.txt").write_text("A line of text.\n" * 20, encoding="utf-8")
    shutil.copy(REPOSITORY / "minimind_sft/data/chatml.jinja", folder / "template.jinja")
    small_weights(folder)
    small_adapter(folder)
    for form, name in (("huggingface", "hub"), ("gguf", "small.gguf"), ("peft", "peft")):
        written_as(form, folder / name)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPOSITORY / "model" / name, tokenizer / name)
    (tokenizer / "added_tokens.json").write_text("{}", encoding="utf-8")
    (tokenizer / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")


def readers() -> list[Place]:
    chat = ("eval_llm.py", "--prompt", "Hello", "--max_new_tokens", "2", "--device", "cpu", "--weight")
    small = (*chat, "small_32.pth")
    train = ("trainer/train_full_sft.py", "--save_dir", "out", "--max_steps", "1", "--batch_size", "2", "--device",
             "cpu", "--eval_samples", "0", "--eval_share", "0", "--num_workers", "0")
    new = (*train, "--from_weight", "none", "--hidden_size", "16", "--num_hidden_layers", "1", "--data_path")
    evaluate = ("scripts/evaluate.py", "--weight", "small_32.pth", "--device", "cpu", "--max_new_tokens", "2")
    return [
        Place("rows.jsonl", ("scripts/inspect_data.py", "rows.jsonl")),
        Place("rows.json", ("scripts/inspect_data.py", "rows.json")),
        Place("rows.jsonl", (*new, "rows.jsonl")),
        Place("rows.jsonl", ("scripts/convert_data.py", "rows.jsonl", "--out", "out.jsonl")),
        Place("text.txt", ("trainer/train_tokenizer.py", "--data_path", "text.txt", "rows.jsonl", "--vocab_size", "300",
                           "--save_dir", "out")),
        Place("rows.jsonl", (*small[:1], "--score", "rows.jsonl", *small[3:])),
        Place("rows.jsonl", (*small[:1], "--batch_in", "rows.jsonl", "--batch_out", "out.jsonl", *small[3:])),
        Place("rows.jsonl", (*evaluate, "--data_path", "rows.jsonl")),
        Place("choices.jsonl", (*evaluate, "--choices", "choices.jsonl")),
        Place("text.txt", (*evaluate, "--text_path", "text.txt")),
        Place("tools.json", (*small, "--tools", "tools.json"), True),
        Place("template.jinja", (*small, "--chat_template", "template.jinja")),
        Place("a_metrics.jsonl", ("scripts/plot_metrics.py", "a_metrics.jsonl", "--out", "a.png")),
        Place("a_metrics.jsonl", ("scripts/compare_runs.py", "a_metrics.jsonl", "b_metrics.jsonl", "--html", "a.html")),
        Place("small_32.pth", small), Place("small_32.json", small, True),
        Place("small_32.pth", (*train, "--data_path", "rows.jsonl", "--from_weight", "./small_32.pth")),
        Place("small.gguf", (*chat, "small.gguf")),
        Place("hub/config.json", (*chat, "hub"), True), Place("hub/model.safetensors", (*chat, "hub")),
        Place("hub/generation_config.json", (*chat, "hub"), True), Place("hub/tokenizer.json", (*chat, "hub"), True),
        Place("lora_small_32.safetensors", (*small, "--lora_weight", "./lora_small_32.safetensors")),
        Place("lora_small_32.json", (*small, "--lora_weight", "./lora_small_32.safetensors"), True),
        Place("peft/adapter_config.json", (*small, "--lora_weight", "peft"), True),
        Place("peft/adapter_model.safetensors", (*small, "--lora_weight", "peft")),
        *(Place(f"tokenizer/{name}", (*new, "rows.jsonl", "--tokenizer_path", "tokenizer"), True)
          for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")),
    ]


def fresh(folder: Path) -> Path:
    """Removes a folder, so that it can be made again."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def in_folder(command: Sequence[str], folder: Path) -> list[str]:
    """Returns a command with the files of a try in place of their names."""
    names = {path.name for path in folder.iterdir()} | {"out", "out.jsonl", "a.png", "a.html"}
    program, *words = command
    return [program, *(str(folder / word) if word.removeprefix("./") in names else word for word in words)]


def a_pipe(path: Path, _: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_a_pipe(path: Path, random: Random) -> None:
    path.rename(path.with_name("moved"))
    a_pipe(path.with_name("moved"), random)
    path.symlink_to("moved")


def a_socket(path: Path, _: Random) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket must be short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def a_folder(path: Path, _: Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


def a_device(path: Path, random: Random) -> None:
    _link(path, random.choice(["/dev/zero", "/dev/null", "/dev/urandom", "/dev/full", "/dev/tty"]))


def a_file_of_the_system(path: Path, random: Random) -> None:
    _link(path, random.choice(["/proc/self/environ", "/proc/kmsg", "/proc/self/mem", "/proc/meminfo",
                               "/proc/self/pagemap"]))


def a_dangling_link(path: Path, _: Random) -> None:
    _link(path, "absent")


def a_link_to_itself(path: Path, _: Random) -> None:
    _link(path, path.name)


def a_terabyte_of_zeros(path: Path, _: Random) -> None:
    os.truncate(path, 2**40)


def zeros(path: Path, _: Random) -> None:
    path.write_bytes(bytes(10_000))


def an_lfs_pointer(path: Path, _: Random) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", encoding="utf-8")


THINGS: list[Callable[[Path, Random], None]] = [
    a_pipe, a_link_to_a_pipe, a_socket, a_folder, a_device, a_file_of_the_system, a_dangling_link, a_link_to_itself,
    a_terabyte_of_zeros, zeros, an_lfs_pointer]
MAY_PASS = {("text.txt", zeros), ("a_metrics.jsonl", zeros), ("small.gguf", a_terabyte_of_zeros)}
"""Zeros are text, or a line that is still being written, and stand unread behind the tensors of a GGUF file."""


def _with_text(path: Path, text: str) -> None:
    """Puts a member at the beginning of the object in a file, or of the first object in its list."""
    before, brace, after = path.read_text(encoding="utf-8").partition("{")
    comma = "" if after.lstrip().startswith("}") else ","
    path.write_text(f"{before}{brace}{text}{comma}{after}", encoding="utf-8", errors="surrogatepass")


def a_name_twice(path: Path, random: Random) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    one = content[0] if isinstance(content, list) else content
    name = random.choice(sorted(one) or ["x"])
    _with_text(path, f"{json.dumps(name)}: {json.dumps(random.choice([one.get(name), None, 1]))}"
               + (', "x": 1' if not one else ""))


def a_name_twice_within(path: Path, random: Random) -> None:
    _with_text(path, '"x": ' + random.choice(['{"a": 1, "a": 2}', '[{"b": {}, "b": {}}]', '{"a": 1, "\\u0061": 2}']))


def no_number(path: Path, random: Random) -> None:
    _with_text(path, f'"x": {random.choice(["NaN", "-Infinity", "[Infinity]", "1e999", "-1e400", "9" * 5000])}')


def half_a_character(path: Path, random: Random) -> None:
    _with_text(path, random.choice(['"x": "\\ud800"', '"\\udfff": 1', '"x": ["\\ud83d a"]']))


def deep_nesting(path: Path, random: Random) -> None:
    depth = random.choice([101, 1000, 100_000])
    _with_text(path, f'"x": {"[" * depth}{"]" * depth}')


def very_many_values(path: Path, random: Random) -> None:
    _with_text(path, f'"x": [{",".join([random.choice(["[]", "{}", "1", "null"])] * 4_100_000)}]')


def bytes_that_are_no_text(path: Path, random: Random) -> None:
    whole = path.read_bytes()
    at = random.randrange(1, len(whole))
    path.write_bytes(whole[:at] + random.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0"]) + whole[at:])


def text_after_the_end(path: Path, random: Random) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(random.choice(["{}", "x", "// done", "]", "\0"]))


def the_first_half(path: Path, _: Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


TEXTS = [a_name_twice, a_name_twice_within, no_number, half_a_character, deep_nesting, very_many_values,
         bytes_that_are_no_text, text_after_the_end, the_first_half]
