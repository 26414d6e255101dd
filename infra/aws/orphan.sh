#!/bin/sh
# Shuts down an EC2 instance that has had no raylet for 30 minutes: a worker that has lost its head, or a node whose
# set-up failed. At shutdown a worker terminates (ray-cluster.yaml); the head stops and keeps its disk.
#
#     sudo sh orphan.sh install     # on the machine, outside the container: adds a systemd timer of 5 minutes
#     sudo systemctl stop resnet-ray-orphan.timer       # does not shut this machine down before it boots again
set -eu
IDLE_S=1800
STAMP=${STAMP:-/run/resnet-ray-last-raylet} # gone after a boot, so the 30 minutes start again
UNITS=${UNITS:-/etc/systemd/system}
PROGRAM=${PROGRAM:-/usr/local/sbin/resnet-ray-orphan}

case "${1:-}" in
install)
    install -m 755 "$0" "$PROGRAM"
    printf '[Unit]\nDescription=End this instance if Ray is gone\n[Service]\nType=oneshot\nExecStart=%s look\n' \
        "$PROGRAM" >"$UNITS/resnet-ray-orphan.service"
    printf '[Timer]\nOnBootSec=5min\nOnUnitActiveSec=5min\n[Install]\nWantedBy=timers.target\n' \
        >"$UNITS/resnet-ray-orphan.timer"
    systemctl daemon-reload
    systemctl enable --quiet --now resnet-ray-orphan.timer
    ;;
look)
    now=$(date +%s)
    if pgrep -x raylet >/dev/null || ! last=$(cat "$STAMP" 2>/dev/null); then
        echo "$now" >"$STAMP"
    elif [ $((now - last)) -ge $IDLE_S ]; then
        echo "no raylet for $((now - last)) s: shutting down"
        shutdown -h now
    fi
    ;;
*)
    echo "usage: orphan.sh install | look" >&2
    exit 2
    ;;
esac
