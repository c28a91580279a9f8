#!/bin/busybox sh
# What a VM does: brings up what it has, does what the end of its kernel's command line says, tells
# how that went, and goes off. The application works over one address after the other, at each until
# a line comes.
#
#   init … do sequencer ADDRESS…           a sequencer, until a line comes
#   init … do app URL… [dial URL…]         the application; then dials addresses where nobody is
#   init … do durable-app URL…             the same, with its outbox ahead of its database
#   init … do loopback URL…                dials the first with less of vsock than it takes, then has
#                                          a sequencer and the application
export PATH=/bin NO_COLOR=1
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
    synddb sequencer $(for address; do echo "--listen $address"; done) --data /data/log --insecure \
        --tls-cert /keys/server.crt --tls-key /keys/server.key \
        --tls-client-pin "$(busybox cat /keys/client.pin)" &
    sequencer=$!
}

hang_up() {
    kill "$sequencer"
    wait "$sequencer"
}

# The variables with which an application finds its keys.
tls_of() {
    case $1 in
    *+tls:*)
        echo "SYNDDB_TLS_PINS=$(busybox cat /keys/server.pin)"
        echo "SYNDDB_TLS_CERT=/keys/client.crt SYNDDB_TLS_KEY=/keys/client.key"
        ;;
    esac
}

work() {
    program=$1
    shift
    while [ $# -gt 0 ] && [ "$1" != dial ]; do
        busybox env $(tls_of "$1") vm-app "$program" /data/app.db "$1" || result=$?
        shift
    done
    [ $# -eq 0 ] || shift
    for other; do vm-app dial "$other"; done
}

load disk
busybox mount -t ext4 /dev/vda /data || echo "no disk"
result=0
while [ "$1" != do ]; do shift; done
role=$2
shift 2
case $role in
sequencer)
    load vsock
    listen "$@"
    read -r _
    hang_up || result=$?
    ;;
app | durable-app)
    load vsock
    work "$role" "$@"
    ;;
loopback)
    vm-app dial "$1"
    load vsock
    vm-app dial "$1"
    load loopback
    vm-app dial "$1"
    listen "$@"
    work app "$@"
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
