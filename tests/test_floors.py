"""The floors of the house: who may import whom, and how large the root is.  (CONTRIBUTING.md, first page.)

Guards against: imports that creep in against the arrows (those inside functions are counted too), a circle, a
root that grows, and a built-in world that leaks into the real components.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOT_FILES = {"contextrl", "data", "eval", "grpo", "policy", "reward", "sampler"}
# Folder -> what of ours it may import, besides itself.
MAY_IMPORT = {
    "data": set(),
    "grpo": set(),
    "sampler": {"data"},
    "reward": {"data"},
    "policy": {"data", "grpo"},
    "eval": {"data", "sampler", "reward"},                       # its main: MAIN_ONLY
    "tools": {"data", "reward"},
    "judges": {"data", "reward", "tools"},
    "context_pairs": {"data", "grpo", "policy", "sampler", "judges", "tools"},
    "toy": {"data", "grpo", "policy", "reward", "sampler", "judges", "context_pairs"},
    "training": {"data", "grpo", "policy", "reward", "sampler", "judges", "context_pairs", "toy", "tools"},
    "recipe": {"data", "reward", "sampler", "judges", "tools", "training"},
    "benchmarks": {"data", "reward", "sampler", "judges", "tools", "training"},
    "contextrl": {"data", "grpo", "policy", "reward", "sampler", "eval", "context_pairs", "tools",
                  "training"},
    "experiments": {"data", "grpo", "policy", "reward", "sampler", "contextrl", "judges", "context_pairs",
                    "toy", "tools", "training", "recipe"},
}
# Programs, which open parts by name, may ask training/parts.py; nobody imports them.
MAIN_ONLY = {"eval": {"training", "tools"}, "context_pairs": {"training"}}
KNOW_THE_TOY = {"toy", "experiments", "training/parts.py"}
TOY_WORDS = re.compile(r"\b(toy|dax|wug|fep|zop|vek)\b")


def sources(root: Path) -> dict[str, ast.Module]:
    """Path of each Python file -> its syntax tree; tests are outside the house."""
    files = [f.relative_to(root) for f in root.rglob("*.py")]
    return {str(f): ast.parse((root / f).read_text(encoding="utf-8")) for f in sorted(files)
            if f.parts[0] not in ("tests", "runs") and not f.parts[0].startswith(".")}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of ours that are imported anywhere below `tree`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known


def floor(module: str) -> str:
    return module.split(".")[0]


def broken_rules(root: Path) -> list[str]:
    """What is against the floors, one line each."""
    trees = sources(root)
    known = {module_name(path) for path in trees}
    imports = {path: imports_of(tree, known) for path, tree in trees.items()}
    lines = []

    # No circle: take away, again and again, what imports nothing that is left.
    left = {module_name(path): set(targets) - {module_name(path)} for path, targets in imports.items()}
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    if left:
        lines.append(f"circle: {', '.join(sorted(left))}")

    for path, tree in trees.items():
        own = floor(module_name(path))
        if own not in MAY_IMPORT:
            lines.append(f"{path}: no floor of the house")
            continue
        in_main = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                in_main |= {floor(target) for target in imports_of(node, known)}
        for target in sorted({floor(target) for target in imports[path]} - {own} - MAY_IMPORT[own]):
            if target not in MAIN_ONLY.get(own, set()) or target not in in_main:
                lines.append(f"{path} imports {target}")

    # The built-in world is known to few; docstrings may show its commands.
    for path, tree in trees.items():
        if path.split("/")[0] in KNOW_THE_TOY or path in KNOW_THE_TOY:
            continue
        if any(floor(target) == "toy" for target in imports[path]):
            lines.append(f"{path} knows the built-in world: it imports toy")
        docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
                      and isinstance(node.body[0], ast.Expr)}
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
                 and isinstance(node.value, str) and id(node) not in docstrings]
        words = {word for text in texts if not is_help(text) for word in TOY_WORDS.findall(text)}
        if words:
            lines.append(f"{path} knows the built-in world: {', '.join(sorted(words))}")
    return lines


def is_help(text: str) -> bool:
    """Help of a setting may name the value that stands for the built-in world."""
    return "'toy'" in text and " " in text


def test_every_import_follows_the_arrows_and_there_is_no_circle():
    assert broken_rules(ROOT) == []


@pytest.mark.parametrize("file, line, told", [
    ("data.py", "def f():\n    from policy import Policy", "circle"),
    ("reward.py", "def f():\n    import judges.rule", "reward.py imports judges"),
    ("recipe/build.py", "import toy", "recipe/build.py knows the built-in world"),
    ("sampler.py", "WORD = 'how many dax'", "sampler.py knows the built-in world: dax"),
    ("grpo.py", "import data", "grpo.py imports data"),
])
def test_a_broken_rule_is_noticed(tmp_path, file, line, told):
    for path in sources(ROOT):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text(encoding="utf-8"), encoding="utf-8")
    assert broken_rules(tmp_path) == []
    with open(tmp_path / file, "a", encoding="utf-8") as source:
        source.write(f"\n\n{line}\n")
    assert any(told in problem for problem in broken_rules(tmp_path))


def test_the_root_is_seven_files_that_are_read_in_one_sitting():
    lengths = {f.stem: len(f.read_text(encoding="utf-8").splitlines()) for f in ROOT.glob("*.py")}
    assert lengths.keys() == ROOT_FILES
    assert max(lengths.values()) < 500 and sum(lengths.values()) < 3000, lengths
