#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Makes a Linux guest ready for workloads, or does nothing where it is so already. Run as root.
#
#   prepare.sh swap FRONTEND SERIAL BYTES   swap on, by frontend nbd, relay, vhost-user-blk,
#                                           tmem, disk, zram, zswap or none
#   prepare.sh cgroup GROUP BYTES HEADROOM  GROUP limited to BYTES; 0: the guest's memory less
#                                           3/2 of min_free_kbytes and HEADROOM
#
# Prints facts as KEY=VALUE lines. Runs in any POSIX shell (dash, bash, busybox).
set -eu

# Writing a page to a device takes memory, at the very moment that there is none.
MIN_FREE_KIB=4096

ZSWAP=/sys/module/zswap/parameters

fail() {
    echo "$*" >&2
    exit 1
}

# Waits, some seconds at most, until a command succeeds: devices show up a moment after their driver.
PATIENCE=20
wait_for() {
    tries=0
    until "$@"; do
        [ $((tries += 1)) -le "$PATIENCE" ] || return 1
        sleep 0.1
    done
}

# Sets DEVICE to the block device with a serial number.
find_device() {
    for file in /sys/block/*/serial; do
        serial=
        [ ! -r "$file" ] || read -r serial <"$file" || : # the file's line has no end
        if [ "$serial" = "$1" ]; then
            DEVICE=${file%/serial}
            DEVICE=/dev/${DEVICE##*/}
            return 0
        fi
    done
    return 1
}

# Memory that a guest compresses or swaps elsewhere by itself would not be measured.
only_this_swap() {
    [ ! -e $ZSWAP/enabled ] || echo N >$ZSWAP/enabled
    while read -r device _; do
        case $device in
            Filename | "$1") ;;
            *) swapoff "$device" || fail "cannot switch the guest's own swap on $device off" ;;
        esac
    done </proc/swaps
}

is_on() {
    while read -r device _; do
        [ "$device" != "$1" ] || return 0
    done </proc/swaps
    return 1
}

# make_swap DEVICE
make_swap() {
    said=$(mkswap "$1" 2>&1) || fail "$said"
}

# Sets SWAPON to util-linux's, which alone knows --discard; busybox's shell would take its own.
find_swapon() {
    for SWAPON in /usr/sbin/swapon /sbin/swapon /usr/bin/swapon /bin/swapon; do
        case $("$SWAPON" --version 2>/dev/null) in
            *util-linux*) return 0 ;;
        esac
    done
    return 1
}

swap_disk() {
    modprobe -q virtio_blk 2>/dev/null || :
    wait_for find_device "$1" || fail "no disk with the serial number $1: is virtio_blk missing?"
    swap_device
}

has_agent() {
    for file in /proc/[0-9]*/comm; do
        name=
        [ ! -r "$file" ] || read -r name 2>/dev/null <"$file" || :
        [ "$name" != kzt-agent ] || return 0
    done
    return 1
}

is_relayed() {
    [ -r /sys/block/nbd0/size ] && [ $(($(cat /sys/block/nbd0/size) * 512)) -eq "$1" ]
}

swap_relay() {
    DEVICE=/dev/nbd0
    # Beneath this reserve, half of which only real-time processes such as the agent get into, it
    # would have to wait for the memory that it is about to free.
    MIN_FREE_KIB=16384
    PATIENCE=100
    wait_for has_agent ||
        fail "this image has no kzt-agent, which the frontend relay needs: its init must start it"
    wait_for is_relayed "$1" ||
        fail "kzt-agent does not relay: $(dmesg 2>/dev/null | grep kzt-agent: | tail -n 1)"
    # A round trip costs more than a page: up to 128 KiB are read ahead at once.
    echo 5 >/proc/sys/vm/page-cluster
    swap_device
}

swap_device() {
    only_this_swap "$DEVICE"
    if ! is_on "$DEVICE"; then
        find_swapon || fail "swapon is not util-linux's, which alone knows --discard"
        make_swap "$DEVICE"
        # Without discards the store would keep pages that the guest has long freed. The kernel sends
        # none to a disk that rotates, for which it takes any of virtio-blk.
        echo 0 >"/sys/block/${DEVICE#/dev/}/queue/rotational"
        "$SWAPON" --discard=pages "$DEVICE" || fail "swapon $DEVICE failed"
    fi
}

is_answered() {
    frames=0
    read -r frames 2>/dev/null </sys/class/misc/kztmem/stats/frames_received || :
    [ "$frames" -gt 0 ]
}

# The kernel offers each page to the store before it writes it to the disk.
swap_tmem() {
    modprobe -q kztmem 2>/dev/null || :
    [ -e /sys/class/misc/kztmem ] ||
        fail "this guest's kernel has no tmem, which the frontend tmem needs: image debian-trixie-tmem has it"
    PATIENCE=100
    wait_for has_agent ||
        fail "this image has no kzt-agent, which the frontend tmem needs: its init must start it"
    wait_for is_answered ||
        fail "kzt-agent does not reach the store: $(dmesg 2>/dev/null | grep kzt-agent: | tail -n 1)"
    # A round trip costs more than a page: up to 128 KiB are read ahead at once.
    echo 5 >/proc/sys/vm/page-cluster
    swap_disk "$1"
}

swap_zswap() {
    [ -e $ZSWAP/enabled ] ||
        fail "this guest's kernel has no zswap: image debian-trixie-tmem has it"
    swap_disk "$1"
    echo Y >$ZSWAP/enabled || fail "zswap can't be switched on"
    echo "algorithm=$(cat $ZSWAP/compressor)"
}

swap_zram() {
    DEVICE=/dev/zram0
    only_this_swap $DEVICE
    if ! is_on $DEVICE; then
        modprobe zram 2>/dev/null || :
        wait_for test -b $DEVICE || fail "no $DEVICE: the kernel has no zram"
        echo 1 >/sys/block/zram0/reset
        # Kernels may be built without it; the algorithm used is among the facts.
        echo lzo-rle 2>/dev/null >/sys/block/zram0/comp_algorithm || :
        echo "$1" >/sys/block/zram0/disksize || fail "zram refuses a size of $1 bytes"
        make_swap $DEVICE
        swapon $DEVICE || fail "swapon $DEVICE failed"
    fi
    algorithm=$(cat /sys/block/zram0/comp_algorithm)
    algorithm=${algorithm#*\[}
    echo "algorithm=${algorithm%%\]*}"
}

swap() {
    [ "$(id -u)" = 0 ] || fail "not root in the guest"
    DEVICE=
    case $1 in
        nbd | vhost-user-blk | disk) swap_disk "$2" ;;
        relay) swap_relay "$3" ;;
        tmem) swap_tmem "$2" ;;
        zswap) swap_zswap "$2" ;;
        zram) swap_zram "$3" ;;
        none) only_this_swap "" ;;
        *) fail "unknown frontend $1" ;;
    esac
    if [ -n "$DEVICE" ]; then
        while read -r device _ kib _; do
            [ "$device" != "$DEVICE" ] || echo "swap_bytes=$((kib * 1024))"
        done </proc/swaps
    fi
    [ "$(cat /proc/sys/vm/min_free_kbytes)" -ge $MIN_FREE_KIB ] ||
        echo $MIN_FREE_KIB >/proc/sys/vm/min_free_kbytes
    echo "device=$DEVICE"
}

cgroup() {
    root=/sys/fs/cgroup
    if [ ! -e $root/cgroup.controllers ]; then
        mount -t cgroup2 cgroup2 $root || fail "cannot mount cgroup v2 on $root"
    fi
    echo +memory >$root/cgroup.subtree_control || fail "the kernel has no memory cgroup (v2)"
    mkdir -p "$1"
    bytes=$2
    if [ "$bytes" = 0 ]; then
        read -r _ total _ </proc/meminfo
        # kswapd, which spares nobody, begins when less than 5/4 of min_free_kbytes is free and
        # stops at 3/2: workloads reclaim from each other before.
        reserve=$(($(cat /proc/sys/vm/min_free_kbytes) * 3 / 2))
        bytes=$(((total - reserve) * 1024 - $3))
        [ $bytes -gt 0 ] || fail "the guest's $total KiB leave nothing for workloads"
    fi
    echo "$bytes" >"$1/memory.max"
    echo "memory_max=$(cat "$1/memory.max")"
}

"$@"
