"""Weights files: odd tensors, odd contents, pickles and headers written by hand, archives that lie, damaged bytes."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hostile.small_models import chat, small_weights, train
from hostile.tries import Try

KIND = "weights files"

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
CHANGED = (EMBEDDING, NORM, "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_norm.weight",
           "model.layers.1.mlp.down_proj.weight")
"""The tensors that are replaced by odd ones."""

OTHER_VALUES: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda t: 3, "text": lambda t: "x\x1b[2J", "nothing": lambda t: None, "a list": lambda t: [1, [2]],
    "a dict": lambda t: {"a": t}, "an object": lambda t: torch.nn.Linear(2, 2), "a huge number": lambda t: 10**600}
ODD_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "0-d": lambda t: t.new_tensor(1.0), "empty": lambda t: t[:0], "1-d": lambda t: torch.zeros(5),
    "a row less": lambda t: t[:-1].clone(), "a dimension more": lambda t: t[None].clone(),
    "40 dimensions": lambda t: t.reshape(*[1] * 40, *t.shape), "other shape": lambda t: t.reshape(-1, 1),
    "int8": lambda t: t.to(torch.int8), "bool": lambda t: t.bool(), "int64": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64), "conjugate": lambda t: t.to(torch.complex64).conj(),
    "float8": lambda t: t.to(torch.float8_e4m3fn), "uint16": lambda t: t.to(torch.uint16),
    "sparse": lambda t: t.to_sparse(), "CSR": lambda t: t.reshape(t.shape[0], -1).to_sparse_csr(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 1.0, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t, t]), "without data": lambda t: t.to("meta"),
    "NaN": lambda t: torch.full_like(t, torch.nan), "infinite": lambda t: torch.full_like(t, -torch.inf),
    "one NaN": lambda t: t.flatten().index_fill(0, torch.tensor([t.numel() - 1]), torch.nan).view_as(t),
    "a thousand million of one number": lambda t: torch.zeros(1).expand(10**9, 1),
    "2^62 of one number": lambda t: torch.zeros(1).expand(2**31, 2**31), **OTHER_VALUES}
"""Replacements of a tensor; none can be used."""
GOOD_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "a parameter": torch.nn.Parameter, "a column of a larger tensor": lambda t: torch.stack([t, t], -1)[..., 0],
    "float64": Tensor.double, "one number everywhere": lambda t: torch.ones(1).expand(t.shape)}
"""Replacements of a tensor that have the right shape."""

OBJECTS: dict[str, Any] = {
    "a list": [1, 2], "a number": 3, "a tensor": torch.ones(3), "nothing": None, "text": "hello", "an empty dict": {},
    "an object": torch.nn.Linear(2, 2), "a huge number": 10**600, "a number as name": {1: torch.ones(2)},
    "nothing as name": {None: torch.ones(2)}, "a tuple as name": {(1, 2): torch.ones(2)},
    "a surrogate as name": {"\ud800": torch.ones(2)}, "a long name": {"x" * 10**6: torch.ones(2)},
    "an escape sequence as name": {"\x1b[2J\u202e": torch.ones(2)}, "an empty name": {"": torch.ones(2)},
    "no model in it": {"model": {"x": 1}}, "a model with a number in it": {"model": {"x": torch.ones(2), "y": 1}},
    "one million names": dict.fromkeys(map(str, range(10**6)))}


def call(name: str, *arguments: bytes) -> bytes:
    """Returns the pickle of a call."""
    return b"\x80\x02c" + name.replace(":", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR."


PICKLES: dict[str, bytes] = {
    "bytearray(2^31)": call("builtins:bytearray", b"\x8a\x05" + (2**31).to_bytes(5, "little")),
    "FloatStorage(2^31)": call("torch:FloatStorage", b"\x8a\x05" + (2**31).to_bytes(5, "little")),
    "os.system": call("os:system", b"X\x04\x00\x00\x00exit"), "eval": call("builtins:eval", b"X\x01\x00\x00\x001"),
    "lists in lists": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "tuples in tuples": b"\x80\x02N" + b"\x85" * 10**6 + b".",
    "three million lists": b"\x80\x02" + b"]" * (3 * 10**6) + b".",
    "three million dicts": b"\x80\x02(" + b"}" * (3 * 10**6) + b"t.",
    "colliding names": b"\x80\x02}(" + b"".join(
        pickle.dumps(i * (2**61 - 1) + 2**70, protocol=2)[2:-1] + b"N" for i in range(10**5)) + b"u.",
    "an unknown operation": b"\x80\x02\xff.", "nothing": b"", "only an end": b".", "no end": b"\x80\x02}",
    "text that is longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.", "an empty stack": b"\x80\x02\x85.",
    "protocol 0": b"(lp0\nI5\na.", "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f1."}

HEADER: dict[str, Any] = {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}
ODD: tuple[Any, ...] = (None, True, -1, 0, 1.5, 2**31, 2**63, 10**300, "", "x\x1b[2J", [], [0], [-1, 128], [0, 2**63],
                        [2**62, 4], [1e9], ["a"], [[32]], {}, {"a": 1}, [1] * 10**5)


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    warnings.filterwarnings("ignore", message="Sparse CSR|torch.quantize_per_tensor|The PyTorch API of nested")
    good = small_weights(folder)
    sidecar = json.loads(good.with_suffix(".json").read_text())
    del sidecar["sha256"]
    tensors = torch.load(good, weights_only=True)
    path = folder / "odd.pth"
    yield Try("as it was", chat(good), "accepted")
    yield Try("as it was, trained", train(good, folder), "accepted")
    for value in (1e15, 3e38):
        describe(path, sidecar)
        torch.save({**tensors, NORM: torch.full_like(tensors[NORM], value)}, path)
        for command in (chat(path), train(path, folder)):
            yield Try(f"{NORM}: {value} everywhere, {command[0]}", command, "either")
    for name, make in GOOD_TENSORS.items():
        describe(path, sidecar)
        torch.save({**tensors, "lm_head.weight": tensors[EMBEDDING], CHANGED[4]: make(tensors[CHANGED[4]])}, path)
        yield Try(f"{CHANGED[4]}: {name}", chat(path), "accepted")

    def run(weights: Path) -> list[str]:
        return [*random.choice([chat(weights), train(weights, folder)]), "--tokenizer_path", "bundled"]

    yield from odd_tensors(path, tensors, sidecar, random, count // 3, run)
    yield from odd_pickles(path, sidecar, random, count // 4, run)
    if count >= 50:  # their files are large
        yield from odd_archives(path, tensors, random, run)
    yield from odd_headers(folder / "odd.safetensors", sidecar, random, count // 6, run)
    yield from damaged(good, sidecar, random, count // 8, run)


Run = Callable[[Path], list[str]]


def describe(path: Path, sidecar: Any) -> None:
    """Writes a sidecar, or removes it: the file is then described by its shapes."""
    if sidecar is None:
        path.with_suffix(".json").unlink(missing_ok=True)
    else:
        path.with_suffix(".json").write_text(json.dumps(sidecar))


def odd_tensors(path: Path, tensors: dict[str, Tensor], sidecar: Any, random: Random, count: int, run: Run
                ) -> Iterator[Try]:
    """Replaces one tensor, in both formats, with a sidecar or without."""
    choices = [(name, what) for name in CHANGED for what in ODD_TENSORS]
    random.shuffle(choices)
    for name, what in choices[:count]:
        changed = {**tensors, name: ODD_TENSORS[what](tensors[name])}
        described = random.random() < 0.7
        describe(path, sidecar if described else None)
        torch.save(changed, path, _use_new_zipfile_serialization=random.random() < 0.8)
        yield Try(f"{name}: {what}{'' if described else ', no sidecar'}", run(path))


def odd_pickles(path: Path, sidecar: Any, random: Random, count: int, run: Run) -> Iterator[Try]:
    """Saves other objects, and pickles that torch.save never writes; none may run code, here `touch`."""
    describe(path, sidecar)
    ran = path.with_name("ran")
    for new in (True, False):
        torch.save({"a": Touches(ran)}, path, _use_new_zipfile_serialization=new)
        yield Try(f"a call, {'an archive' if new else 'an old file'}", run(path), guarded=[ran])
    kinds = [*OBJECTS, *PICKLES]
    random.shuffle(kinds)
    for name in kinds[:count]:
        if name in OBJECTS:
            torch.save(OBJECTS[name], path, _use_new_zipfile_serialization=random.random() < 0.8)
        elif random.random() < 0.7:
            archive(path, PICKLES[name])
        else:
            start = io.BytesIO()
            torch.save({}, start, _use_new_zipfile_serialization=False)
            path.write_bytes(start.getvalue()[:start.getvalue().index(b"}q\x00.")] + PICKLES[name])
        yield Try(f"content: {name}", run(path), guarded=[ran])


class Touches:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[()]]:
        return self.path.touch, ()


def archive(path: Path, content: bytes, records: dict[str, bytes] | None = None, **options: Any) -> None:
    """Writes an archive with any pickle and any records."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("a/data.pkl", content)
        for name, record in (records or {}).items():
            file.writestr(name, record)


def odd_archives(path: Path, tensors: dict[str, Tensor], random: Random, run: Run) -> Iterator[Try]:
    """Makes large models of few bytes, leaves records out, and lies about their sizes."""
    describe(path, None)
    torch.save({**tensors, EMBEDDING: torch.zeros(1, 32).expand(10**7, 32)}, path)
    yield Try("a vocabulary of ten million times the same vector", run(path))
    torch.save({**tensors, EMBEDDING: torch.zeros(2 * 10**6, 32)}, path)
    recompress(path)
    yield Try("a compressed vocabulary of two million zeros", run(path))
    layer = {name: tensor for name, tensor in tensors.items() if ".0." in name}
    layers = {name.replace(".0.", f".{i}."): tensor for i in range(2000) for name, tensor in layer.items()}
    torch.save({**tensors, **layers}, path)
    yield Try("two thousand times the same layer", run(path))
    small = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    large = io.BytesIO()
    torch.save({EMBEDDING: torch.zeros(1).expand(64, 32)}, large)
    with zipfile.ZipFile(large) as saved:
        content = saved.read("archive/data.pkl")
    archive(path, b"\x80\x02X\x00\x00\x00\x30" + bytes(3 * 2**28) + b".", **small)
    yield Try("a compressed pickle of 800 MB", run(path))
    archive(path, content, {"a/data/0": bytes(2**29)}, **small)
    yield Try("a compressed record of 500 MB", run(path))
    archive(path, content, {"a/byteorder": bytes(2**29)}, **small)
    yield Try("a compressed byte order of 500 MB", run(path))
    archive(path, content, {"b/data/0": bytes(4)})
    yield Try("a record elsewhere", run(path))
    archive(path, content, {"a/data/0": bytes(4), "b/data.pkl": content})
    yield Try("two pickles", run(path))
    archive(path, content, {f"a/data/{i}": b"" for i in range(100_000)})
    yield Try("100,000 records", run(path))
    for kind in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        archive(path, content, {"a/data/0": bytes(4)}, compression=kind)
        yield Try(f"compression {kind}", run(path))
    archive(path, content, {"a/data/0": bytes(4)})
    whole = path.read_bytes()
    for field, size in ((10, 4), (12, 4), (16, 4), (20, 2)):
        number = random.choice([0xFFFFFFFF, 2**31, 1])
        end = bytearray(whole)
        end[len(end) - 22 + field:len(end) - 22 + field + size] = struct.pack("<I", number)[:size]
        path.write_bytes(end)
        yield Try(f"{number} at {field} in the end of the directory", run(path))


def recompress(path: Path) -> None:
    """Compresses the records of an archive."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, record in records.items():
            file.writestr(name, record)


def odd_headers(path: Path, sidecar: Any, random: Random, count: int, run: Run) -> Iterator[Try]:
    """Writes safetensors with odd fields, lengths and names."""
    describe(path, sidecar)
    changes: list[tuple[str, Any]] = [
        (f"{field}: {odd!r:.30}", {"a": {**HEADER, field: odd}}) for field in HEADER for odd in ODD]
    changes += [(f"a tensor that is {odd!r:.30}", {"a": odd}) for odd in ODD]
    changes += [(f"metadata that is {odd!r:.30}", {"a": HEADER, "__metadata__": odd}) for odd in ODD]
    changes += [("an escape sequence as name", {"\x1b[2J\u202e": HEADER}), ("a long name", {"x" * 10**6: HEADER}),
                ("300,000 empty tensors", {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                                           for i in range(300_000)}),
                ("lists in lists", "[" * 10**6), ("twice the same name", '{"a": 1, "a": 1}'), ("a list", []),
                ("half of a pair", '{"\\ud800": 1}'), ("NaN", '{"a": NaN}'),
                ("a long number", '{"a": ' + "9" * 10**6 + "}")]
    random.shuffle(changes)
    for name, header in changes[:count]:
        text = header if isinstance(header, str) else json.dumps(header)
        length = random.choice([len(text)] * 5 + [0, 2**20, 2**63, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", length) + text.encode() + bytes(128))
        yield Try(f"a header with {name}, of {length} bytes", run(path))


def damaged(good: Path, sidecar: Any, random: Random, count: int, run: Run) -> Iterator[Try]:
    """Changes single bytes, and leaves out the end."""
    old, safe = good.with_name("old.pth"), good.with_name("safe.safetensors")
    tensors = torch.load(good, weights_only=True)
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, safe)
    for _ in range(count):
        source = random.choice([good, old, safe])
        path, whole = good.with_name(f"damaged{source.suffix}"), bytearray(source.read_bytes())
        describe(path, random.choice([sidecar, None]))
        what = random.choice(["a byte", "a number", "the end"])
        at = random.choice([random.randrange(len(whole)), random.randrange(min(4000, len(whole) - 8)),
                            len(whole) - 1 - random.randrange(3000)])
        if what == "a byte":
            whole[at] ^= 1 << random.randrange(8)
        elif what == "a number":
            whole[at:at + 4] = struct.pack("<I", random.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1]))
        else:
            del whole[at:]
        path.write_bytes(whole)
        yield Try(f"{source.name}, {what} at {at}", run(path), "either" if what != "the end" else "refused")
