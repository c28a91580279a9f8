#!/bin/busybox sh
# What a VM does: brings up what it has, does what the end of its kernel's command line says, tells
# how that went, and goes off.
#
#   init … do sequencer ADDRESS   a sequencer, until a line comes
#   init … do app URL [URL…]      the application, until a line comes; then dials the other addresses
#   init … do durable-app URL     the same, with its outbox ahead of its database
#   init … do loopback URL        dials that with less of vsock than it takes, then both at once
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox stty -echo

# Also if whoever started this VM is gone.
(busybox sleep 900; echo "out of time"; busybox poweroff -f) &

load() {
    for module in /modules/"$1"/*.ko; do
        [ ! -e "$module" ] || busybox insmod "$module" || echo "$module cannot be loaded"
    done
}

listen() {
    synddb sequencer --listen "$1" --data /data/log --insecure &
    sequencer=$!
}

hang_up() {
    kill "$sequencer"
    wait "$sequencer"
}

load disk
busybox mount -t ext4 /dev/vda /data || echo "no disk"
while [ "$1" != do ]; do shift; done
role=$2 url=$3
shift 3
case $role in
sequencer)
    load vsock
    listen "$url"
    read -r _
    hang_up
    result=$?
    ;;
app | durable-app)
    load vsock
    vm-app "$role" /data/app.db "$url"
    result=$?
    for other; do vm-app dial "$other"; done
    ;;
loopback)
    vm-app dial "$url"
    load vsock
    vm-app dial "$url"
    load loopback
    vm-app dial "$url"
    listen "$url"
    vm-app app /data/app.db "$url"
    result=$?
    hang_up || result=$?
    ;;
*)
    echo "there is no $role"
    result=2
    ;;
esac
busybox umount /data || result=$?
echo "up for $(busybox cut -d' ' -f1 /proc/uptime) s"
echo "the VM is done: $result"
busybox poweroff -f
