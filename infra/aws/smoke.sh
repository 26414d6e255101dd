#!/bin/bash
# First job on a GPU node: checks the driver, torch on the GPU, and a write to the bucket (docs/aws-first-hour.md).
#     ray job submit --entrypoint-num-gpus 1 -- bash infra/aws/smoke.sh
set -euo pipefail
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
python - <<'END'
import torch

total = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16).sum().item()
print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}: 1024 x 1024 ones make {total:.0f}")
END
python - <<'END'
import os
import socket

from infra.storage import open_store

store = open_store(f"{os.environ['RESNET_RAY_STORAGE']}/runs/smoke")
store.write("hello", b"from a node")
assert store.read("hello") == b"from a node"
store.delete("hello")
print(f"{socket.gethostname()} writes and reads {store.uri}")
END
