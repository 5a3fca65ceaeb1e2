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
# The qsub and qstat that imitate Torque's need Perl's ways to Slurm.
# shellcheck disable=SC2016
perl_lacks() { ! /usr/bin/perl -e 'for (@INC) { exit 0 if -e "$_/$ARGV[0].pm" } exit 1' "$1" 2>/dev/null; }
perl_lacks Slurm && lacks libslurm-perl
perl_lacks Slurmdb && lacks libslurmdb-perl
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

# Unpacked and not installed: every test that looks for a qsub would find it.
wrappers=/usr/local/lib/slurm-wlm-torque
unpacked=slurm-wlm-torque
[ -x "$wrappers/usr/bin/qsub" ] && unpacked=

[ -n "$missing$unpacked" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed here:$missing $unpacked"
    exit 0
fi

# A freshly installed sshd would start on port 22 of this machine; the tests bring their own on a loopback port.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing:$missing $unpacked"
log=$(mktemp)
# shellcheck disable=SC2086
install_all() {
    apt-get update && { [ -z "$missing" ] || apt-get install -y --no-install-recommends --no-upgrade $missing; } || return
    [ -n "$unpacked" ] || return 0
    place=$(mktemp -d) && (cd "$place" && apt-get -o APT::Sandbox::User=root download "$unpacked" &&
        dpkg -x "$unpacked"_*.deb "$wrappers") && rm -r "$place"
}
if install_all >"$log" 2>&1; then
    rm -f "$log"
else
    tail -n 15 "$log" >&2
    echo "apt-get failed; all it said is in $log" >&2
    exit 1
fi
