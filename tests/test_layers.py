"""What import-linter cannot say: `algos/` imports torch, Python's own modules, and nothing else."""

import ast
import sys
from pathlib import Path

import rlhf_ray

ALGOS = Path(rlhf_ray.__file__).parent / "algos"


def imported_roots(file: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            inside = module.startswith("rlhf_ray.algos")
            roots.add("rlhf_ray.algos" if inside else module.split(".")[0])
    return roots


def test_algos_import_torch_alone() -> None:
    files = sorted(ALGOS.glob("*.py"))
    assert files
    allowed = {"torch", "rlhf_ray.algos", *sys.stdlib_module_names}
    foreign = {file.name: sorted(imported_roots(file) - allowed) for file in files}
    assert not {name: roots for name, roots in foreign.items() if roots}
