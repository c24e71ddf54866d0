"""Reading tensors from files of every kind; others are refused in one line with a remedy."""

import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY

from minimind_sft.errors import UserError
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.weights_file import read_tensors

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 52428800\n"


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in MiniMindForCausalLM(TINY).half().state_dict().items()}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_tensors(path)
    message = str(error.value)
    assert "\n" not in message and "weights_only" not in message and "\x1b" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("prefix", "notice"), [
    ("module.", "the prefix module. was removed"),
    ("_orig_mod.", "the prefix _orig_mod. was removed"),
    ("_orig_mod.module.", "the prefix _orig_mod. and module. was removed"),
    ("module._orig_mod.", "the prefix _orig_mod. and module. was removed"),
])
def test_prefixes_of_wrappers_are_removed(tmp_path, state_dict, prefix, notice):
    torch.save({prefix + name: tensor for name, tensor in state_dict.items()}, tmp_path / "a.pth")
    tensors, _, notices = read_tensors(tmp_path / "a.pth")
    assert same(tensors, state_dict)
    assert len(notices) == 1 and notice in notices[0]


def test_prefixes_of_compiled_layers_are_removed(tmp_path, state_dict):
    torch.save({re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", name): tensor for name, tensor in state_dict.items()},
               tmp_path / "a.pth")
    tensors, _, notices = read_tensors(tmp_path / "a.pth")
    assert same(tensors, state_dict)
    assert "_orig_mod." in notices[0]


def test_line_ends_in_names_are_escaped_in_errors(tmp_path):
    torch.save({"x\ny": torch.ones(2, dtype=torch.int8)}, tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth").startswith(r": x\ny: is int8")


def test_a_repeated_name_is_refused(tmp_path):
    torch.save({"module.x": torch.ones(1), "x": torch.ones(1)}, tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth") == ": holds x twice, once as x"


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_weights_are_read_from_a_checkpoint(tmp_path, state_dict, key):
    """Like MiniMind's `*_resume.pth` and checkpoints of other projects."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    torch.save({key: state_dict, "optimizer": optimizer.state_dict(), "epoch": 1, "step": 300, "world_size": 1,
                "scaler": {}, "wandb_id": None}, tmp_path / "a_resume.pth")
    tensors, _, notices = read_tensors(tmp_path / "a_resume.pth")
    assert same(tensors, state_dict)
    assert notices == [f"{tmp_path / 'a_resume.pth'} is a checkpoint (epoch 1, step 300); only its weights ({key}) "
                       "are used"]


def test_prefixes_inside_a_checkpoint_are_removed(shared, tmp_path):
    plain = torch.load(shared / "reference/minimind/dense/weights.pth", weights_only=True)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in plain.items()}, "epoch": 0},
               tmp_path / "a.pth")
    tensors, _, notices = read_tensors(tmp_path / "a.pth")
    assert same(tensors, plain)
    assert len(notices) == 2


def test_the_content_decides_the_format_and_not_the_suffix(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "a.pth")
    torch.save(state_dict, tmp_path / "b.safetensors")
    for name, kinds in (("a.pth", "holds safetensors, not PyTorch's format"),
                        ("b.safetensors", "holds PyTorch's format, not safetensors")):
        tensors, _, notices = read_tensors(tmp_path / name)
        assert same(tensors, state_dict)
        assert len(notices) == 1 and kinds in notices[0]


def test_the_format_of_old_pytorch_is_read(tmp_path, state_dict):
    torch.save(state_dict, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    tensors, _, notices = read_tensors(tmp_path / "a.pth")
    assert same(tensors, state_dict) and notices == []


@pytest.mark.parametrize("new_format", [True, False])
def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path, new_format):
    torch.save(MiniMindForCausalLM(TINY), tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    assert refused(tmp_path / "a.pth") == (
        ": holds a Python object (minimind_sft.model.decoder.MiniMindForCausalLM), not only tensors, and reading it "
        "would run its code: save model.state_dict() instead of the model where the file was made")


def test_loading_runs_no_code(tmp_path):
    class Mischief:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (tmp_path / "a.pth").write_bytes(pickle.dumps({"x": Mischief()}))
    assert refused(tmp_path / "a.pth").startswith(": not a weights file that can be read")
    torch.save({"x": Mischief()}, tmp_path / "b.pth")
    assert refused(tmp_path / "b.pth").startswith(": holds a Python object (")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"hello world, this is no weights file", b"PK\x03\x04 and then nothing",
                                     b"\x80\x02.", b"<!DOCTYPE html><html>404</html>", b"\xff" * 100, b"\x00" * 100])
def test_other_files_are_refused_in_one_line(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert refused(path).startswith(": not a weights file that can be read")


def test_pointers_and_folders_are_named(tmp_path):
    (tmp_path / "a.pth").write_text(LFS_POINTER)
    assert refused(tmp_path / "a.pth").startswith(": a Git LFS pointer")
    (tmp_path / "b.pth").mkdir()
    assert refused(tmp_path / "b.pth") == ": a folder, expected a weights file (.pth or .safetensors)"


@pytest.mark.parametrize(("tensor", "message"), [
    (torch.ones(2, 4, dtype=torch.int8), "is int8, expected float16, bfloat16 or float32; quantized weights cannot be"),
    (torch.ones(2, 4, dtype=torch.int64), "is int64, expected float16"),
    (torch.ones(2, 4, dtype=torch.bool), "is bool, expected float16"),
    (torch.ones(2, 4, dtype=torch.complex64), "is complex64, expected float16, bfloat16 or float32"),
    (torch.ones(2, 4).to(torch.float8_e4m3fn), "is float8_e4m3fn, expected float16"),
    (torch.ones(2, 4).to_sparse(), "is float32 and sparse, expected float16"),
    (torch.tensor(1.0), "is a single number, expected a vector or a matrix"),
    (torch.ones(0, 4), r"is empty (shape [0, 4])"),
    (torch.ones(2, 4, device="meta"), "is float32 without data, expected float16"),
])
def test_a_tensor_that_cannot_be_a_weight_is_refused(tmp_path, tensor, message):
    torch.save({"fine": torch.ones(2), "model.norm.weight": tensor}, tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth").startswith(f": model.norm.weight: {message}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_weights_are_read(tmp_path, state_dict, dtype):
    torch.save({name: tensor.to(dtype) for name, tensor in state_dict.items()}, tmp_path / "a.pth")
    tensors, _, _ = read_tensors(tmp_path / "a.pth")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


@pytest.mark.parametrize(("content", "message"), [
    ([1, 2], "expected a state dict (names and tensors), found a list"),
    (torch.ones(2), "expected a state dict (names and tensors), found a tensor"),
    ({}, "expected a state dict (names and tensors), found an empty one"),
    ({"x": 3}, "expected a state dict (names and tensors), found 3 at 'x'"),
    ({7: torch.ones(2)}, "expected a state dict (names and tensors), found a tensor at 7"),
    ({"model": {"x": 1}}, "expected a state dict (names and tensors), found a dict at 'model'"),
])
def test_other_objects_than_a_state_dict_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    assert refused(tmp_path / "a.pth") == f": {message}"


def test_damaged_files_never_cause_a_traceback(tmp_path, state_dict):
    torch.save(state_dict, tmp_path / "a.pth")
    save_file(state_dict, tmp_path / "a.safetensors")
    generator = torch.Generator().manual_seed(0)
    refusals = 0
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(8):
                damaged[int(torch.randint(len(whole), (), generator=generator))] ^= 1 << 3
            path.write_bytes(damaged[:int(torch.randint(len(whole), (), generator=generator)) or 1])
            try:
                read_tensors(path)
            except UserError as error:
                assert "weights_only" not in str(error) and "\n" not in str(error)
                refusals += 1
    assert refusals > 100


def test_safetensors_metadata_is_ignored(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "a.safetensors", metadata={"format": "pt", "note": json.dumps({"x": 1})})
    assert same(read_tensors(tmp_path / "a.safetensors")[0], state_dict)


def test_a_text_file_is_refused(tmp_path):
    (tmp_path / "a.pth").write_text("hello world\n", encoding="utf-8")
    assert refused(tmp_path / "a.pth") == (
        ": not a weights file that can be read (it is something else, such as text, or damaged)")


def repacked(path: Path, change=lambda data: data, **options: int) -> None:
    """Writes the records of an archive anew, each tensor's through `change`."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in records.items():
            archive.writestr(name, change(data) if "/data/" in name else data)


def test_a_compressed_archive_is_read(tmp_path, state_dict):
    """It cannot be mapped into memory; torch.load would take the compressed bytes for numbers."""
    torch.save(state_dict, tmp_path / "a.pth")
    repacked(tmp_path / "a.pth", compression=zipfile.ZIP_DEFLATED)
    assert same(read_tensors(tmp_path / "a.pth")[0], state_dict)


def test_an_archive_with_too_few_bytes_is_refused(tmp_path, state_dict):
    """torch.load would take the bytes of the next record for the rest."""
    torch.save(state_dict, tmp_path / "a.pth")
    repacked(tmp_path / "a.pth", change=lambda data: data[:len(data) // 2])
    assert refused(tmp_path / "a.pth") == (
        ": not a weights file that can be read (damaged: it has fewer bytes than its tensors)")


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("photo.txt", "hello")
    assert refused(tmp_path / "a.pth") == (
        ": not a weights file that can be read (it is an archive of something else, or damaged)")


def test_a_tensor_can_be_used_after_the_next_was_read(tmp_path, state_dict):
    """Its pages were given back to the system, which brings them again."""
    large = {name: torch.randn(300, 300) for name in "abc"}
    torch.save(large, tmp_path / "a.pth")
    tensors, _, _ = read_tensors(tmp_path / "a.pth")
    held = {name: tensors[name] for name in tensors}
    assert same(held, large)
