"""GGUF files: the gguf package writes and dequantises, gguf_file.py must read the same, or refuse in one line."""

import struct
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf_files import NEEDS_SMOLLM2, smollm2, write

from minimind_sft.errors import UserError
from minimind_sft.gguf_file import GGUFFile

QUANTISED = [gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]


def refusal(path):
    with pytest.raises(UserError) as error:
        GGUFFile(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def header(tensors=0, values=0, magic=b"GGUF", version=3):
    return magic + struct.pack("<IQQ", version, tensors, values)


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def tensor(name="w", shape=(4,), kind=0, offset=0):
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)


def file_of(path, *parts):
    path.write_bytes(b"".join(parts))
    return path


def test_metadata_are_plain_values(tmp_path):
    kinds = gguf.GGUFValueType
    file = GGUFFile(write(tmp_path / "m.gguf", values={
        "a.uint": (7, kinds.UINT32), "a.large": (2**63, kinds.UINT64), "a.negative": (-3, kinds.INT8),
        "a.eps": (1e-6, kinds.FLOAT32), "a.double": (0.1, kinds.FLOAT64), "a.bool": (True, kinds.BOOL),
        "a.text": ("你好\n", kinds.STRING), "a.strings": (["a", "", "é"], kinds.ARRAY),
        "a.numbers": ([1, -2, 3], kinds.ARRAY), "a.bools": ([True, False], kinds.ARRAY)}))
    assert file.metadata == {
        "general.architecture": "llama", "a.uint": 7, "a.large": 2**63, "a.negative": -3, "a.eps": 1e-6,
        "a.double": 0.1, "a.bool": True, "a.text": "你好\n", "a.strings": ["a", "", "é"], "a.numbers": [1, -2, 3],
        "a.bools": [True, False]}
    assert {type(value) for value in file.metadata.values()} == {str, int, float, bool, list}
    assert file.shapes == {}


def test_tensors_are_those_that_were_written(tmp_path):
    rng = np.random.default_rng(0)
    matrix, vector, stack = (rng.standard_normal(shape, np.float32) for shape in ((3, 8), (5,), (2, 3, 4)))
    bf16 = gguf.GGMLQuantizationType.BF16
    path = write(tmp_path / "m.gguf", {"matrix": matrix, "vector": vector, "stack": stack,
                                       "half": matrix.astype(np.float16),
                                       "brain": (gguf.quants.quantize(matrix, bf16), bf16)})
    file = GGUFFile(path)
    assert file.path == path
    assert file.shapes == {"matrix": (3, 8), "vector": (5,), "stack": (2, 3, 4), "half": (3, 8), "brain": (3, 8)}
    for name, expected in (("matrix", matrix), ("vector", vector), ("stack", stack)):
        torch.testing.assert_close(file.read(name), torch.from_numpy(expected), rtol=0, atol=0)
    torch.testing.assert_close(file.read("half"), torch.from_numpy(matrix).half(), rtol=0, atol=0)
    torch.testing.assert_close(file.read("brain"), torch.from_numpy(matrix).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_quantised_tensors_become_float32(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("minimind_sft.gguf_file.DEQUANTISED_AT_ONCE", 3 * 64)  # three rows at a time
    values = np.random.default_rng(0).standard_normal((2, 4, 64), np.float32)
    stored = gguf.quants.quantize(values, kind)
    file = GGUFFile(write(tmp_path / "m.gguf", {"w": (stored, kind)}))
    assert file.shapes == {"w": (2, 4, 64)}
    expected = gguf.quants.dequantize(stored, kind)
    torch.testing.assert_close(file.read("w"), torch.from_numpy(expected), rtol=0, atol=0)


def test_a_k_quantised_vector_becomes_float32(tmp_path):
    kind = gguf.GGMLQuantizationType.Q6_K
    stored = np.random.default_rng(0).integers(0, 100, 210, np.uint8)
    file = GGUFFile(write(tmp_path / "m.gguf", {"w": (stored, kind)}))
    expected = gguf.quants.dequantize(stored[None], kind)[0]
    torch.testing.assert_close(file.read("w"), torch.from_numpy(expected), rtol=0, atol=0)


@pytest.mark.skipif(smollm2() is None, reason=NEEDS_SMOLLM2)
def test_smollm2_has_what_the_gguf_package_finds():
    path = smollm2()
    file, theirs = GGUFFile(path), gguf.GGUFReader(path)
    assert len(file.shapes) == len(theirs.tensors) == 272
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    for name in ("blk.3.attn_k.weight", "output_norm.weight"):
        found = next(tensor for tensor in theirs.tensors if tensor.name == name)
        expected = gguf.quants.dequantize(found.data, found.tensor_type)
        torch.testing.assert_close(file.read(name), torch.from_numpy(expected.copy()), rtol=0, atol=0)


def test_files_that_are_something_else_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", encoding="utf-8")
    assert refusal(path) == "a Git LFS pointer, not the file itself: run git lfs pull in its repository"
    assert refusal(file_of(path, b"")) == "not a GGUF file (it begins with b'', expected b'GGUF')"
    assert refusal(file_of(path, header(magic=b"ggjt"))) == "not a GGUF file (it begins with b'ggjt', expected b'GGUF')"
    assert refusal(tmp_path) == "a folder, expected a GGUF file"
    assert refusal(tmp_path / "none.gguf") == "cannot be read (No such file or directory)"


def test_versions_and_byte_orders_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    assert refusal(file_of(path, header(version=1))).startswith("GGUF version 1, expected 2 or 3; ")
    assert refusal(file_of(path, header(version=4))).startswith("GGUF version 4, expected 2 or 3; ")
    assert refusal(write(path, endian=gguf.GGUFEndian.BIG)).startswith("a big-endian GGUF file; ")
    assert GGUFFile(file_of(path, header(version=2))).metadata == {}


def test_parts_of_a_model_are_refused(tmp_path):
    advice = "join them first: llama-gguf-split --merge FIRST_PART MODEL.gguf"
    part = file_of(tmp_path / "m-00001-of-00002.gguf", header())
    assert refusal(part) == f"one of several files that make a model together; {advice}"
    renamed = write(tmp_path / "m.gguf", values={"split.count": (2, gguf.GGUFValueType.UINT16)})
    assert refusal(renamed) == f"split.count: one of 2 files that make a model together; {advice}"
    only = write(tmp_path / "m-00001-of-00001.gguf", values={"split.count": (1, gguf.GGUFValueType.UINT16)})
    assert GGUFFile(only).metadata["split.count"] == 1


def test_a_file_truncated_anywhere_is_refused(tmp_path):
    path = write(tmp_path / "m.gguf", {"w": np.ones((4, 8), np.float32)},
                 {"a.tokens": (["ab", "cd"], gguf.GGUFValueType.ARRAY)})
    whole = path.read_bytes()
    GGUFFile(path)
    for size in range(4, len(whole)):
        assert "truncated" in refusal(file_of(path, whole[:size])), size


def test_sizes_that_no_file_has_are_refused_before_anything_is_made(tmp_path):
    path, end = tmp_path / "m.gguf", "it is truncated or damaged, fetch it again"
    huge = 2**62
    assert refusal(file_of(path, header(tensors=huge))).endswith(end)
    assert refusal(file_of(path, header(values=huge))).endswith(end)
    key = header(values=1) + string("a.b")
    assert refusal(file_of(path, key, struct.pack("<IQ", 8, huge))).startswith("a.b: 4,611,686,018,427,387,904 bytes")
    assert refusal(file_of(path, key, struct.pack("<IIQ", 9, 8, 1000))).startswith("a.b: 1,000 strings")
    assert refusal(file_of(path, key, struct.pack("<IIQ", 9, 4, huge))).startswith("a.b: a list of 4,611,686,018,")
    assert refusal(file_of(path, key, struct.pack("<IIQ", 9, 9, 1), b"\0" * 32)) == (
        "a.b: metadata of the unknown type 9")
    assert refusal(file_of(path, key, struct.pack("<IQ", 13, 0))) == "a.b: metadata of the unknown type 13"
    with path.open("wb") as file:  # a sparse file is as large as it says
        file.write(key + struct.pack("<IQ", 8, 1 << 33))
        file.truncate(1 << 34)
    assert refusal(path).endswith("a header of more than 268,435,456 bytes: the file is damaged")


def test_impossible_tensors_are_refused(tmp_path):
    path = tmp_path / "m.gguf"

    def with_tensor(entry, count=1):
        return file_of(path, header(tensors=count), entry, b"\0" * 256)

    assert refusal(with_tensor(tensor(kind=99))) == (
        "w: the unknown type 99: a newer gguf package may know it (pip install -U gguf)")
    assert refusal(with_tensor(tensor(kind=gguf.GGMLQuantizationType.Q8_K.value, shape=(256,)))) == (
        "w: is Q8_K, which the gguf package cannot dequantise; use a file of another quantisation, such as Q8_0 or F16")
    assert refusal(with_tensor(tensor(kind=gguf.GGMLQuantizationType.I32.value))).startswith("w: is I32, which ")
    assert refusal(with_tensor(tensor(kind=8, shape=(2, 16)))) == (
        "w: rows of 16 values, expected a multiple of 32 (Q8_0)")
    assert refusal(with_tensor(tensor(shape=(0, 4)))) == "w: is empty (shape [0, 4])"
    assert refusal(with_tensor(tensor(shape=(1,) * 5))) == "w: 5 dimensions, expected 1 to 4"
    assert refusal(with_tensor(tensor(shape=(2**40, 2**40)))).startswith("w: ends at byte ")
    assert refusal(with_tensor(tensor(offset=2**63))).startswith("w: ends at byte ")
    assert refusal(with_tensor(tensor() * 2, count=2)) == "w: the file has this tensor twice"
    other = "the file is damaged, fetch it again"
    assert refusal(with_tensor(tensor() + tensor("v"), count=2)) == f"v: begins at byte 0 of the data, not 32: {other}"
    assert refusal(with_tensor(tensor(offset=64))) == f"w: begins at byte 64 of the data, not 0: {other}"
    assert len(refusal(with_tensor(tensor("w" * 1000, kind=99)))) < 200


def test_impossible_metadata_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    one = string("a") + struct.pack("<IB", 0, 1)
    assert refusal(file_of(path, header(values=2), one, one)) == "a: the metadata have it twice"
    assert refusal(file_of(path, header(values=1), struct.pack("<Q", 1), b"\xff", b"\0" * 8)) == (
        "the metadata: not valid UTF-8")
    for alignment in (0, 33):
        values = string("general.alignment") + struct.pack("<II", 4, alignment)
        assert refusal(file_of(path, header(values=1), values)) == (
            f"general.alignment: is {alignment}, expected a power of two")


def test_a_missing_package_is_one_clear_line(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", {"w": np.ones(4, np.float32)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"^GGUF files need the gguf package: pip install 'minimind-sft\[gguf\]'"):
        GGUFFile(path)
