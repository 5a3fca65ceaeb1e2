#!/bin/sh
# Installs what the tests use and this machine lacks: as root, with apt-get, and nothing that is there is upgraded.
# Anybody else is told what is missing, and the tests that need it say so again when they are skipped.
set -u

missing=
lacks() { missing="$missing $1"; }

[ -x /usr/sbin/sshd ] || lacks openssh-server
command -v ssh >/dev/null || lacks openssh-client
find /lib /usr/lib -name pam_oath.so 2>/dev/null | grep -q . || lacks libpam-oath
command -v debootstrap >/dev/null || [ -x /usr/sbin/debootstrap ] || lacks debootstrap
for tool in oathtool tcsh fish zsh rsync; do
    command -v "$tool" >/dev/null || lacks "$tool"
done
# A real Slurm: controller, nodes and commands on loopback.
command -v slurmctld >/dev/null || [ -x /usr/sbin/slurmctld ] || lacks slurm-wlm
# The Docker cluster. An engine that runs elsewhere needs no dockerd here.
if [ -z "${DOCKER_HOST:-}" ] && ! command -v dockerd >/dev/null; then
    docker info >/dev/null 2>&1 || lacks docker.io
fi
if ! docker compose version >/dev/null 2>&1; then
    command -v docker-compose >/dev/null || lacks docker-compose
fi
# Accounts of the tests cannot reach an interpreter below root's home, and Debian's own comes without venv.
if [ ! -x /usr/bin/python3 ]; then
    lacks python3
fi
if [ ! -x /usr/bin/python3 ] || ! /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null; then
    lacks python3-venv
fi

[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed here:$missing"
    exit 0
fi

# A freshly installed sshd would start on port 22 of this machine; the tests bring their own on a loopback port.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing:$missing"
log=$(mktemp)
# shellcheck disable=SC2086
if { apt-get update && apt-get install -y --no-install-recommends --no-upgrade $missing; } >"$log" 2>&1; then
    rm -f "$log"
else
    tail -n 15 "$log" >&2
    echo "apt-get failed; all it said is in $log" >&2
    exit 1
fi
