"""Room: what quota programs really print, what is made of it, and how jobs take it. The programs are fakes on PATH."""

import os
import time

import pytest

from agent.agentroot import Root  # noqa: F401  the agent's folder on sys.path
from chasqui_agent import process, space
from chasqui_agent.space import BYTES, FILES

HEADS = "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n"
NEW_HEADS = "Filesystem    kbytes   bquota  blimit  bgrace   files   iquota  ilimit  igrace\n"
LHEADS = HEADS.replace("blocks", "kbytes")
NOW = 1700000000.0
KIB, GB = 1024, 10**9

# Texts of real outputs as they stand in public documentation and repositories: (what it is, text, ids, bytes and files
# left, None where the answer names no limit or is not understood).
REAL = [
    # linux-quota, a block device; the home folder of the ABCI access server (its user guide). No -p: grace is blank,
    # and then a row has no nine fields, and is left alone.
    ("quota without -p", "Disk quotas for user axa01004ti (uid 1004):\n" + HEADS
     + "      /dev/sdb2      48  104857600 104857600              10       0       0\n", 1004, None, None),
    # With -p every field is there: the figures are those of a desktop in the comment of a script that reads `quota
    # --raw-grace --no-wrap`, "1744* 65536 81920 0 297 0 0 0"; the variants below differ in one figure each.
    ("quota -w -p", "Disk quotas for user p1234 (uid 1234): \n" + HEADS
     + "      /dev/sda1    1744*  65536   81920       0     297       0       0       0\n",
     1234, (81920 - 1744) * KIB, None),
    ("grace runs", "Disk quotas for user p1234 (uid 1234): \n" + HEADS
     + "      /dev/sda1   70000*  65536   81920  1700000600     297       0       0       0\n",
     1234, (81920 - 70000) * KIB, None),
    ("grace is over", "Disk quotas for user p1234 (uid 1234): \n" + HEADS
     + "      /dev/sda1   70000*  65536   81920  1699999999     297       0       0       0\n", 1234, 0, None),
    ("only a soft limit, in grace", "Disk quotas for user p1234 (uid 1234): \n" + HEADS
     + "      /dev/sda1   70000*  65536       0  1700000600     297       0       0       0\n", 1234, None, None),
    ("file limit reached", "Disk quotas for user p1234 (uid 1234): \n" + HEADS
     + "      /dev/sda1    1744   65536   81920       0     300*    200     300  1700000600\n",
     1234, (81920 - 1744) * KIB, 0),
    # NFS through rpc.rquotad, a long name on its own line: ieng6 of UCSD; the zeros of -p are added.
    ("NFS, wrapped", "Disk quotas for user yul269 (uid 135768): \n" + HEADS + "172.17.65.195:/vol/home/linux/ieng6\n"
     "                1444800* 1444800 1444800       0    9515   31000   31000       0\n"
     "  Please clean up any unnecessary files or contact the servidesk\n  for help.\n", 135768, 0, 31000 - 9515),
    # Tufts HPC: a unit in every field.
    ("quota -s", "Disk quotas for user tutln01 (uid 31394):\n" + HEADS + "hpcstore03:/hpc_home/home\n"
     "                  1222M   5120M   5120M            2161   4295m   4295m        \n", 31394, None, None),
    # sysadmin exam notes, `quota -vs`: another heading.
    ("quota -vs", "Disk quotas for user root (uid 0): \n" + HEADS.replace("blocks", " space")
     + "      /dev/vdb1      0K      0K      0K               2       0       0   \n", 0, None, None),
    ("no quota", "Disk quotas for user root (uid 0): none\n", 0, None, None),
    ("unknown user", "quota: user 00112233445566778899aabbccdde001 does not exist.\n", 1, None, None),
    # Lustre: NIG supercomputer, /lustre7.
    ("lfs quota", "Disk quotas for usr username (uid 1200):\n" + LHEADS
     + "   /lustre7    1840       0  1000000000     -      23       0       0       -\n",
     1200, (1000000000 - 1840) * KIB, None),
    # Mila, wrapped after the name, with the notes of a default quota behind it.
    ("lfs, wrapped, notes", "Disk quotas for usr normandf (uid 1471600598):\n" + LHEADS + "/home/mila/n/normandf\n"
     "                95747836       0 104857600       -  908722       0 1048576       -\n"
     "uid 1471600598 is using default block quota setting\nuid 1471600598 is using default file quota setting\n",
     1471600598, (104857600 - 95747836) * KIB, 1048576 - 908722),
    # NREL Eagle, a project whose hard limit is passed.
    ("lfs, project", "Disk quotas for prj 110255 (pid 110255):\n" + LHEADS
     + "/projects/csc000 3165308*   3072    4096       -      48  1073741824 2147483648       -\n",
     110255, 0, 2147483648 - 48),
    # HLRS check_lfs_quota: what is in [] is inaccurate.
    ("lfs, a server is missing", "Disk quotas for user root (uid 0):\n" + LHEADS
     + "            /univ_1 [10200224]       0       99       -   17724       0       0       -\n"
     "Some errors happened when getting quota info. Some devices may be not working or deactivated.\n", 0, None, None),
    ("lfs, grace expired", "Disk quotas for usr jane (uid 1001):\n" + LHEADS
     + "   /scratch  3000000* 2097152 4194304   expired    10       0     100       -\n", 1001, 0, 90),
    ("lfs, grace none: over", "Disk quotas for usr jane (uid 1001):\n" + LHEADS
     + "   /scratch  3000000* 2097152 4194304     none    10       0     100       -\n", 1001, 0, 90),
    ("lfs, in grace", "Disk quotas for usr jane (uid 1001):\n" + LHEADS
     + "   /scratch  3000000* 2097152 4194304  6d23h59m59s    10       0     100       -\n",
     1001, (4194304 - 3000000) * KIB, 90),
    # Newer Lustre has other words for the columns (home folders of a Japanese site, printed with -h; here in kbytes).
    ("lfs, new words", "Disk quotas for prj 100010 (pid 100010):\n" + NEW_HEADS
     + "     /home   2537553        0  52428800     -     511        0 1000000       -\n",
     100010, (52428800 - 2537553) * KIB, 1000000 - 511),
    ("lfs -h", "Disk quotas for usr xdtr108 (uid 514559):\n" + LHEADS.replace("kbytes", "  used")
     + "             ./  792.3M      0k  9.537T       -       9       0 2000000       -\n", 514559, None, None),
    ("not Lustre", "lfs quota: '/home/xdtr108' not on a mounted Lustre filesystem\n", 1, None, None),
    ("another's", "Disk quotas for usr jane (uid 1001):\n" + LHEADS
     + "   /scratch  1 2 3 - 4 5 6 -\n", 1002, None, None),
    ("two rows", "Disk quotas for usr jane (uid 1001):\n" + LHEADS
     + "   /scratch  1 2 3 - 4 5 6 -\n   /home  1 2 3 - 4 5 6 -\n", 1001, None, None),
    ("a program of the site", "Filesystem   used   of\n/home   3 GB   20 GB\n", 1001, None, None),
    ("nothing", "", 0, None, None),
]


@pytest.mark.parametrize("text, number, room, files", [row[1:] for row in REAL], ids=[row[0] for row in REAL])
def test_what_quota_programs_print(text, number, room, files):
    found = space.limits(text, {"u": number, "g": number, "p": number}, "/scratch (Lustre)", NOW)
    assert {limit.kind: limit.left for limit in found} == {
        kind: left for kind, left in ((BYTES, room), (FILES, files)) if left is not None}


def test_limits_of_the_group_and_the_project_have_their_names():
    text = "".join("Disk quotas for %s (%sid 4000000%d):\n" % (whose, letter, number) + LHEADS
                   + "  /s  1 2 1000000 - 4 5 10 -\n"
                   for number, (whose, letter) in enumerate((("usr j", "u"), ("grp g", "g"), ("prj p", "p"))))
    found = space.limits(text, {"u": 40000000, "g": 40000001, "p": 40000002}, "/s (Lustre)", NOW)
    assert [space.words(limit) for limit in found] == [
        "quota of 40000000 on /s (Lustre): 1.0 GB left", "files in quota of 40000000 on /s (Lustre): 6 left",
        "quota of group 40000001 on /s (Lustre): 1.0 GB left",
        "files in quota of group 40000001 on /s (Lustre): 6 left",
        "quota of project 40000002 on /s (Lustre): 1.0 GB left",
        "files in quota of project 40000002 on /s (Lustre): 6 left"]
    assert len(space.limits(text, {"u": 40000000, "g": 1}, "/s (Lustre)", NOW)) == 2


@pytest.mark.parametrize("amount, said", [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (12 * GB, "12.0 GB"),
                                          (3 * 10**15, "3000.0 TB")])
def test_sizes(amount, said):
    assert space.size(amount) == said


def test_what_a_job_needs_counts_every_copy_and_its_folders():
    listed = [{"path": "job.sh", "size": 1}, {"path": "a/b/one", "size": 4097}, {"path": "a/b/two", "size": 4097},
              {"path": "a/c/none", "size": 0}]
    assert space.need(listed) == ((1 + 2 + 2 + 3) * 4096, 4 + 3)


# -- a host of our own: its mounts, its programs -----------------------------------------------------------------------


class Host:
    """A folder with a /proc, programs on PATH, and file systems whose free space a test sets."""

    def __init__(self, tmp_path, monkeypatch):
        self.path, self.monkeypatch = tmp_path, monkeypatch
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setattr(space, "_PLACES", ())
        monkeypatch.setattr(space, "_silent", set())
        monkeypatch.setattr(process, "PROC", str(tmp_path / "proc"))
        (tmp_path / "proc" / "self").mkdir(parents=True)
        self.mounts = []

    def mount(self, name, kind):
        folder = self.path / name
        folder.mkdir()
        escaped = str(folder).replace("\\", "\\134").replace(" ", "\\040")
        self.mounts.append("27 1 254:0 / %s rw,relatime shared:1 - %s /dev/vda rw" % (escaped, kind))
        lines = ["1 1 0:1 / / rw - ext4 /dev/x rw"] + self.mounts
        (self.path / "proc" / "self" / "mountinfo").write_text("\n".join(lines))
        return str(folder)

    def program(self, name, text):
        path = self.bin / name
        path.write_text("#!/bin/sh\necho \"$0 $*\" >>'%s/calls'\n%s\n" % (self.path, text))
        path.chmod(0o755)

    def says(self, name, text):
        (self.path / (name + ".txt")).write_text(text)
        self.program(name, "while read -r line; do printf '%%s\\n' \"$line\"; done <'%s/%s.txt'" % (self.path, name))

    def calls(self):
        path = self.path / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line[len(str(self.bin)) + 1:] for line in lines]


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def _quota(uid, used, hard, files=10, most=0):
    return "Disk quotas for user me (uid %d): \n%s /dev/sda1 %d 0 %d 0 %d 0 %d 0\n" % (
        uid, HEADS, used, hard, files, most)


def test_the_longest_mount_is_named(host):
    outer, inner = host.mount("a disk", "nfs4"), host.mount("a disk/scratch", "lustre")
    os.mkdir(os.path.join(inner, "work"))
    os.mkdir(os.path.join(outer, "scratch2"))
    assert space.mount_of(os.path.join(inner, "work")) == space.Mount(inner, "lustre")
    assert space.mount_of(os.path.join(outer, "scratch2")) == space.Mount(outer, "nfs4")
    assert [limit.name for limit in space.free(inner)][0] == inner + " (Lustre)"


def test_without_mounts_and_programs_only_the_file_system_speaks(host):
    found = space.look([str(host.path), str(host.path)])
    assert [limit.kind for limit in found] in ([BYTES, FILES], [BYTES])  # some have no inodes to count
    assert found[0].name == str(host.path) and found[0].left > 0
    assert space.look([str(host.path / "nowhere")]) == []


def test_quota_is_asked_for_one_file_system_alone(host):
    home = host.mount("home", "nfs4")
    host.says("quota", _quota(os.geteuid(), 100, 200, 10, 15))
    found = space.quotas(home)
    assert [(limit.kind, limit.left) for limit in found] == [(BYTES, 100 * KIB), (FILES, 5)]
    assert found[0].name.startswith("quota of ") and found[0].name.endswith(" on %s (NFS)" % home)
    assert host.calls() == ["quota -w -p -u -g -f " + home]


def test_its_exit_status_says_nothing(host):
    home = host.mount("home", "xfs")
    host.says("quota", _quota(os.geteuid(), 300, 200))
    (host.bin / "quota").write_text((host.bin / "quota").read_text() + "exit 1\n")
    assert [limit.left for limit in space.quotas(home)] == [0]


def test_lustre_is_asked_for_user_group_and_project(host):
    scratch = host.mount("scratch", "lustre")
    gid = os.stat(scratch).st_gid
    row = LHEADS + "  /scratch  %d 0 %d - 1 0 0 -"
    host.program("lfs", """case "$*" in
"project -d %s") echo '110255 P %s' ;;
"quota -u %d %s") echo 'Disk quotas for usr me (uid %d):'; printf '%%s\\n' '%s' ;;
"quota -g %d %s") echo 'Disk quotas for grp us (gid %d):'; printf '%%s\\n' '%s' ;;
"quota -p 110255 %s") echo 'Disk quotas for prj 110255 (pid 110255):'; printf '%%s\\n' '%s' ;;
esac""" % (scratch, scratch, os.geteuid(), scratch, os.geteuid(), row % (5, 105), gid, scratch, gid, row % (5, 55),
           scratch, row % (5, 15)))
    found = space.quotas(scratch)
    assert [limit.left for limit in found] == [100 * KIB, 50 * KIB, 10 * KIB]
    assert found[2].name == "quota of project 110255 on %s (Lustre)" % scratch
    assert [limit.left for limit in space.look([scratch]) if limit.kind == BYTES] == [10 * KIB], "the tightest"


def test_a_silent_program_is_waited_for_once(host):
    home = host.mount("home", "nfs")
    host.program("quota", "/bin/sleep 300")
    host.monkeypatch.setattr(space, "ASK_SECONDS", 0.3)
    began = time.monotonic()
    assert [space.quotas(home) for _ in range(3)] == [[], [], []]
    assert time.monotonic() - began < 60 and len(host.calls()) == 1


def test_the_environment_of_programs_is_clean(host):
    home = host.mount("home", "nfs")
    host.monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    host.monkeypatch.setenv("LANGUAGE", "de")
    host.monkeypatch.setenv("PYTHONPATH", "/x")
    host.program("quota", "echo \"$LC_ALL/$LANGUAGE/$PYTHONPATH\" >'%s/environment'" % host.path)
    assert space.quotas(home) == []
    assert (host.path / "environment").read_text() == "C//\n"


# -- taking ------------------------------------------------------------------------------------------------------------


class Places:
    """Folders for `Room`, each on a file system of its own with so much left."""

    def __init__(self, host):
        self.host, self.left, self.devices = host, {}, {}
        host.monkeypatch.setattr(space, "free", lambda folder: self.left[folder])
        host.monkeypatch.setattr(space, "device_of", self.devices.get)

    def add(self, name, room=10**15, files=10**9, kind="ext4"):
        folder = self.host.mount(name, kind)
        self.left[folder] = [space.Limit(name, BYTES, room), space.Limit("inodes of " + name, FILES, files)]
        self.devices[folder] = len(self.devices)
        return folder


@pytest.fixture
def places(host):
    return Places(host)


MB = 1 << 20
RESERVE = space.RESERVE[BYTES]


def test_jobs_are_taken_as_long_as_they_fit_and_smaller_ones_after(places):
    room = space.Room(places.add("scratch", RESERVE + 10 * MB))
    assert room.take(6 * MB, 1) == ""
    assert room.take(6 * MB, 1) == "no space left there: scratch: %s left" % space.size(RESERVE + 10 * MB)
    assert room.take(3 * MB, 1) == ""
    assert room.take(1 * MB, 1) != "", "what a job itself costs counts"


def test_inodes_run_out_as_bytes_do(places):
    room = space.Room(places.add("home", files=space.RESERVE[FILES] + 100))
    assert room.take(1, 80) == ""
    assert room.take(1, 1) == "no space left there: inodes of home: 350 left"


def test_the_relays_own_file_system_counts_too(places):
    work, root = places.add("scratch"), places.add("home", files=space.RESERVE[FILES] + 2 * 4)
    room = space.Room(work, root)
    assert [room.take(1, 1) for _ in range(3)] == ["", "", "no space left there: inodes of home: 258 left"]


def test_a_full_home_takes_nothing_although_scratch_is_empty(places):
    assert "home" in space.Room(places.add("scratch"), places.add("home", room=0)).take(1, 1)


def test_quotas_are_asked_for_large_offers_only(places):
    folder = places.add("scratch")
    places.host.says("quota", _quota(os.geteuid(), 0, (RESERVE + 30 * MB) // KIB))
    room = space.Room(folder)
    assert room.take(10 * MB, 1) == "" and places.host.calls() == []
    assert room.take(10 * MB, 1) == "" and len(places.host.calls()) == 1
    assert room.take(10 * MB, 1).startswith("no space left there: quota of "), "what went before counts"
    assert room.take(8 * MB, 1) == "" and len(places.host.calls()) == 1


def test_many_files_are_a_large_offer(places):
    folder = places.add("scratch")
    places.host.says("quota", _quota(os.geteuid(), 0, 0, files=10, most=1000))
    why = space.Room(folder).take(1, space.SMALL[FILES] + 300)
    assert why.startswith("no space left there: files in quota of ") and why.endswith(": 990 left")


def test_what_is_not_needed_makes_room_and_is_asked_for_what_lacks_alone(places):
    asked = []

    def make_room(amount, files):
        asked.append((amount, files))
        return (amount + MB, files) if len(asked) == 1 else (0, 0)

    folder = places.add("scratch", RESERVE + 10 * MB)
    room = space.Room(folder, make_room=make_room)
    each = space._JOB[BYTES]
    assert room.take(5 * MB, 1) == "" and asked == []
    assert room.take(8 * MB, 1) == "" and asked == [(3 * MB + 2 * each, 0)]
    assert room.take(2 * MB, 1).startswith("no space left there: scratch: ") and len(asked) == 2
    assert room.has(MB - each, 1) and not room.has(MB, 1) and len(asked) == 2, "nothing goes for what could be missed"


def test_a_quota_grows_with_what_was_deleted(places):
    folder = places.add("scratch")
    places.host.says("quota", _quota(os.geteuid(), 0, (RESERVE + 30 * MB) // KIB))
    room = space.Room(folder, make_room=lambda amount, files: (amount, files))
    assert [room.take(20 * MB, 1) for _ in range(3)] == ["", "", ""] and len(places.host.calls()) == 1


def test_nothing_is_deleted_where_another_file_system_refuses(places):
    asked = []
    room = space.Room(places.add("scratch", room=0), places.add("home", room=0),
                      make_room=lambda *lacks: asked.append(lacks) or lacks)
    assert room.take(1, 1) != "" and asked == []


def test_where_nothing_can_be_asked_all_is_taken(host):
    assert space.Room(str(host.path / "nowhere")).take(10**18, 10**9) == ""
