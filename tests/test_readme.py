"""The README is the map: every file of the package is in its tree with one line, and nothing else is."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
IGNORED = {"__pycache__"}


def listed():
    """Paths in the README's tree, from its indentation."""
    tree = re.search(r"```text\nlinscale/\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert tree
    folders, paths = {0: Path("linscale")}, {}
    for line in tree[1].splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        name, _, text = line.strip().partition("  ")
        path = folders[indent - 1] / name
        if name.endswith("/"):
            folders[indent] = path
        else:
            paths[path.as_posix()] = text.strip()
    return paths


def test_the_tree_names_every_file_with_one_line():
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "linscale").rglob("*")
        if path.is_file() and not IGNORED & set(path.parts) and path.stat().st_size > 0
    }
    tree = listed()
    assert set(tree) == files
    assert all(len(text) > 10 for text in tree.values()), [path for path, text in tree.items() if len(text) <= 10]


def test_the_commands_it_names_exist():
    from linscale.cli import SUMMARIES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in SUMMARIES:
        assert f"linscale {command}" in text, command
    for target in re.findall(r"^    make ([a-z]+)", text, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
