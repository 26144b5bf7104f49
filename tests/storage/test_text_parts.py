"""Text in pieces: one whole file, or the old one."""

import pytest

from depthg.storage.whole_files import write_text_parts


def test_pieces_make_one_file_or_none(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    write_text_parts(path, (f"{number} ü\n" for number in range(3)))
    assert path.read_bytes().decode() == "0 ü\n1 ü\n2 ü\n"

    def parts():
        yield "half"
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_text_parts(path, parts())
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"] and path.read_text("utf-8").startswith("0 ü")
