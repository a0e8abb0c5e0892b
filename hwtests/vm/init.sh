#!/bin/busybox sh
# The guest's first program: mounts what tests look at, loads the modules that the host carried in (in the order of
# their names), runs the suites that the kernel command line names, and hands the result to QEMU's exit port.
# 42 is the one status that means success, so that no accident looks like it.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mount -t debugfs none /sys/kernel/debug 2>/dev/null

# The second serial port carries lines between the tests and the host: no echo, no translation.
# Held open, so that it never falls back.
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
echo "SW-UP $(cut -d' ' -f1 /proc/uptime)" > /dev/ttyS1

# busybox does not read `MODULE.PARAMETER=VALUE` from the kernel command line as the kernel does for its own drivers.
for module in /sw/modules/*.ko; do
    [ -e "$module" ] || continue
    name=${module##*/??-}
    name=${name%.ko}
    parameters=
    for word in $(cat /proc/cmdline); do
        case $word in "$name".*) parameters="$parameters ${word#"$name".}" ;; esac
    done
    # shellcheck disable=SC2086  # words, not one argument
    insmod "$module" $parameters || echo "init: $module did not load"
done

# The second of two guests that a wire joins: it serves until the first one has ended, and the host ends it.
if grep -q sw.mate /proc/cmdline; then
    ifconfig eth0 hw ether 52:54:00:12:34:57
    ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up
    exec straightway target memory:24MiB --serial SWTARGET0001 --listen 10.0.0.2:4420
fi

/sw/straightway-guest run
status=$?
sync
[ "$status" = 0 ] && status=42 || { [ "$status" -ge 42 ] && status=41; }
if grep -q sw.shell /proc/cmdline; then
    echo "init: tests ended with $status; a shell follows, poweroff -f ends it"
    setsid cttyhack sh
fi
printf "\\x$(printf %02x "$status")" | dd of=/dev/port bs=1 seek=1281 count=1 2>/dev/null
poweroff -f
