"""Finding the weights file that a name means."""

import json
from pathlib import Path

import pytest

from minimind_sft.errors import UserError
from minimind_sft.model.config import PRESETS
from minimind_sft.model.finding import find_weights


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_a_name_means_the_one_file_that_has_it(tmp_path):
    touch(tmp_path, "a_512.pth", "a_512_metrics.jsonl", "a_512.json", "ab_512.pth")
    assert find_weights("a", tmp_path, flag="--w") == tmp_path / "a_512.pth"


@pytest.mark.parametrize(("size", "moe", "found"), [
    (512, 0, "a_512.pth"), (512, 1, "a_512_moe.pth"), (768, None, "a_768.safetensors")])
def test_flags_choose_among_several(tmp_path, size, moe, found):
    touch(tmp_path, "a_512.pth", "a_512_moe.pth", "a_768.safetensors")
    assert find_weights("a", tmp_path, flag="--w", hidden_size=size, use_moe=moe) == tmp_path / found


def test_several_matching_files_are_listed_and_none_is_chosen(tmp_path):
    touch(tmp_path, "a_512.pth", "a_768.pth")
    with pytest.raises(UserError, match=r"--w a means several files: .*a_512\.pth \(no sidecar, 0\.0 MiB\), .*"
                       r"a_768\.pth \(no sidecar, 0\.0 MiB\); choose by --hidden_size 512 or 768, or the path "
                       r"\(--w .*a_512\.pth\)$"):
        find_weights("a", tmp_path, flag="--w")


def test_the_bundled_weights_are_found_from_another_folder(tmp_path, repository):
    assert find_weights("pretrain", tmp_path, flag="--w") == repository / "out/pretrain_256.pth"


def test_a_missing_file_is_reported_with_the_command_and_existing_files(tmp_path):
    touch(tmp_path, "other_512.pth")
    with pytest.raises(UserError) as error:
        find_weights("full_sft", tmp_path, flag="--weight", hidden_size=640)
    assert "no full_sft_640[_moe].pth or .safetensors" in str(error.value)
    assert "python trainer/train_full_sft.py makes it" in str(error.value)
    assert "other_512.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_is_taken_as_a_path(tmp_path):
    touch(tmp_path, "x.pth")
    assert find_weights(str(tmp_path / "x.pth"), "nowhere", flag="--w") == tmp_path / "x.pth"
    with pytest.raises(UserError, match="no such file or folder"):
        find_weights(str(tmp_path / "y.pth"), "nowhere", flag="--w")


def test_python_s_none_may_mean_a_new_model(tmp_path):
    with pytest.raises(UserError, match=r"^--from_weight None: no None_.*; did you mean none\?; there is"):
        find_weights("None", tmp_path, flag="--from_weight")


def describe(folder: Path, name: str, **sidecar) -> None:
    """Writes an empty weights file with this sidecar."""
    touch(folder, f"{name}.pth")
    (folder / f"{name}.json").write_text(json.dumps(sidecar))


def test_the_preset_decides_among_several(tmp_path):
    touch(tmp_path, "a_512.pth", "a_512_moe.pth", "a_768.pth", "a_768_moe.pth")
    for preset, found in (("26m", "a_512.pth"), ("26m-moe", "a_512_moe.pth"), ("64m", "a_768.pth")):
        assert find_weights("a", tmp_path, flag="--w", preset=PRESETS[preset]) == tmp_path / found
    with pytest.raises(UserError, match=r"--hidden_size 512 or 768, --use_moe 0 or 1, or the path"):
        find_weights("a", tmp_path, flag="--w", preset=PRESETS["demo"])


def test_the_tokenizer_decides_among_several(tmp_path):
    describe(tmp_path, "a_256", tokenizer="theirs", model={"hidden_size": 256, "num_hidden_layers": 4},
             parameters=4_000_512)
    describe(tmp_path, "a_512", tokenizer="mine")
    for tokenizer, found in ((lambda: "mine", "a_512.pth"), (lambda: "theirs", "a_256.pth")):
        assert find_weights("a", tmp_path, flag="--w", tokenizer=tokenizer) == tmp_path / found
    with pytest.raises(UserError, match=r"a_256\.pth \(256 x 4 layers, 4\.0M parameters\), .*; none of them was "
                                        r"trained with the tokenizer in use: give --tokenizer_path FOLDER"):
        find_weights("a", tmp_path, flag="--w", tokenizer=lambda: "another")
    touch(tmp_path, "a_768.pth")  # without a sidecar it may be of any tokenizer
    with pytest.raises(UserError, match="means several files"):
        find_weights("a", tmp_path, flag="--w", tokenizer=lambda: "mine")


def test_another_tokenizer_does_not_exclude_the_only_file(tmp_path):
    """The difference is reported when the weights are read."""
    describe(tmp_path, "a_256", tokenizer="theirs")
    assert find_weights("a", tmp_path, flag="--w", tokenizer=lambda: "mine") == tmp_path / "a_256.pth"


@pytest.mark.parametrize(("name", "found"), [
    ("a_512", "a_512.pth"), ("a_512.pth", "a_512.pth"), ("a_512_moe", "a_512_moe.pth"), ("own", "own.safetensors"),
    ("own.safetensors", "own.safetensors")])
def test_a_file_name_needs_no_path(tmp_path, name, found):
    touch(tmp_path, "a_512.pth", "a_512_moe.pth", "own.safetensors")
    assert find_weights(name, tmp_path, flag="--w") == tmp_path / found


def test_a_file_name_is_first_looked_up_in_the_working_directory(tmp_path, monkeypatch, repository):
    touch(tmp_path, "a_512.pth")
    touch(tmp_path / "here", "a_512.pth")
    monkeypatch.chdir(tmp_path / "here")
    assert find_weights("a_512.pth", tmp_path, flag="--w").samefile(tmp_path / "here/a_512.pth")
    assert find_weights("pretrain_256.pth", tmp_path, flag="--w") == repository / "out/pretrain_256.pth"
    with pytest.raises(UserError, match=rf"--w b.pth: no such file or folder \(looked here and in {tmp_path}, .*out\)"):
        find_weights("b.pth", tmp_path, flag="--w")


def test_a_folder_of_hugging_face_and_a_gguf_file_are_paths(tmp_path, monkeypatch):
    touch(tmp_path / "SmolLM2-135M", "config.json")
    touch(tmp_path / "adapter", "adapter_config.json")
    touch(tmp_path, "q4.gguf")
    monkeypatch.chdir(tmp_path)
    for name in ("./SmolLM2-135M", "SmolLM2-135M/", str(tmp_path / "adapter"), "q4.gguf", "./q4.gguf", ".", ".."):
        assert find_weights(name, "nowhere", flag="--w").samefile(name)
    with pytest.raises(UserError, match=r"; for the folder of that name give --w \./SmolLM2-135M; there is"):
        find_weights("SmolLM2-135M", tmp_path, flag="--w")


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_a_file_of_a_hugging_face_folder_means_the_folder(tmp_path, name):
    """So its tokenizer is found as well."""
    touch(tmp_path / "base", "config.json", name)
    assert find_weights(f"{tmp_path}/base/{name}", tmp_path, flag="--w") == tmp_path / "base"
    touch(tmp_path / "single", "model.safetensors")
    assert find_weights("model.safetensors", tmp_path / "single", flag="--w") == tmp_path / "single/model.safetensors"


@pytest.mark.parametrize(("name", "meant"), [
    ("pretrian", "pretrain"), ("ful_sft", "full_sft"), ("full_stf_64", "full_sft"), ("./SmolLM", "SmolLM2"),
    ("full_sft_46.pth", "full_sft_64.pth"), ("SmolLM3/", "SmolLM2")])
def test_a_mistyped_name_is_guessed_in_the_message(tmp_path, monkeypatch, name, meant):
    touch(tmp_path, "full_sft_64.pth", "mine_64_moe.safetensors", "notes.txt")
    touch(tmp_path / "SmolLM2", "config.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"; did you mean {meant}\?"):
        find_weights(name, tmp_path, flag="--w")
    with pytest.raises(UserError) as error:
        find_weights("quite_another", tmp_path, flag="--w")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("sidecar", ["[]", "{", '{"model": 3, "parameters": "many"}'])
def test_an_unreadable_sidecar_is_ignored(tmp_path, sidecar):
    touch(tmp_path, "a_512.pth", "a_768.pth")
    (tmp_path / "a_512.json").write_text(sidecar)
    with pytest.raises(UserError, match=r"a_512\.pth \(no sidecar, 0\.0 MiB\)"):
        find_weights("a", tmp_path, flag="--w")


def test_a_name_on_hugging_face_s_hub_is_answered_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UserError, match=r"; to fetch it: hf download \S+/SmolLM2-135M --local-dir SmolLM2-135M$"):
        find_weights("HuggingFaceTB/SmolLM2-135M", tmp_path, flag="--w")
    for name in ("nowhere/mine_256.pth", "./mine", "a/b/c"):
        with pytest.raises(UserError, match=r"no such file or folder$"):
            find_weights(name, tmp_path, flag="--w")


def test_a_path_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)$"):
        find_weights(f"./{'a' * 300}.gguf", tmp_path, flag="--weight")


def test_an_adapter_is_no_model(tmp_path):
    touch(tmp_path, "lora_style_512.safetensors")
    (tmp_path / "lora_style_512.json").write_text('{"stage": "lora"}')
    with pytest.raises(UserError, match=r"; .*lora_style_512\.safetensors is an adapter, which --lora_weight takes; "
                       r"there is .*pretrain_256\.pth$"):
        find_weights("style", tmp_path, flag="--weight")


@pytest.mark.parametrize("odd", [[1], {"a": 1}, "x\x1b[2J", 1.5, -1, 10**300, None, True])
def test_odd_values_in_sidecars_of_several_files_are_not_shown(tmp_path, odd):
    """Their faults are named when the weights are read."""
    for name in ("a_x", "a_y"):
        touch(tmp_path, f"{name}.pth")
        model = {"hidden_size": odd, "num_hidden_layers": odd, "use_moe": odd}
        (tmp_path / f"{name}.json").write_text(json.dumps({"model": model, "parameters": odd, "tokenizer": odd}))
    touch(tmp_path, "a_16.pth", "a_32.pth")
    with pytest.raises(UserError, match=r"^--w a means several files: ") as error:
        find_weights("a", tmp_path, flag="--w", tokenizer=lambda: "0123")
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 1000
