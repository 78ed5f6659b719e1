"""The map of the house as a dict, and the rule that nobody leans out of the window: imports go down only."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "compress_aug"

FLOORS = {
    "errors": 0,
    "batch": 0,
    "schedule": 0,
    "folders": 0,
    "surgery": 1,
    "reading": 1,
    "patterns": 1,
    "scheme": 1,
    "calls": 1,
    "precision": 1,
    "progress": 1,
    "native": 1,
    "measure": 2,
    "targets": 2,
    "policies": 2,
    "data": 3,
    "models": 3,
    "augment": 3,
    "distill": 3,
    "pruning": 3,
    "channels": 3,
    "quantization": 3,
    "inheritance": 3,
    "deploy": 3,
    "checkpoint": 4,
    "training": 4,
    "pictures": 5,
    "sensitivity": 5,
    "search": 5,
    "stages": 6,
    "recipe": 7,
    "running": 8,
    "report": 8,
    "study": 9,
    "cli": 10,
}

# These say what a recipe means; a user's typo must not wait for torch.
NO_TORCH_AT_IMPORT = (
    "errors",
    "schedule",
    "folders",
    "reading",
    "scheme",
    "calls",
    "targets",
    "policies",
    "stages",
    "recipe",
    "cli",
)


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path


def _imports(tree, *, top_level_only=False):
    """Every module that is imported, inside functions too unless told otherwise; less what only type checkers read."""
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            if node.module == "compress_aug":
                yield from (f"compress_aug.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


def test_every_room_has_a_floor():
    rooms = {room for room, _ in _modules()}
    assert rooms - set(FLOORS) == set()


def test_imports_go_down_only():
    wrong = []
    for room, path in _modules():
        for name in _imports(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] != "compress_aug" or len(parts) == 1:
                continue
            other = parts[1]
            if other != room and FLOORS.get(other, 99) >= FLOORS[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} (floor {FLOORS[room]}) imports {name}")
    assert wrong == []


def test_the_vocabulary_imports_no_torch():
    heavy = {"torch", "torchvision", "brevitas", "onnx", "onnxruntime", "lightning_fabric", "torch_pruning"}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for room, path in _modules()
        if room in NO_TORCH_AT_IMPORT
        for name in _imports(ast.parse(path.read_text()), top_level_only=True)
        if name.split(".")[0] in heavy
    ]
    assert wrong == []


def test_every_file_says_what_it_is():
    missing = [
        str(path.relative_to(PACKAGE))
        for _, path in _modules()
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert missing == []
