#!/bin/bash
# Pid 1 of a host: runs in new network, mount, pid, uts and ipc namespaces, and ends as its sshd.
# The variables come from fabric.py, which also puts eth0 here.
set -eu
ulimit -n 65536 2>/dev/null || ulimit -Hn 65536 2>/dev/null || true
mount --make-rprivate /
home=$LAB/nodes/$INSTANCE
mount -t tmpfs -o size=4g,mode=755 tmpfs "$home/disk" # an overlay cannot keep its changes below itself
mkdir "$home/disk/"{up,work,root}
root=$home/disk/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$home/disk/up,workdir=$home/disk/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t sysfs sysfs "$root/sys"
mount --bind "$home/tmp" "$root/tmp" # on a disk: scratch files are no memory
chmod 1777 "$root/tmp"
if [ -n "$CGROUP" ]; then # Ray looks here for the memory of its machine
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    mkdir -p "$root$CGROUP_SEEN"
    mount --bind "$CGROUP" "$root$CGROUP_SEEN"
fi
for path in $VISIBLE; do
    if [ -z "$(ls -A "$root$path" 2>/dev/null)" ]; then
        mkdir -p "$root$path"
        mount --bind "$path" "$root$path"
        mount -o remount,bind,ro "$root$path"
    fi
    while [ "$path" != / ]; do # whoever logs in may be kept out of a private home; the copy is not
        path=$(dirname "$path")
        chmod a+x "$root$path" 2>/dev/null || true
    done
done
mount --bind "$LAB/numba" "$root$LAB/numba"

# The image: a user who may log in, with the key pair of the instance.
sed -i "/^$SSH_USER:/d" "$root/etc/passwd" "$root/etc/group" "$root/etc/shadow"
echo "$SSH_USER:x:4000:4000::/home/$SSH_USER:/bin/bash" >> "$root/etc/passwd"
echo "$SSH_USER:x:4000:" >> "$root/etc/group"
echo "$SSH_USER:*:19000:0:99999:7:::" >> "$root/etc/shadow"
rm -rf "$root/home/$SSH_USER"
mkdir -p "$root/home/$SSH_USER/.ssh" "$root/run/sshd"
echo "$PUBLIC_KEY" > "$root/home/$SSH_USER/.ssh/authorized_keys"
touch "$root/home/$SSH_USER/.bashrc"
chmod 700 "$root/home/$SSH_USER/.ssh"
chown -R 4000:4000 "$root/home/$SSH_USER"
echo "$PROFILE" > "$root/etc/profile.d/waveflow-lab.sh"
ssh-keygen -q -t ed25519 -N '' -f "$root/etc/ssh/lab_host_key"
cat > "$root/etc/ssh/lab_sshd_config" <<END
HostKey /etc/ssh/lab_host_key
UsePAM no
PasswordAuthentication no
PidFile none
LogLevel ERROR
END

name=ip-${ADDRESS//./-}
hostname "$name"
printf '127.0.0.1 localhost\n%s %s\n' "$ADDRESS" "$name" > "$root/etc/hosts"
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip address add "$ADDRESS/16" dev eth0
[ -z "$PUBLIC_ADDRESS" ] || ip address add "$PUBLIC_ADDRESS/32" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
cd /
exec chroot "$root" /usr/sbin/sshd -D -e -f /etc/ssh/lab_sshd_config
