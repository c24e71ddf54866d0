"""An output is written completely or not at all, and never over something else."""

import pytest
from data_files import left_private_folder

from minimind_sft.errors import UserError
from minimind_sft.export.staging import check_apart, check_output, staged


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_at_the_end(tmp_path):
    output = tmp_path / "a" / "model"
    with staged(output, []) as folder:
        (folder / "config.json").write_text("{}")
        assert not output.exists()
    assert names(tmp_path / "a") == ["model"] and names(output) == ["config.json"]


def test_files_appear_at_the_end(tmp_path):
    files = [tmp_path / "a.gguf", tmp_path / "a.Modelfile"]
    with staged(files[0], files) as folder:
        for path in files:
            (folder / path.name).write_text("new")
    assert names(tmp_path) == ["a.Modelfile", "a.gguf"]


@pytest.mark.parametrize("error", [UserError("x"), KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left")])
def test_nothing_is_left_after_an_error(error, tmp_path):
    with pytest.raises(type(error) if not isinstance(error, OSError) else UserError) as raised, \
            staged(tmp_path / "model", []) as folder:
        (folder / "config.json").write_text("{}")
        raise error
    assert names(tmp_path) == []
    with pytest.raises(type(error) if not isinstance(error, OSError) else UserError), \
            staged(tmp_path / "a" / "b" / "x.gguf", [tmp_path / "a" / "b" / "x.gguf"]):
        raise error
    assert names(tmp_path) == []
    if isinstance(error, OSError):
        assert str(raised.value) == f"--output {tmp_path / 'model'}: cannot be written (No space left)"


def test_what_a_killed_export_left_is_removed(tmp_path):
    left = left_private_folder(tmp_path)
    (left / "model").mkdir()
    (left / "model" / "model.safetensors").write_text("half of it")
    check_output(tmp_path / "model", [], overwrite=False)
    assert names(tmp_path) == []


def test_overwriting_keeps_the_old_one(tmp_path):
    output = tmp_path / "model"
    for text in ("1", "2", "3"):
        check_output(output, [], overwrite=True)
        with staged(output, []) as folder:
            (folder / "config.json").write_text(text)
    assert names(tmp_path) == ["model", "model.previous"]
    assert [(tmp_path / name / "config.json").read_text() for name in names(tmp_path)] == ["3", "2"]

    file = tmp_path / "a.pth"
    for text in ("1", "2"):
        with staged(file, [file]) as folder:
            (folder / "a.pth").write_text(text)
    assert (file.read_text(), (tmp_path / "a.pth.previous").read_text()) == ("2", "1")


def test_outputs_that_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for output, overwrite, message in (
            ("file", True, "is a file, expected a folder"), ("file/x", True, "cannot write there"),
            ("photos", True, "a folder without config.json"),
            ("model", False, "exists already; .*--overwrite moves it")):
        with pytest.raises(UserError, match=message):
            check_output(tmp_path / output, [], overwrite)
    with pytest.raises(UserError, match="file: exists already; choose another --output, or --overwrite moves it to "):
        check_output(tmp_path / "file", [tmp_path / "file"], overwrite=False)
    check_output(tmp_path / "model", [], overwrite=True)
    check_output(tmp_path / "empty", [], overwrite=False)
    check_output(tmp_path / "new" / "folders" / "x", [], overwrite=False)
    with staged(tmp_path / "empty", []) as folder:
        (folder / "config.json").write_text("{}")
    assert names(tmp_path) == ["empty", "file", "model", "photos"]


def test_an_output_apart_from_its_source(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    for output in (source, tmp_path, source / "gguf" / "a.gguf"):
        with pytest.raises(UserError, match="which --weight names; choose another place"):
            check_apart(output, source)
    check_apart(tmp_path / "other", source)
    file = source / "a.pth"
    check_apart(source / "b.pth", file)
    with pytest.raises(UserError, match="would replace"):
        check_apart(source, file)
