"""Which module imports which: one way, and never in a circle."""

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What each room imports, beside itself and `common`.
ROOMS = {
    "common": set[str](),
    "binarization": set[str](),
    "networks": {"binarization"},
    "data": set[str](),
    "engine": {"config", "binarization", "networks", "data"},
    "runs": {"config", "binarization", "networks", "data", "engine"},
    "export": {"config", "binarization", "networks", "data", "engine", "runs"},
}


def modules() -> dict[str, Path]:
    """Files of both packages by the name that is imported."""
    files = [*ROOT.glob("jaxbin/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imports() -> dict[str, set[str]]:
    """What each module imports of them, wherever in it: in functions and for types, too."""
    known = modules()

    def module_of(name: str) -> str:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    graph: dict[str, set[str]] = {}
    for name, file in known.items():
        found = set[str]()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module, f"{name} imports relatively"
                found |= {f"{node.module}.{one.name}" for one in node.names}
            elif isinstance(node, ast.Import):
                found |= {one.name for one in node.names}
        graph[name] = {module_of(one) for one in found} - {name, ""}
    return graph


def test_no_module_imports_itself_through_others():
    graph = imports()
    assert len(graph) > 100
    assert "jaxbin.engine.step" in graph["jaxbin.engine.program"]
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_rooms_import_one_way():
    for name, imported in imports().items():
        package, _, inside = name.partition(".")
        room = inside.partition(".")[0]
        if package != "jaxbin" or room not in ROOMS:
            continue
        of_jaxbin = {one.split(".")[1] for one in imported if one.startswith("jaxbin.")}
        assert of_jaxbin <= ROOMS[room] | {room, "common"}, name
