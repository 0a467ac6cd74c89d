#!/usr/bin/env bash
# Resolve both locks anew from pyproject.toml: requirements/lock.sh (`make lock`). Run `make test-all`
# afterwards: the contract suites of generators and weights gate every change of vLLM, torch or Ray.
set -euo pipefail
cd "$(dirname "$0")/.."
resolve() {
    .venv/bin/uv pip compile pyproject.toml --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --extra dev --no-annotate --no-header --upgrade --quiet "$@"
}
resolve --extra cpu --override requirements/overrides.txt --output-file requirements/cpu.lock
resolve --extra gpu --output-file requirements/gpu.lock
