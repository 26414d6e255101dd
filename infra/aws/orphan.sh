#!/bin/sh
# Shuts an EC2 instance down that has had no raylet for 30 minutes: a worker that has lost its head, or a node whose
# set-up failed. Workers terminate on shutdown (ray-cluster.yaml), the head stops and keeps its disk.
#
#     sudo sh orphan.sh install     # on the machine itself, outside the container: a systemd timer, every 5 minutes
#     sudo systemctl stop resnet-ray-orphan.timer       # leave this machine alone until it boots again
set -eu
IDLE_S=1800
STAMP=${STAMP:-/run/resnet-ray-last-raylet} # empty after a boot, which starts the 30 minutes anew
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
