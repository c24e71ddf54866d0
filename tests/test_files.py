"""Files that are not what they seem."""

import pytest

from minimind_sft.errors import UserError
from minimind_sft.files import refuse_lfs_pointer


def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(tmp_path):
    pointer = tmp_path / "weights.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(UserError, match=r"weights\.pth: a Git LFS pointer.*run git lfs pull"):
        refuse_lfs_pointer(pointer)


def test_other_files_pass(tmp_path):
    (tmp_path / "short").write_bytes(b"version")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("short", "empty", "absent"):
        refuse_lfs_pointer(tmp_path / name)
