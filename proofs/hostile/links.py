"""Links, pipes and other people's files where a program writes, under every name it uses or once used on the way."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hostile.files import CHOICES, METRICS, PATIENT, ROWS, fresh
from hostile.small_models import small_adapter, small_weights
from hostile.tries import Outcome, Try

KIND = "links and other people's files where programs write"

EITHER, REFUSED, ACCEPTED = "either", "refused", "accepted"


@dataclass(frozen=True)
class Writer:
    """A command that writes files, by their names below the folder of a try.

    outputs: files that it replaces, or refuses to.
    hidden: names that it uses on the way, or that earlier versions used.
    locks: files that it locks.
    """

    command: Sequence[str]
    outputs: Sequence[str]
    hidden: Sequence[str] = ()
    locks: Sequence[str] = ()
    overwrites: bool = False


def writers() -> list[Writer]:
    small = ("--weight", "small_32.pth", "--device", "cpu")
    chat = ("eval_llm.py", *small, "--max_new_tokens", "2")
    evaluate = ("scripts/evaluate.py", *small, "--choices", "choices.jsonl", "--out", "o/r.json")
    train = ("trainer/train_full_sft.py", "--from_weight", "none", "--hidden_size", "16", "--num_hidden_layers", "1",
             "--data_path", "rows.jsonl", "--save_dir", "o", "--max_steps", "2", "--save_interval", "1", "--batch_size",
             "2", "--device", "cpu", "--eval_samples", "0", "--eval_share", "0", "--num_workers", "0")
    of_run = ("o/full_sft_16.pth", "o/full_sft_16.json", "o/full_sft_16_metrics.jsonl", "o/full_sft_16_report.html",
              "o/checkpoints/full_sft_16_resume/run.json")
    states, lock = "o/checkpoints/full_sft_16_resume", "o/checkpoints/full_sft_16_resume.lock"
    folders = ("o/.full_sft_16.previous.tmp", "o/.full_sft_16.previous.older.tmp",
               "o/checkpoints/.full_sft_16_resume.previous.older.tmp", f"{states}/.step-00000001.tmp",
               f"{states}/.step-00000001.replaced", f"{states}/.step-00000001.removed.tmp",
               f"{states}/.minimind_sft.0123456789abcdef.tmp")
    out = ("--out", "o/a.jsonl")
    return [
        Writer(("scripts/convert_data.py", "rows.jsonl", *out, "--eval_rows", "2", "--eval_out", "o/b.jsonl"),
               ("o/a.jsonl", "o/b.jsonl")),
        Writer(("scripts/convert_data.py", "rows.jsonl", *out, "--overwrite"), ("o/a.jsonl",), overwrites=True),
        Writer(("scripts/inspect_data.py", "rows.jsonl", "--html", "o/a.html"), ("o/a.html",)),
        Writer(train, of_run, folders, (lock,)),
        Writer((*train, "--overwrite", "1"), of_run, folders, (lock,), overwrites=True),
        Writer(("trainer/train_tokenizer.py", "--data_path", "rows.jsonl", "--vocab_size", "300", "--save_dir", "o",
                "--overwrite"), ("o/tokenizer.json", "o/tokenizer_config.json", "o/added_tokens.json"),
               ("o/.tokenizer.previous.tmp", "o/.tokenizer.previous.older.tmp"), overwrites=True),
        Writer(("scripts/convert_model.py", "--weight", "small_32.pth", "--to", "huggingface", "--output", "o/hub"),
               ("o/hub",), ("o/.hub.tmp",)),
        Writer(("scripts/convert_model.py", "--weight", "small_32.pth", "--to", "minimind", "--output", "o/m_32.pth"),
               ("o/m_32.pth", "o/m_32.json"), ("o/.m_32.pth.tmp",)),
        Writer(("scripts/merge_lora.py", "--weight", "small_32.pth", "--lora_weight", "./lora_small_32.safetensors",
                "--save_dir", "o", "--save_weight", "merged"), ("o/merged_32.pth", "o/merged_32.json"), (),
               ("o/checkpoints/merged_32_resume.lock",)),
        Writer((*chat, "--score", "rows.jsonl", "--score_out", "o/s.jsonl"), ("o/s.jsonl",)),
        Writer((*chat, "--batch_in", "questions.jsonl", "--batch_out", "o/s.jsonl"),
               ("o/s.jsonl", "o/s.jsonl.run.json"), (), ("o/.s.jsonl.lock",)),
        Writer(evaluate, ("o/r.json", "o/r.answers.jsonl"), (), ("o/.r.answers.jsonl.lock",)),
        Writer((*evaluate, "--overwrite"), ("o/r.json", "o/r.answers.jsonl"), (), ("o/.r.answers.jsonl.lock",),
               overwrites=True),
        Writer(("scripts/plot_metrics.py", "a_metrics.jsonl", "--out", "o/a.png"), ("o/a.png",)),
        Writer(("scripts/compare_runs.py", "a_metrics.jsonl", "b_metrics.jsonl", "--html", "o/a.html"), ("o/a.html",)),
    ]


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    good, bad = folder / "good", folder / "bad"
    make_good(good)
    everybody = writers()
    right = random.sample(everybody, min(len(everybody), max(count // 3, 1)))
    for writer in right:
        shutil.copytree(good, fresh(bad))
        yield Try(f"nothing in the way: {named(writer)}", in_folder(writer.command, bad), ACCEPTED, seconds=PATIENT)
    cases = [(writer, name, plant) for writer in everybody for plants, names in (
        ((a_link, a_dangling_link, a_pipe, a_link_to_a_device, a_folder_of_others, a_link_to_a_folder), writer.outputs),
        ((a_link, a_dangling_link, a_pipe, a_file_of_others, a_link_to_a_folder), writer.locks),
        ((a_link, a_dangling_link, a_file_of_others), [hidden_name(name) for name in writer.outputs]),
        ((a_link, a_dangling_link, a_file_of_others, a_folder_of_others, a_link_to_a_folder, a_pipe), writer.hidden),
    ) for name in names for plant in plants]
    cases += [(writer, "o", a_name_that_is_not_utf_8) for writer in everybody]
    random.shuffle(cases)
    for writer, name, plant in cases[:max(count - len(right), 0)]:
        shutil.copytree(good, fresh(bad))
        (bad / name).parent.mkdir(parents=True, exist_ok=True)
        victims = plant(bad / name, bad)
        command = in_folder(writer.command, bad)
        if plant is a_name_that_is_not_utf_8:
            command = [word.replace(f"{bad}/o", f"{bad}/{os.fsdecode(bytes([255]))}") for word in command]
        must = plant in (a_pipe, a_link_to_a_device, a_name_that_is_not_utf_8) and name not in writer.hidden
        yield Try(f"{name}: {plant.__name__.replace('_', ' ')}, {named(writer)}", command,
                  REFUSED if must and not writer.overwrites else EITHER, seconds=PATIENT, guarded=victims, check=tidy)


def make_good(folder: Path) -> None:
    folder.mkdir()
    files = {"rows.jsonl": ROWS, "choices.jsonl": CHOICES, "a_metrics.jsonl": METRICS, "b_metrics.jsonl": METRICS,
             "questions.jsonl": [{"messages": row["conversations"][:1]} for row in ROWS]}
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    small_weights(folder)
    small_adapter(folder)
    (folder / "victim").write_text("precious\n", encoding="utf-8")
    (folder / "precious").mkdir()
    (folder / "precious" / "file").write_text("precious\n", encoding="utf-8")
    (folder / "o").mkdir()


def named(writer: Writer) -> str:
    return f"{writer.command[0]}{' --overwrite' * writer.overwrites}"


def hidden_name(name: str) -> str:
    """Returns the name under which earlier versions wrote a file first."""
    path = Path(name)
    return str(path.with_name(f".{path.name}.tmp"))


def in_folder(command: Sequence[str], folder: Path) -> list[str]:
    """Returns a command with the files of a try in place of their names."""
    names = {path.name for path in folder.iterdir()}
    program, *words = command
    return [program, *(str(folder / word) if word.removeprefix("./").partition("/")[0] in names else word
                       for word in words)]


def tidy(outcome: Outcome) -> str | None:
    """Checks that nothing was left on the way."""
    left = [path for path in (outcome.folder / "bad").rglob(".minimind_sft.*") if path.name.endswith(".tmp")
            and path.name != ".minimind_sft.0123456789abcdef.tmp"]
    return f"left {left[0]}" if left else None


def a_link(path: Path, folder: Path) -> list[Path]:
    path.symlink_to(folder / "victim")
    return [folder / "victim"]


def a_dangling_link(path: Path, folder: Path) -> list[Path]:
    path.symlink_to(folder / "absent")
    return [folder / "absent"]


def a_pipe(path: Path, _: Path) -> list[Path]:
    os.mkfifo(path)
    return []


def a_link_to_a_device(path: Path, _: Path) -> list[Path]:
    path.symlink_to("/dev/full")
    return []


def a_file_of_others(path: Path, _: Path) -> list[Path]:
    path.write_text("mine\n", encoding="utf-8")
    return [path]


def a_folder_of_others(path: Path, folder: Path) -> list[Path]:
    shutil.copytree(folder / "precious", path)
    return [path / "file"]


def a_link_to_a_folder(path: Path, folder: Path) -> list[Path]:
    path.symlink_to(folder / "precious")
    return [folder / "precious"]


def a_name_that_is_not_utf_8(_: Path, folder: Path) -> list[Path]:
    return [folder / os.fsdecode(b"\xff")]


