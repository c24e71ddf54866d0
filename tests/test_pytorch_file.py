"""PyTorch's files are read without believing them: nothing is called, and nothing takes memory before it is checked."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minimind_sft.errors import UserError
from minimind_sft.model import pickled, pytorch_file, safetensors_file, tensor_file
from minimind_sft.model.pickled import PickledTensor, Storage, Unknown, read_pickle
from minimind_sft.model.tensor_file import FormatError
from minimind_sft.model.weights_file import read_tensors

CANNOT = "not a weights file that can be read"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        tensors, _, _ = read_tensors(path)
        [tensors[name] for name in tensors]
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


def archive(path: Path, content: bytes, *storages: bytes, **options: int) -> Path:
    """Writes an archive as torch.save does, with any pickle."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("a/data.pkl", content)
        for key, storage in enumerate(storages):
            file.writestr(f"a/data/{key}", storage)
    return path


def described(values: object) -> object:
    """Saves values and reads what their pickle says."""
    file = io.BytesIO()
    torch.save(values, file)
    with zipfile.ZipFile(file) as saved:
        return read_pickle(io.BytesIO(saved.read("archive/data.pkl")))[0]


def test_a_tensor_is_described():
    column = torch.zeros(3, 4, dtype=torch.float16)[:, 1:3]
    assert described({"a": column, "b": [1, (2.5, None), True]}) == {
        "a": PickledTensor("float16", (3, 2), Storage("0", "float16", 24), (4, 1), start=2, end=22),
        "b": [1, (2.5, None), True]}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(("value", "expected"), [
    (torch.nn.Parameter(torch.ones(2)), PickledTensor("float32", (2,), Storage("0", "float32", 8), (1,), 0, 8)),
    (torch.ones(2).to(torch.float8_e4m3fn), PickledTensor("float8_e4m3fn", (2,), Storage("0", None, 2), (1,), 0, 2)),
    (torch.ones(2, device="meta"), PickledTensor("float32 without data", (2,))),
    (torch.ones(2, 3).to_sparse(), PickledTensor("float32 and sparse", (2, 3))),
    (torch.ones(2, 3).to_sparse_csr(), PickledTensor("float32 and sparse", (2, 3))),
    (torch.Size([2, 3]), (2, 3)), (torch.float16, Unknown("torch.float16")),
    (torch.device("cpu"), Unknown("torch.device")), (b"abc", Unknown("_codecs.encode")),
    ({1}, Unknown("__builtin__.set")),
])
def test_other_values_are_described(value, expected):
    assert described(value) == expected


def test_a_call_in_a_pickle_is_not_made():
    """torch.load with weights_only makes this one, and takes 10 TB."""
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\xff\x09\x85R."
    assert read_pickle(io.BytesIO(bomb))[0] == Unknown("builtins.bytearray")


@pytest.mark.parametrize("content", [
    b"", b"\x80\x02", b".", b"\x80\x02N", b"\x80\x02t.", b"\x80\x02R.", b"\x80\x02NN\x81.", b"\x80\x02Q.",
    b"\x80\x02NQ.", b"\x80\x02h\x00.", b"\x80\x02q\x00.", b"\x80\x02(NNu.", b"\x80\x02}(Nu.", b"\x80\x02Na.",
    b"\x80\x02}Na.", b"\x80\x02\x86.", b"I5\n.", b"(lp0\n.", b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00N.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(t R.".replace(b" ", b""),
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00)))tR.",
])
def test_a_broken_pickle_is_refused(content):
    with pytest.raises(FormatError):
        read_pickle(io.BytesIO(content))


def tensor(count: int = 4, offset: int = 0, shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85",
           kind: bytes = b"Float") -> bytes:
    """Returns the pickle of {"a": a tensor}, as torch.save writes it."""
    persistent = b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + (
        b"J" + struct.pack("<i", count) + b"tQ")
    return (b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + persistent + b"J"
            + struct.pack("<i", offset) + shape + strides + b"\x89ccollections\nOrderedDict\n)RtRs.")


def test_a_pickle_of_one_s_own_is_read(tmp_path):
    path = archive(tmp_path / "a.pth", tensor(), struct.pack("<4f", 1, 2, 3, 4))
    assert read_tensors(path)[0]["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("changed", [
    {"offset": 1}, {"offset": -1}, {"count": 3}, {"count": -4}, {"shape": b"K\x05\x85"}, {"strides": b"K\x02\x85"},
    {"shape": b"K\x04K\x02\x86"}, {"shape": b"J\xff\xff\xff\xff\x85"}, {"shape": b"X\x01\x00\x00\x004\x85"},
    {"strides": b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01\x85"}, {"kind": b"Other"}, {"count": 8},
])
def test_a_tensor_that_reaches_beyond_its_data_is_refused(tmp_path, changed):
    path = archive(tmp_path / "a.pth", tensor(**changed), bytes(16))
    assert refused(path).startswith(f"{CANNOT} (damaged")


def test_data_that_is_not_there_is_refused(tmp_path):
    assert refused(archive(tmp_path / "a.pth", tensor())) == f"{CANNOT} ({tensor_file.TOO_SHORT})"


def test_a_small_file_of_large_tensors_is_refused(tmp_path):
    """The same number a thousand million times, views of the same numbers, and zeros in few bytes."""
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "a.pth")
    torch.save({str(i): tensor for i, tensor in enumerate([torch.zeros(10**6)] * 300)}, tmp_path / "b.pth")
    archive(tmp_path / "c.pth", tensor(2**24 + 1, 0, b"J\x01\x00\x00\x01\x85"), bytes(2**26 + 4),
            compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    for name, size in (("a", "4,000"), ("b", "1,200"), ("c", "67")):
        start = f"its tensors would take {size} MB, but the file has only "
        assert refused(tmp_path / f"{name}.pth").startswith(start)


def test_tensors_that_share_their_numbers_are_read(tmp_path):
    one = torch.arange(6.0)
    torch.save({"a": one, "b": one, "c": one[2:4], "d": one[0].expand(5)}, tmp_path / "a.pth")
    tensors = read_tensors(tmp_path / "a.pth")[0]
    assert [tensors[name].tolist() for name in "bcd"] == [[0, 1, 2, 3, 4, 5], [2, 3], [0] * 5]


@pytest.mark.parametrize(("name", "value", "message"), [
    ("MAX_BYTES", 50, "its pickle is larger than one that names tensors"),
    ("MAX_DIRECTORY", 50, "it has more records than a state dict"),
])
def test_an_archive_has_limits(tmp_path, monkeypatch, name, value, message):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    monkeypatch.setattr(pytorch_file, name, value)
    assert refused(tmp_path / "a.pth") == f"{CANNOT} ({message})"


def test_a_pickle_has_limits(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    monkeypatch.setattr(pickled, "MAX_OPERATIONS", 20)
    assert refused(tmp_path / "a.pth") == f"{CANNOT} (it holds too many objects for a state dict)"


def with_comment(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"hello"


def with_another_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("b/data.pkl", tensor())


def with_byte_order(path: Path) -> None:
    archive(path, tensor(), bytes(16))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/byteorder", b"big")


def with_a_wrong_place(path: Path) -> None:
    """The end of an archive says where its directory is."""
    whole = archive(path, tensor(), bytes(16)).read_bytes()
    path.write_bytes(whole[:-6] + struct.pack("<I", 2**31) + whole[-2:])


def with_lzma(path: Path) -> None:
    archive(path, tensor(), bytes(16), compression=zipfile.ZIP_LZMA)


@pytest.mark.parametrize(("change", "message"), [
    (with_comment, pytorch_file.OTHER_ARCHIVE), (with_another_pickle, pytorch_file.OTHER_ARCHIVE),
    (with_byte_order, "a machine with another byte order wrote it"), (with_lzma, pytorch_file.OTHER_ARCHIVE),
    (with_a_wrong_place, pytorch_file.OTHER_ARCHIVE),
])
def test_an_archive_that_torch_save_does_not_write_is_refused(tmp_path, change: Callable[[Path], None], message):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    change(tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth") == f"{CANNOT} ({message})"


def test_an_old_file_with_too_few_bytes_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(2), "b": torch.ones(100)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-8])
    assert refused(path) == f"{CANNOT} ({tensor_file.TOO_SHORT})"


@pytest.mark.parametrize("save", [
    lambda tensors, path: torch.save(tensors, path), lambda tensors, path: save_file(tensors, path)])
def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path, save):
    """A mapped file would end the process."""
    path = tmp_path / "a.pth"
    save({"a": torch.ones(2**20), "b": torch.ones(2**20)}, path)
    tensors, _, _ = read_tensors(path)
    path.write_bytes(path.read_bytes()[:2**20])
    with pytest.raises(UserError, match=r"a\.pth: became shorter while it was read"):
        [tensors[name] for name in tensors]


@pytest.mark.parametrize("count", [0, 1, 100, 300_000])
@pytest.mark.parametrize("old", [False, True])
def test_numbers_are_those_that_were_saved(tmp_path, count, old):
    saved = torch.randn(2, count + 1)[:, :count].T
    torch.save({"a": saved, "b": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    source = pytorch_file.PytorchFile(tmp_path / "a.pth", *pytorch_file.read_content(tmp_path / "a.pth"))
    assert torch.equal(source.read("a"), saved) and source.read("b").tolist() == [1, 1, 1]


def test_equal_hashes_do_not_take_quadratic_time():
    """Whole numbers that leave the same rest when divided by 2^61 - 1 have equal hashes."""
    keys = b"".join(pickle.dumps(i * (2**61 - 1) + 2**70, protocol=2)[2:-1] + b"N" for i in range(200_000))
    assert len(read_pickle(io.BytesIO(b"\x80\x02}(" + keys + b"u."))[0]) == 1


# Safetensors


def safetensors(path: Path, header: str | bytes, data: bytes = bytes(8), length: int | None = None) -> Path:
    header = header.encode() if isinstance(header, str) else header
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


GOOD = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'


def test_a_header_of_one_s_own_is_read(tmp_path):
    path = safetensors(tmp_path / "a.safetensors", GOOD, struct.pack("<2f", 1, 2))
    assert read_tensors(path)[0]["a"].tolist() == [1, 2]


@pytest.mark.parametrize(("header", "reason"), [
    (GOOD.replace("F32", "F16"), "its header has no valid data_offsets for a"),
    (GOOD.replace("[2]", "[3]"), "its header has no valid data_offsets for a"),
    (GOOD.replace("[2]", "[4611686018427387904, 4]"), "its header has no valid data_offsets for a"),
    (GOOD.replace("[2]", "[-2]"), "its header has no valid shape for a"),
    (GOOD.replace("[2]", "[2.0]"), "its header has no valid shape for a"),
    (GOOD.replace("[2]", "[true]"), "its header has no valid shape for a"),
    (GOOD.replace("[2]", "2"), "its header has no valid shape for a"),
    (GOOD.replace('"F32"', "[]"), "its header has no valid dtype for a"),
    (GOOD.replace("[0, 8]", "[8, 0]"), "its header has no valid data_offsets for a"),
    (GOOD.replace("[0, 8]", "[8, 16]"), "damaged: its tensors overlap, or there are gaps between them"),
    (GOOD.replace("[0, 8]", "[0]"), "its header has no valid data_offsets for a"),
    ('{"a": 3}', "its header has no valid dtype for a"),
    ('{"a": ' + GOOD[6:-1] + ", " + GOOD[1:], "its header: a is there twice"),
    ("[]", "its header is no JSON object"), ("{", "its header: expected a JSON object, found broken JSON at column 2: "
                                             "Expecting property name enclosed in double quotes"),
    ("{}", "damaged: it has more bytes than its tensors"), (b'{"\xff": 1}', "its header is not valid UTF-8"),
])
def test_a_wrong_header_is_refused(tmp_path, header, reason):
    assert refused(safetensors(tmp_path / "a.safetensors", header)) == f"{CANNOT} ({reason})"


def test_a_header_has_a_limit(tmp_path, monkeypatch):
    path = safetensors(tmp_path / "a.safetensors", GOOD)
    monkeypatch.setattr(safetensors_file, "MAX_HEADER", 50)
    assert refused(path) == f"{CANNOT} (its header has {len(GOOD)} bytes, expected at most 50)"
    safetensors(path, GOOD, length=2**63)
    assert refused(path).startswith(f"{CANNOT} (its header has 9,223,372,036,854,775,808 bytes, the file ")


def test_a_long_name_is_refused(tmp_path):
    save_file({"x" * 501: torch.ones(1)}, tmp_path / "a.safetensors")
    assert refused(tmp_path / "a.safetensors") == f"{'x' * 500}...: a name of 501 characters, expected at most 500"
