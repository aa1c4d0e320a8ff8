"""Names of a detection run's files."""

from utils.runs.detect_files import NameBook, file_name


def test_name_book() -> None:
    book = NameBook()
    assert [book.claim(name) for name in ("a", "A", "a_2", "a", "b", "a_2")] == [
        "a",
        "A_2",
        "a_2_2",
        "a_3",
        "b",
        "a_2_3",
    ]


def test_file_name() -> None:
    assert file_name("traffic light", "0") == "traffic light"
    assert file_name("a/b\\c:d\n", "0") == "a_b_c_d_"
    assert file_name("..", "3") == "3"
    assert file_name("红细胞", "0") == "红细胞"
