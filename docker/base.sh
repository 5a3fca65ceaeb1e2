#!/bin/sh
# The image that the Dockerfile begins with, where it is neither here nor can be pulled: made with debootstrap, as root.
set -eu
image=${1:-debian:bookworm-slim}

docker image inspect "$image" >/dev/null 2>&1 && exit 0
said=$(docker pull --quiet "$image" 2>&1) && exit 0
if [ "$(id -u)" -ne 0 ] || ! PATH=$PATH:/usr/sbin command -v debootstrap >/dev/null; then
    echo "$image can't be pulled, and making it takes root and debootstrap: $said" >&2
    exit 1
fi

echo "making $image: it can't be pulled"
folder=$(mktemp -d)
# Were something still mounted in there, it must not be emptied.
trap 'rm -rf --one-file-system "$folder"' EXIT
if ! PATH=$PATH:/usr/sbin debootstrap --variant=minbase bookworm "$folder/root" >"$folder/log" 2>&1; then
    tail -n 15 "$folder/log" >&2
    exit 1
fi
tar -C "$folder/root" --exclude='./var/cache/apt/archives/*.deb' -c . | docker import - "$image" >/dev/null
