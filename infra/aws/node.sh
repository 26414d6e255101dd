# The environment of a node of ray-cluster.yaml, inside its container; ~/.bashrc and the start commands read it.
PATH="$HOME/venv/bin:$PATH"
export PATH
# gloo and NCCL else take the interface that the machine's name stands for, or guess, and Docker's bridge is one of them.
if test -n "${RAY_HEAD_IP:-}" && interface=$(python ~/resnet-ray/infra/interface.py "$RAY_HEAD_IP"); then
    export GLOO_SOCKET_IFNAME="$interface" NCCL_SOCKET_IFNAME="$interface"
fi
