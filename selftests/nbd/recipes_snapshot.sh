#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will run every command block of docs/backup.rst with real snapshots of an
# ext4 filesystem, among them those for the kernel's NBD client, and pull onto a block
# device. It runs in a VM.
#
#     origin (fleece, ext4)    snap, part (fleece-snapshot) --- fleeced --- clients
#           |                     |      |
#          disk  <----------------+     cow, cow2     slices of one brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
CLUSTER=128
FLEECED=$FLEECE_TREE/userspace/fleeced/fleeced
PULL=$FLEECE_TREE/userspace/pull/fleece-pull
PORT=10810
server=
secret=

clean_up()
{
	[ ! -e /sys/block/nbd0/pid ] || nbd-client -d /dev/nbd0
	[ -z "$server" ] || { kill "$server" && wait "$server"; }
	[ -z "$secret" ] || { kill "$secret" && wait "$secret"; }
	server=
	secret=
}

# change_files NAME: the filesystem gets another content.
change_files()
{
	or_bail mount "$(path_of origin)" "$SCRATCH/mnt"
	echo "$1" > "$SCRATCH/mnt/file"
	dd if=/dev/urandom of="$SCRATCH/mnt/$1" bs=64k count=20 conv=fsync status=none
	cp "$SCRATCH/mnt/file" "$SCRATCH/file"
	or_bail umount "$SCRATCH/mnt"
}

# image NAME: of the origin, which nobody writes to.
image()
{
	or_bail dd if="$(path_of origin)" of="$SCRATCH/$1" bs=1M iflag=direct status=none
}

make_snapshots()
{
	or_bail mkfs.ext4 -q -b 4096 "$(path_of origin)"
	mkdir "$SCRATCH/mnt"
	change_files first
	or_bail message origin checkpoint_create first
	image old
	change_files second
	image golden
	make_snapshot snap disk cow $CLUSTER
	make_snapshot part disk cow2 $CLUSTER "2 since first"
	or_bail pattern origin write 3 0 -
	wait_copied snap
	wait_copied part
}

# start_server PID_FILE OPTION...: its pid is that of the last background command then.
start_server()
{
	"$FLEECED" --pid-file "$1" "${@:2}" "whole=$(path_of snap)" "part=$(path_of part)" \
		2> "$1.log" &
	wait_until 20 test -s "$1" || bail "fleeced starts" "$(cat "$1.log")"
}

serve()
{
	defer clean_up
	start_server "$SCRATCH/pid" --socket "$SCRATCH/nbd"
	server=$!
}

# certificate NAME SIDE EXTENSION: signed by the authority, with a copy of that one's.
certificate()
{
	mkdir "$SCRATCH/$1"
	cp "$SCRATCH/ca-cert.pem" "$SCRATCH/$1"
	or_bail openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
		-keyout "$SCRATCH/$1/$2-key.pem" -out "$SCRATCH/request"
	chmod 600 "$SCRATCH/$1/$2-key.pem"
	echo "$3" > "$SCRATCH/extensions"
	or_bail openssl x509 -req -in "$SCRATCH/request" -CA "$SCRATCH/ca-cert.pem" \
		-CAkey "$SCRATCH/ca-key.pem" -CAcreateserial -days 2 \
		-extfile "$SCRATCH/extensions" -out "$SCRATCH/$1/$2-cert.pem"
}

# The kernel's client over TLS is tested nowhere else. Leaves $certificates empty without openssl.
serve_with_tls()
{
	certificates=
	command -v openssl > /dev/null || return 0
	or_bail openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
		-subj /CN=authority -days 2 -keyout "$SCRATCH/ca-key.pem" -out "$SCRATCH/ca-cert.pem"
	certificate host server "subjectAltName = IP:127.0.0.1"
	certificate backup client "extendedKeyUsage = clientAuth"
	start_server "$SCRATCH/secret-pid" --listen 127.0.0.1:$PORT --tls-certs "$SCRATCH/host"
	secret=$!
	certificates=$SCRATCH/backup
}

# pull EXPORT TARGET OPTION...
pull()
{
	"$PULL" "nbd+unix:///$1?socket=$SCRATCH/nbd" "${@:2}"
}

test_block_device()
{
	local target

	target=$(path_of target)
	or_bail dd if=/dev/urandom of="$target" bs=1M count=16 oflag=direct status=none
	succeeds "a full backup onto a block device" pull whole "$target"
	succeeds "it is right" cmp "$SCRATCH/golden" "$target"
	or_bail dd if="$SCRATCH/old" of="$target" bs=1M oflag=direct status=none
	succeeds "an incremental one, of a limited snapshot" pull part "$target" --since first
	succeeds "it is right" cmp "$SCRATCH/golden" "$target"
	fails "a device that is too small" "has 8388608 bytes, the export 16777216" pull whole \
		"$(path_of small)"
	fails "a full backup of a limited snapshot" "cannot be read" pull part "$target"
	succeeds "leaves the device alone" cmp "$SCRATCH/golden" "$target"
	or_bail mount -o noload,ro "$target" "$SCRATCH/mnt"
	fails "a device that is mounted" "cannot open it: Device or resource busy" pull whole "$target"
	or_bail umount "$SCRATCH/mnt"
}

load_fleece
requires_program /usr/bin/python3 mkfs.ext4
# So docs/backup.rst says. Those of Debian 11 know less, and ignore some errors.
clients=$(nbdinfo --version 2> /dev/null | awk 'NR == 1 { print $2 }')
[ -z "$clients" ] || printf '%s\n' 1.14 "$clients" | sort -CV ||
	skip_all "the recipes are for the clients of Debian 12 and later; nbdinfo is $clients"
[ -x "$FLEECED" ] || skip_all "fleeced is not built"
[ -x "$PULL" ] || skip_all "fleece-pull is not built"
make_arena 128
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 256)"
make_disk cow2 "$(cow_sectors $CLUSTER 256)"
make_disk target $SECTORS
make_disk small $((SECTORS / 2))
make_origin origin disk
has_module nbd
has_module fuse
make_snapshots
serve
serve_with_tls
take_tap /usr/bin/python3 "$here/recipes.py" "$SCRATCH/nbd" whole part first "$SCRATCH/old" \
	"$SCRATCH/golden" "$SCRATCH/file" $PORT "$certificates"
test_block_device
clean_up
wait_until 10 modprobe -r nbd
or_bail dm_remove part
or_bail dm_remove snap
finish
