#!/bin/sh
# Runs a command inside another root. What is mounted here is seen by this process and its children only, and is gone
# with them: to be started by `unshare --mount --net --pid --ipc --fork --kill-child`.
#
#   enter.sh ROOT [--read|--write OUTSIDE INSIDE]... [--set NAME=VALUE]... -- COMMAND...
#
# The root is read-only but for /tmp and the folders after --write. There is no network but the loopback device.
set -eu
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/tmp"
mkdir "$root/tmp/home"
settings=
while [ "$1" != -- ]; do
  case $1 in
    --set) settings="$settings $2"; shift 2 ;;
    *)
      mount --bind "$2" "$root$3"
      [ "$1" = --write ] || mount -o remount,bind,ro "$root$3"
      shift 3
      ;;
  esac
done
shift
mount -o remount,bind,ro "$root"
ip link set lo up
# Values hold no spaces. Nothing of the environment around goes in.
# shellcheck disable=SC2086
exec env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/tmp/home LANG=C.UTF-8 $settings chroot "$root" "$@"
