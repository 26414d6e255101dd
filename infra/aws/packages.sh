#!/bin/bash
# Installs requirements-runtime.lock into ~/venv, inside the container of a node of ray-cluster.yaml. Your own image
# (infra/docker/Dockerfile) already has ~/venv; then this script only compares the two locks.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
lock=$checkout/requirements-runtime.lock
venv=$HOME/venv

# `ray exec`, `ray attach` and every command that Ray runs in the container first read ~/.bashrc.
line=". ~/resnet-ray/infra/aws/node.sh"
grep -qsxF "$line" ~/.bashrc || echo "$line" >>~/.bashrc
cmp -s "$lock" "$venv/installed.lock" && exit 0

rm -f "$venv/installed.lock"
test -x "$venv/bin/python" || python3 -m venv "$venv"
# uv is a tool of the set-up, so its version and hashes are in the lock of development tools.
sed -n '/^uv==/,/[^\\]$/p' "$checkout/requirements.lock" >"$venv/uv.txt"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$venv/uv.txt"
# Every Ray process imports torch. Without compiled bytecode, the import alone takes minutes.
env -u VIRTUAL_ENV "$venv/bin/uv" pip sync --quiet --python "$venv/bin/python" \
    --compile-bytecode --require-hashes "$lock"
cp "$lock" "$venv/installed.lock"
