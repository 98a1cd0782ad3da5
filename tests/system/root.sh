#!/bin/sh
# The second half of machine.py, run as the first process of new pid, mount, cgroup, ipc, uts and net namespaces: makes
# the machine's root of the real one's, and becomes its systemd.
#
#   root.sh WORK SYSTEMD REPOSITORY VENV [FURTHER-PATH...]
#
# The root is an overlay: what is read is the real machine's own, what is written lands in a tmpfs. The further paths
# lie on other mounts, which an overlay of / does not show, and get overlays of their own.
set -eu
work=$1 systemd=$2 repository=$3 venv=$4
shift 4

mount --make-rprivate /
mount -t tmpfs -o mode=0755 machine "$work"
layers=0
# overlay LOWER TARGET
overlay() {
    layers=$((layers + 1))
    mkdir "$work/upper$layers" "$work/work$layers"
    # By a relative path: what separates options may be part of the absolute one.
    (cd "$1" && mount -t overlay -o "lowerdir=.,upperdir=$work/upper$layers,workdir=$work/work$layers" machine "$2")
}

root=$work/root
mkdir "$root"
overlay / "$root"

# As in any container: the kernel's knobs, which are the real machine's, can only be read.
mount -t proc -o nosuid,noexec,nodev proc "$root/proc"
for path in sys sysrq-trigger; do
    [ -e "$root/proc/$path" ] || continue
    mount --bind "$root/proc/$path" "$root/proc/$path"
    mount -o remount,bind,ro "$root/proc/$path"
done
mount -t sysfs -o ro,nosuid,noexec,nodev sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755,nosuid tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for stream in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${stream%:*}" "$root/dev/${stream#*:}"
done
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root/run"
mkdir "$root/run/lock"
# Nobody's home is in it, and none of its users' rc files.
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root/home"
for path; do
    mkdir -p "$root$path"
    overlay "$path" "$root$path"
done

# systemd's own units alone, and of these what a machine without hardware wants: nothing of the real one is started.
etc=$root/etc/systemd
rm -rf "$etc"/system/*.wants "$etc"/system/*.requires "$etc"/user/*.wants "$root/run/systemd"
mkdir -p "$etc/system" "$etc/system-generators"
for path in "$root"/usr/lib/systemd/system-generators/* "$root"/lib/systemd/system-generators/*; do
    ln -sfn /dev/null "$etc/system-generators/${path##*/}"
done
for path in "$root"/usr/lib/systemd/system/*.target.wants/* "$root"/lib/systemd/system/*.target.wants/*; do
    case ${path##*/} in
        *.target | dbus.s* | systemd-journald.s* | systemd-journald-dev-log.socket | systemd-logind.service | \
            systemd-tmpfiles-setup.service | systemd-user-sessions.service) ;;
        *) ln -sfn /dev/null "$etc/system/${path##*/}" ;;
    esac
done
for unit in getty.target systemd-remount-fs.service tmp.mount; do ln -sfn /dev/null "$etc/system/$unit"; done
ln -sfn /lib/systemd/system/multi-user.target "$etc/system/default.target"
: >"$root/etc/fstab"
tr -d - <"$root/proc/sys/kernel/random/uuid" >"$root/etc/machine-id"
# It empties /tmp at boot, where environment or checkout may be.
mkdir -p "$root/etc/tmpfiles.d"
ln -sfn /dev/null "$root/etc/tmpfiles.d/tmp.conf"
hostname machine
echo machine >"$root/etc/hostname"
echo '127.0.0.1 localhost machine' >"$root/etc/hosts"

# Who is who.
cat >"$root/tmp/machine-users" <<'END'
set -eu
for user in agent alice mallory; do
    if id "$user"; then userdel -f "$user"; fi
    if getent group "$user"; then groupdel "$user"; fi
done
groupadd -f -r admin
groupadd -f -r watchers
useradd -m -s /bin/bash -G watchers agent
useradd -m -s /bin/bash -G admin alice
useradd -m -s /bin/bash mallory
END
chroot "$root" /bin/sh /tmp/machine-users >/dev/null 2>&1
rm "$root/tmp/machine-users"
mkdir -p "$root/etc/sudoers.d"
echo 'alice ALL=(root, agent) NOPASSWD: /usr/bin/tmux' >"$root/etc/sudoers.d/machine"
chmod 0440 "$root/etc/sudoers.d/machine"

# agentd, as the README has it installed.
for program in agentd agentctl; do ln -sfn "$venv/bin/$program" "$root/usr/local/bin/$program"; done
install -m 0644 "$repository"/systemd/system/*.service "$etc/system"
mkdir -p "$etc/user"
install -m 0644 "$repository"/systemd/user/*.service "$etc/user"
install -m 0644 "$repository"/systemd/tmpfiles.d/agentd.conf "$root/etc/tmpfiles.d"
mkdir -p "$etc/system/multi-user.target.wants"
ln -s ../agentd.service "$etc/system/multi-user.target.wants/agentd.service"
mkdir -p "$root/etc/stereos"

ip link set lo up 2>/dev/null || true
mkdir "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
# As at the boot of a real machine: units get their mounts by propagation.
mount --make-rshared /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=machine \
    "$systemd" --system --log-target=console --log-level=info --show-status=no
