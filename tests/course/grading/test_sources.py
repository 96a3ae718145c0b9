"""Whose a file is: the names that course systems give to what they export, and zips made on Chinese Windows."""

import zipfile

import pytest

from labkit.course.grading.sources import find, member_name
from tests.course.grading.classroom import packed

EXPORTS = {  # as each system's documentation describes its export
    "Moodle": ("Li Hua_12345_assignsubmission_file_/02_lora.ipynb", "Li Hua_12345"),
    "Moodle without the last underscore": ("Li Hua_12345_assignsubmission_file/02_lora.ipynb", "Li Hua_12345"),
    "Canvas": ("smithann_12345_678901_02_lora.ipynb", "smithann_12345"),
    "Canvas, late": ("smithann_LATE_12345_678901_02_lora.ipynb", "smithann_12345"),
    "Canvas, a second upload": ("smithann_12345_678902_02_lora-1.ipynb", "smithann_12345"),
    "Blackboard": ("Lab book_s1234567_attempt_2026-11-20-23-59-01_02_lora.ipynb", "s1234567"),
    "number and lesson": ("20261234_02_lora.ipynb", "20261234"),
    "lesson and number": ("02_lora_20261234.ipynb", "20261234"),
    "Chinese name": ("李华-20261234-02_lora.ipynb", "李华-20261234"),
    "per student": ("李华/02_lora.ipynb", "李华"),
}


@pytest.mark.parametrize("system", EXPORTS)
def test_an_export_as_a_folder_names_its_students(tmp_path, system):
    name, student = EXPORTS[system]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}")
    assert [job["student"] for job in find(tmp_path).jobs] == [student]


@pytest.mark.parametrize("root", ["", "export/"])
def test_an_export_as_a_zip_names_the_same_students(tmp_path, root):
    folders = [pair for pair in EXPORTS.values() if "/" in pair[0]]
    flat = [pair for pair in EXPORTS.values() if "/" not in pair[0]]
    for pairs in (folders, flat) if not root else (folders,):  # a folder of flat files would be a student's folder
        path = tmp_path / "export.zip"
        path.write_bytes(packed([(root + name, b"{}") for name, _ in pairs]))
        assert {job["student"] for job in find(path).jobs} == {student for _, student in pairs}


def test_two_files_of_a_canvas_student_are_one_students(tmp_path):
    for name in ("smithann_12345_678901_02_lora.ipynb", "smithann_LATE_12345_678905_03_nf4.ipynb"):
        (tmp_path / name).write_bytes(b"{}")
    found = find(tmp_path)
    assert (list(found.notes), len(found.jobs)) == (["smithann_12345"], 2)


@pytest.mark.parametrize(("encoding", "name"), [("gbk", "李华/02_lora.ipynb"), ("utf-8", "李华/02_lora.ipynb")])
def test_a_name_in_a_zip_without_the_flag_for_utf_8_is_read(tmp_path, encoding, name):
    """Windows in Chinese writes GBK and some programs UTF-8, both with the flag unset; Python then reads cp437."""
    stand_in = "x" * len(name.encode(encoding))
    raw = packed([(stand_in, b"{}")]).replace(stand_in.encode(), name.encode(encoding))
    path = tmp_path / "export.zip"
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
        assert not member.flag_bits & 0x800
        assert member.filename != name
        assert member_name(member) == name
    assert [job["student"] for job in find(path).jobs] == ["李华"]
