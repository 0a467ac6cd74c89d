#!/usr/bin/env bash
# Make .venv from the lock, without the resolver: requirements/install.sh (`make install` runs it).
# Does nothing when .venv is already what the lock says. PYTHON=… chooses the interpreter (3.11;
# without it python3, or python3.11 where python3 is another version),
# VENV=… the directory, LOCK=cpu|gpu the lock (default: gpu where nvidia-smi finds one).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
uv_version=0.13.8
lock=${LOCK:-}
if [ -z "$lock" ]; then
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then lock=gpu; else lock=cpu; fi
fi
stamp="$(cat "requirements/$lock.lock" requirements/install.sh | cksum) $PWD"
if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$stamp" ]; then exit 0; fi

say() { printf '== %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ "$(version_of python3)" != 3.11 ] && [ "$(version_of python3.11)" = 3.11 ]; then
    python=python3.11
fi
version=$(version_of "$python") ||
    die "no interpreter '$python'. Install Python 3.11, or name one: make install PYTHON=python3.11"
[ "$version" = 3.11 ] ||
    die "'$python' is Python $version, and the locks are for 3.11. Name another: make install PYTHON=/path/to/python3.11"

started=$SECONDS
# A venv whose making was cut short has a python and no pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "$venv ($lock lock)"
    "$python" -m venv "$venv" ||
        die "'$python -m venv' failed. On Debian and Ubuntu: apt-get install $(basename "$python")-venv"
fi
"$venv/bin/python" -m pip install -qq --disable-pip-version-check "uv==$uv_version"
export VIRTUAL_ENV="$PWD/$venv"
case $venv in /*) export VIRTUAL_ENV="$venv" ;; esac
uv="$venv/bin/uv"

# The GPU build of torch is the index's default; the CPU build has an index of its own. A dry run
# tells in one short request whether that can be reached; if not, pip's own configuration decides.
torch=$(grep '^torch==' "requirements/$lock.lock")
install_torch_cpu() {
    if UV_HTTP_RETRIES=0 timeout 20 "$uv" pip install --quiet --dry-run --no-deps \
        --torch-backend cpu "$torch" >/dev/null 2>&1; then
        "$uv" pip install --quiet --no-deps --torch-backend cpu "$torch"
    else
        "$venv/bin/python" -m pip install -qq --no-deps --no-compile "$torch"
    fi
}
if [ "$lock" = cpu ]; then
    say "$torch, CPU build, and $(grep -c == requirements/cpu.lock) locked packages"
    install_torch_cpu &
    torch_job=$!
    grep -v '^torch==' requirements/cpu.lock |
        "$uv" pip install --quiet --no-deps --requirements - || { wait $torch_job; die "the lock could not be installed"; }
    wait $torch_job || die "no CPU build of $torch could be installed"
else
    say "$(grep -c == requirements/gpu.lock) locked packages, torch with CUDA"
    "$uv" pip install --quiet --no-deps --requirements requirements/gpu.lock
fi
"$uv" pip install --quiet --no-deps --no-build-isolation --editable .

# Bytecode now, on all cores: otherwise every actor of the first run compiles the same modules, and
# where PYTHONDONTWRITEBYTECODE is set every process of every run does (13 s each for vLLM and torch).
say "bytecode"
rare='/tests?/|/anthropic/|/fontTools/|/kubernetes_validate/|/pip/'
rare+='|/torch/testing/_internal/(?!common_dtype|logging_tensor)'
rare+='|/transformers/models/(?!__init__|(auto|bert|bloom|encoder_decoder|gemma|gpt2|llama|mistral)/'
rare+='|(qwen2|qwen3|qwen3_5|roberta|t5|whisper)/)'
"$venv/bin/python" -m compileall -qq -j 0 -x "$rare" "$venv/lib/python3.11/site-packages" rlhf_ray ||
    true # some packages carry templates that are not Python
"$venv/bin/python" -c 'import torch, ray' || die "the installed packages do not import"
printf '%s' "$stamp" > "$venv/.installed"
say "ready in $((SECONDS - started)) s"
