# Environment of a node of ray-cluster.yaml, inside its container; ~/.bashrc and the start commands read it.
PATH="$HOME/venv/bin:$PATH"
export PATH
# By default, gloo and NCCL take the interface of the machine's name, or guess, and may take Docker's bridge.
if test -n "${RAY_HEAD_IP:-}" && interface=$(python ~/resnet-ray/infra/interface.py "$RAY_HEAD_IP"); then
    export GLOO_SOCKET_IFNAME="$interface" NCCL_SOCKET_IFNAME="$interface"
fi
