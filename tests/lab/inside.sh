#!/bin/bash
# Pid 1 of the lab: the network, moto's AWS and the fabric. When it ends, all of it ends.
# LAB is the lab's folder, VISIBLE what has to be seen at the same path everywhere: see lab.py.
set -eu
mount --make-rprivate /
mount -t proc proc /proc
hostname operator

# A /tmp of the lab's own: Ray and ssh leave things there, and look for those of others.
number=0
for path in $VISIBLE; do
    number=$((number + 1))
    mkdir "$LAB/kept/$number"
    mount --bind "$path" "$LAB/kept/$number"
done
chmod 1777 "$LAB/tmp"
mount --bind "$LAB/tmp" /tmp
number=0
for path in $VISIBLE; do
    number=$((number + 1))
    [ -n "$(ls -A "$path" 2>/dev/null)" ] && continue
    mkdir -p "$path"
    mount --bind "$LAB/kept/$number" "$path"
done
cd "$REPOSITORY"

ip link set lo up
ip link add br0 type bridge
ip address add "$GATEWAY/16" dev br0
ip address add 169.254.169.254/32 dev br0 # where EC2 has its metadata service
ip link set br0 up
ip route add default dev br0 # the internet of the lab: public addresses answer on the bridge

python -m tests.lab.account > "$LAB/out/moto.log" 2>&1 &
python -u -m tests.lab.fabric > "$LAB/out/fabric.log" 2>&1 &
wait -n # either of the two ends: so does the lab
