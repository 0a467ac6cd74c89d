"""Each public function of `algos` says what it takes, gives and raises."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import rlhf_ray.algos

# Their caller has checked what they are given, or they are made to check it.
HELPERS = {"checks", "ranked_pairs"}
FUNCTIONS = {
    f"{module}.{name}": function
    for module in sorted(m.name for m in pkgutil.iter_modules(rlhf_ray.algos.__path__))
    if module not in HELPERS
    for name, function in inspect.getmembers(
        importlib.import_module(f"rlhf_ray.algos.{module}"), inspect.isfunction
    )
    if function.__module__ == f"rlhf_ray.algos.{module}" and not name.startswith("_")
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_says_what_raises_and_describes_each_argument(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    assert "Raises:" in text
    for argument in inspect.signature(function).parameters:
        assert "Args: those of" in text or argument in text, argument
