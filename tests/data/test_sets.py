"""Evaluation sets: those that ship are what their README says, and no other content is scored."""

import re

import pytest
import zstandard

from linscale.config import UserError
from linscale.data.sets import SETS, SHIPPED, find_set, look_for_set, read_set, records_of, verified_content


@pytest.mark.parametrize("name", [name for name, each in SETS.items() if each.shipped])
def test_a_shipped_file_is_whole_and_in_the_readme(name):
    path = find_set(None, name)
    assert path.parent == SHIPPED
    content = verified_content(path)
    assert content.count(b"\n") == SETS[name].records
    rows = [line for line in (SHIPPED / "README.md").read_text(encoding="utf-8").splitlines() if path.name in line]
    assert len(rows) == 1
    file, records, licence, _, sha256 = [cell.strip(" `") for cell in rows[0].strip("|").split("|")]
    assert (file, int(records), sha256) == (path.name, SETS[name].records, SETS[name].sha256)
    assert f"[{SETS[name].licence}]" in licence


def test_nothing_else_ships():
    found = {path.name for path in SHIPPED.iterdir()} - {"README.md"}
    assert found == {find_set(None, name).name for name, each in SETS.items() if each.shipped}
    assert not any(look_for_set(None, name) for name, each in SETS.items() if not each.shipped)


def test_a_folder_comes_first_and_its_files_may_be_compressed(tmp_path):
    content = verified_content(find_set(None, "piqa_valid"))
    for ending, packed in (("", content), (".zst", zstandard.compress(content))):
        (file := tmp_path / f"piqa_valid.jsonl{ending}").write_bytes(packed)
        assert find_set(tmp_path, "piqa_valid") == file
        assert read_set(file) == records_of(content)
    assert find_set(tmp_path, "boolq_dev").parent == SHIPPED
    file.write_bytes(zstandard.compress(content.replace(b"cat", b"dog")))
    with pytest.raises(UserError, match=r"piqa_valid.jsonl.zst: its content has sha256 \w+…, expected .* restore"):
        read_set(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"piqa_valid.jsonl.zst: truncated .zst file"):
        read_set(file)


def test_what_is_not_there_comes_with_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"data = \S+none: no such folder"):
        find_set(tmp_path / "none", "piqa_valid")
    with pytest.raises(UserError, match=r"does not ship .* linscale tasks prepare DIR --sets lambada_openai_test"):
        find_set(None, "lambada_openai_test")
    with pytest.raises(UserError, match=re.escape(f"not in {tmp_path} nor shipped (licence: CC BY-NC 3.0)")):
        find_set(tmp_path, "sciq_validation")
