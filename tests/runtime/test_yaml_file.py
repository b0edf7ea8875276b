"""Recipe files: what is merged, and every refusal with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runtime.errors import InputError
from runtime.yaml_file import read_recipe


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_values_override_those_of_the_base_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path, "base/root.yaml", "A: {x: 1, y: 2}\nB: 3\n")
    write(tmp_path, "base/middle.yaml", "_BASE_: root.yaml\nA: {y: 20}\n")
    leaf = write(tmp_path, "leaf.yaml", "_BASE_: base/middle.yaml\nA: {z: 30}\nC: '4'\n")
    assert read_recipe(leaf) == {"A": {"x": 1, "y": 20, "z": 30}, "B": 3, "C": "4"}


def test_later_base_files_win(tmp_path: Path) -> None:
    write(tmp_path, "one.yaml", "A: 1\nB: 1\n")
    write(tmp_path, "two.yaml", "B: 2\n")
    leaf = write(tmp_path, "leaf.yaml", "_BASE_: [one.yaml, two.yaml]\n")
    assert read_recipe(leaf) == {"A": 1, "B": 2}


def test_a_cycle_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "_BASE_: b.yaml\n")
    path = write(tmp_path, "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(InputError, match=r"cycle: .*b\.yaml -> .*a\.yaml -> .*b\.yaml"):
        read_recipe(path)


def test_aliases_of_plain_lists_are_lists_of_their_own(tmp_path: Path) -> None:
    """As PyYAML, and so Detectron2, writes a list that is there twice."""
    shared = [10.0, 5.0]
    text = yaml.safe_dump({"A": [shared, [3]], "B": {"C": shared}})
    assert "*id001" in text
    found = read_recipe(write(tmp_path, "a.yaml", text))
    assert found == {"A": [shared, [3]], "B": {"C": shared}}
    assert found["A"][0] is not found["B"]["C"]


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    for index in range(9):
        write(tmp_path, f"{index}.yaml", f"_BASE_: {index + 1}.yaml\n")
    write(tmp_path, "9.yaml", "A: 1\n")
    assert read_recipe(tmp_path / "2.yaml") == {"A": 1}
    with pytest.raises(InputError, match="more than 8 files deep"):
        read_recipe(tmp_path / "1.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A: !!python/object/apply:os.system ['true']\n", "constructor for the tag"),
        ("A: &x [[1]]\nB: *x\n", "aliases may stand for short plain lists only"),
        ("A: &x {b: 1}\nB: *x\n", "short plain lists only"),
        ("A: &x [1, *x, *x]\n", "short plain lists only"),
        ("A: *x\n", "short plain lists only"),
        (f"A: &x [{'1, ' * 101}]\nB: *x\n", "short plain lists only"),
        (f"A: &x [1]\nB: [{'*x, ' * 101}]\n", "short plain lists only"),
        ("A: 1\nA: 2\n", "'A' is there twice"),
        ("- 1\n- 2\n", "a YAML mapping"),
        ("", "a YAML mapping"),
        ("A: [1\n", "not a plain YAML recipe"),
        ("A: " + "[" * 5000 + "\n", "not a plain YAML recipe"),
        ("? [a, b]\n: 1\n", "not a plain YAML recipe"),
        ("A: {1: 2}\n", r"the key A\.1 must be text"),
        ("A: 2000-13-45\n", "not a plain YAML recipe"),
        ("A: 0100\n", "'0100' is no plain decimal number"),
        ("A: -1:30\n", "'-1:30' is no plain decimal number"),
        ("A: 1:30.5\n", "no plain decimal number"),
        ("A: 01.5\n", "no plain decimal number"),
        ("_BASE_: https://example.org/x.yaml\n", "must name local files"),
        ("_BASE_: 3\n", "must name local files"),
        ("_BASE_: absent.yaml\n", r"absent\.yaml: no such recipe file"),
        ('_BASE_: "a\\0b"\n', "no usable file name"),
        ("A: " + "x" * 2**20 + "\n", "larger than 1 MiB"),
    ],
)
def test_refusals(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        read_recipe(write(tmp_path, "r.yaml", text))
    assert "\n" not in str(caught.value)


def test_plain_numbers_are_read(tmp_path: Path) -> None:
    text = "A: [0, -7, 1_000, 0x10, 0.5, .5, 1.0e-3, 1.e+5, -0.0]\n"
    expected = [0, -7, 1000, 16, 0.5, 0.5, 0.001, 100000.0, 0.0]
    assert read_recipe(write(tmp_path, "r.yaml", text)) == {"A": expected}


def test_binary_and_absent_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_recipe(path)
    with pytest.raises(InputError, match="no such recipe file"):
        read_recipe(tmp_path)


def test_a_section_cannot_replace_a_value_of_the_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "A: 1\n")
    with pytest.raises(InputError, match="A is a section, but a value in _BASE_"):
        read_recipe(write(tmp_path, "leaf.yaml", "_BASE_: base.yaml\nA: {x: 1}\n"))
