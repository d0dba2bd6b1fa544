#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will use the command `fleece` on plain devices, wrongly and rightly:
# exit statuses, messages, nothing left behind, waiting, serving.
#
#     NAME (fleece)     NAME-snap (fleece-snapshot)
#         |               |          |
#       disk  <-----------+         cow          slices of one brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/../cli/lib.sh"

SECTORS=32768

load_fleece
requires_program mkfs.ext4 e2fsck sfdisk jq losetup
requires_fleece
has_module loop || skip_all "needs the module loop"
truncate -s $((SECTORS * 512)) "$SCRATCH/disk" "$SCRATCH/other"
disk=$(losetup -f --show "$SCRATCH/disk") || skip_all "no loop devices"
defer losetup -d "$disk"
make_arena 64
make_disk cow "$(cow_sectors 128 64)"
make_disk tiny 2048
make_disk used 32768
make_disk uneven-disk 2056
name=$PREFIX-plain

# shellcheck disable=SC2317 # it is called at the end
detach_deferred()
{
	dmsetup info "$name" > /dev/null 2>&1 || return 0
	"$FLEECE" remove "$name-snap" > /dev/null 2>&1
	"$FLEECE" detach "$name"
}

nothing_attached()
{
	is "$1: nothing is attached" "$(dmsetup ls --target fleece | grep -v "No devices")" ""
}

#
# Attach.
#
exits "attach of what does not exist" 4 "$FLEECE" attach /dev/none
exits "attach of a file" 4 "$FLEECE" attach "$SCRATCH/disk"
exits "attach of a character device" 4 "$FLEECE" attach /dev/null
exits "attach with a slash in the name" 2 "$FLEECE" attach "$disk" --name a/b
fails "attach with a blank in the name tells what is allowed" "letters, digits, .* at most 63 of them" \
	"$FLEECE" attach "$disk" --name "a b"
truncate -s 8M "$SCRATCH/parts"
or_bail sfdisk -q "$SCRATCH/parts" <<< "2048,4096"
parts=$(losetup -f -P --show "$SCRATCH/parts") || bail "preparation: a disk with a partition"
defer losetup -d "$parts"
says "attach of a disk with partitions warns" "has partitions.*kpartx -a $MAPPER/$name" \
	"$FLEECE" attach "$parts" --name "$name"
or_bail "$FLEECE" detach "$name"
or_bail mkfs.ext4 -q "$disk"
mkdir "$SCRATCH/mnt"
or_bail mount "$disk" "$SCRATCH/mnt"
exits "attach of a mounted plain device" 5 "$FLEECE" attach "$disk"
like "it says where" "$("$FLEECE" attach "$disk" 2>&1)" "is mounted on $SCRATCH/mnt"
or_bail wait_until 20 umount "$SCRATCH/mnt"
or_bail dmsetup create "$PREFIX-holder" --table "0 $SECTORS linear $disk 0"
exits "attach of a device that another one uses" 5 "$FLEECE" attach "$disk"
exits "attach with a name in use" 5 "$FLEECE" attach "$disk" --name "$PREFIX-holder"
or_bail dm_remove holder
nothing_attached "refusals"
exits "status of what is not attached" 4 "$FLEECE" status "$name"
exits "snapshot of what is not attached" 4 "$FLEECE" snapshot "$name" --cow "$(path_of cow)"

says "attach of a plain device" "use /dev/mapper/$name" "$FLEECE" attach "$disk" --name "$name" \
	--granularity 4K
defer detach_deferred
is "its node exists" "$(stat -L -c %F "$MAPPER/$name")" "block special file"
like "its uuid is ours" "$(dmsetup info -c --noheadings -o uuid "$name")" "^FLEECE-origin-"
is "its granularity is what was asked for" \
	"$("$FLEECE" status "$name" --json | jq '.origins[0].granularity_bytes')" 4096
exits "attach of the same device again" 5 "$FLEECE" attach "$disk" --name "$PREFIX-again"
exits "attach of the origin itself" 5 "$FLEECE" attach "$name"

fails "attach of it under another name" "keeps its name" \
	"$FLEECE" attach "$PREFIX-cow" --name other

#
# Held.
#
test_frozen()
{
	local said status=0

	or_bail mount "$MAPPER/$name" "$SCRATCH/mnt"
	or_bail fsfreeze --freeze "$SCRATCH/mnt"
	said=$("$FLEECE" snapshot "$name" --cow "$(path_of cow)" 2>&1) || status=$?
	or_bail fsfreeze --unfreeze "$SCRATCH/mnt"
	or_bail wait_until 20 umount "$SCRATCH/mnt"
	case $status in
	0) succeeds "a frozen filesystem can be frozen once more" "$FLEECE" remove "$name-snap" ;;
	5) like "a frozen filesystem is told" "$said" "$name: .*its filesystem is frozen" ;;
	*) not_ok "snapshot of a frozen filesystem" "exit status $status: $said" ;;
	esac
}
test_frozen

or_bail dmsetup suspend "$name"
fails "check tells of an origin that is suspended" "BAD +$name: is suspended" \
	sh -c "$FLEECE check 2>&1"
or_bail dmsetup resume "$name"
succeeds "and not any more once it is resumed" "$FLEECE" check

mkdir "$SCRATCH/bin"
cp "$FLEECE" "$SCRATCH/bin/fleece"
printf '#!/bin/sh\necho fleeced 9.9\n' > "$SCRATCH/bin/fleeced"
chmod +x "$SCRATCH/bin/fleeced"
is "check names a server of another version" "$("$SCRATCH/bin/fleece" check --json |
	jq -r '.checks[] | select(.ok | not) | .name'; echo "${PIPESTATUS[0]}")" "server fleeced
8"
printf '#!/bin/sh\nfalse\n' > "$SCRATCH/bin/fleeced"
is "check with one that does not run" "$("$SCRATCH/bin/fleece" check > /dev/null; echo $?)" 8

# Device-mapper lets another device of its own use the lower device.
or_bail dmsetup create "$PREFIX-past" --table "0 $SECTORS linear $disk 0"
fails "check tells of a device that goes past the origin" "BAD +$name: .*$PREFIX-past uses" \
	sh -c "$FLEECE check 2>&1"
fails "no snapshot is taken of it" "$PREFIX-past uses its lower device past it" \
	"$FLEECE" snapshot "$name" --cow "$(path_of cow)"
or_bail dm_remove past
succeeds "check finds nothing when that is gone" "$FLEECE" check

#
# Checkpoints.
#
succeeds "checkpoint create" "$FLEECE" checkpoint create "$name" one
is "checkpoint create for programs tells the uuid of the list" \
	"$("$FLEECE" checkpoint create "$name" other --json | jq -c '.checkpoints[0] | del(.changed_bytes)')" \
	"$("$FLEECE" checkpoint list "$name" --json | jq -c '.checkpoints[1] | del(.changed_bytes)')"
succeeds "it is deleted again" "$FLEECE" checkpoint delete "$name" other
exits "checkpoint create of one that exists" 5 "$FLEECE" checkpoint create "$name" one
exits "checkpoint delete of an unknown one" 7 "$FLEECE" checkpoint delete "$name" two
fails "who deletes it is not told to make a backup" "has no checkpoint 'two'$" \
	"$FLEECE" checkpoint delete "$name" two
exits "checkpoint of an unknown device" 4 "$FLEECE" checkpoint list none
is "check finds nothing wrong" "$("$FLEECE" check --json | jq '.ok, all(.checks[]; .ok)' | paste -sd,)" \
	true,true
or_bail pattern plain write 1 64k 8k
is "map of the origin since its newest checkpoint" "$("$FLEECE" map "$name" | tr -s ' ' | paste -sd,)" \
	" 0 65536 0 clean, 65536 8192 1 dirty, 73728 16703488 0 clean"
succeeds "checkpoint delete" "$FLEECE" checkpoint delete "$name" one
exits "map without any checkpoint" 7 "$FLEECE" map "$name"
is "for programs it is nothing, not half a document" \
	"$("$FLEECE" map "$name" --since one --json 2> /dev/null)" ""
like "list without checkpoints" "$("$FLEECE" list)" "$name +origin +tracking +16.0M +- "

# Its last granule has only 4 KiB.
test_uneven()
{
	local uneven=$PREFIX-uneven-disk

	or_bail "$FLEECE" attach "$uneven"
	or_bail "$FLEECE" checkpoint create "$uneven" one
	or_bail dd if=/dev/zero of="$MAPPER/$uneven" bs=1028k count=1 oflag=direct status=none
	is "no more has changed than there is" \
		"$("$FLEECE" status "$uneven" --json | jq '.origins[0].changed_bytes')" $((2056 * 512))
	is "nor does the list of checkpoints say so" \
		"$("$FLEECE" checkpoint list "$uneven" --json | jq '.checkpoints[0].changed_bytes')" \
		$((2056 * 512))
	or_bail wait_until 20 "$FLEECE" detach "$uneven"
}
test_uneven

#
# COW devices.
#
# shellcheck disable=SC2317 # it is called by exits and says
snapshot()
{
	"$FLEECE" snapshot "$name" "$@"
}

no_snapshot()
{
	is "$1: no snapshot" \
		"$(dmsetup ls --target fleece-snapshot | grep -v "No devices")$("$FLEECE" \
			status "$name" --json | jq '.origins[0].snapshots')" 0
}

exits "COW device that does not exist" 4 snapshot --cow /dev/none
exits "COW device that is a file" 4 snapshot --cow "$SCRATCH/other"
exits "COW device that is the origin" 5 snapshot --cow "$MAPPER/$name"
exits "COW device that is the origin's lower device" 5 snapshot --cow "$disk"
exits "COW device of 1 MiB" 1 snapshot --cow "$(path_of tiny)"
or_bail mkfs.ext4 -q "$(path_of used)"
or_bail mount "$(path_of used)" "$SCRATCH/mnt"
exits "COW device that is mounted" 5 snapshot --cow "$(path_of used)"
or_bail wait_until 20 umount "$SCRATCH/mnt"
exits "COW device with a filesystem on it" 5 snapshot --cow "$(path_of used)"
fails "it says what is on it, and what to do" "holds data \(ext4\); --force destroys it" \
	snapshot --cow "$(path_of used)"
succeeds "the filesystem is whole" e2fsck -fn "$(path_of used)"
succeeds "it is taken with --force" snapshot --cow "$(path_of used)" --force
succeeds "and the snapshot removed" "$FLEECE" remove "$name-snap"
succeeds "a COW device that has been one needs no force" snapshot --cow "$(path_of used)"
succeeds "that snapshot, too, is removed" "$FLEECE" remove "$name-snap"
or_bail sfdisk -q --no-reread "$(path_of used)" <<< "label: gpt"
fails "COW device with a partition table" "holds data \(gpt\)" snapshot --cow "$(path_of used)"
or_bail "$FLEECE" metadata create "$(path_of used)" --origin-size 16M --force
fails "COW device with metadata on it" "holds data \(metadata of dm-fleece\)" \
	snapshot --cow "$(path_of used)"
fails "an origin as a metadata device" "is the origin $name" \
	"$FLEECE" metadata create "$MAPPER/$name" --origin-size 1M --force
fails "the same of an attach" "is the origin $name" \
	"$FLEECE" attach "$(path_of tiny)" --metadata "$MAPPER/$name"
succeeds "attach of a device-mapper device" "$FLEECE" attach "$(path_of tiny)"
or_bail wait_until 20 dmsetup remove "$PREFIX-tiny"
says "detach when somebody has removed it" "removed already" "$FLEECE" detach "$PREFIX-tiny"
fails "what was below it is gone" "not exist|No such" dmsetup info -c "$PREFIX-tiny-lower"
succeeds "blkid is found from cron as well" env PATH=/usr/bin:/bin \
	"$FLEECE" snapshot "$name" --cow "$(path_of cow)"
succeeds "the last one is removed" "$FLEECE" remove "$name-snap"
or_bail mkfs.ext4 -q "$MAPPER/$name"
or_bail mount "$MAPPER/$name" "$SCRATCH/mnt"
exits "COW space on the origin's own filesystem" 1 snapshot --cow-size 4M --cow-dir "$SCRATCH/mnt"
exits "COW space in a directory that does not exist" 1 \
	snapshot --cow-size 4M --cow-dir "$SCRATCH/none"
mkdir "$SCRATCH/full"
or_bail mount -t tmpfs -o size=2M none "$SCRATCH/full"
exits "COW space on a filesystem without room" 1 snapshot --cow-size 4M --cow-dir "$SCRATCH/full"
fails "it says what is missing, and what to do" \
	"no room for 4194304 bytes of COW space in $SCRATCH/full; choose a smaller --cow-size, another --cow-dir" \
	snapshot --cow-size 4M --cow-dir "$SCRATCH/full"
is "the file is gone, with what it had" "$(stat -f -c '%b %f' "$SCRATCH/full")$(ls -A "$SCRATCH/full")" \
	"512 512"
or_bail umount "$SCRATCH/full"
exits "COW space on LVM for an origin that is not" 1 snapshot --cow-size 4M --cow-kind lvm
exits "detach of a mounted device" 5 "$FLEECE" detach "$name"
or_bail wait_until 20 umount "$SCRATCH/mnt"
no_snapshot "refusals"

#
# A snapshot that fills up and breaks.
#
exits "wait for what is no snapshot" 4 "$FLEECE" wait "$name" --for broken
says "snapshot on a COW device" "^frozen for" snapshot --cow "$(path_of cow)" --checkpoint two
is "the snapshot is read-only" "$(blockdev --getro "$MAPPER/$name-snap")" 1
exits "wait that takes too long" 1 "$FLEECE" wait "$name-snap" --for broken --timeout 1
exits "release beyond the end" 2 "$FLEECE" release "$name-snap" 1G:64K
exits "release of half a sector" 2 "$FLEECE" release "$name-snap" 0:100
succeeds "release of a range" "$FLEECE" release "$name-snap" 1M:128K
like "map shows it" "$("$FLEECE" map "$name-snap")" "1048576 +131072 +1  inaccessible"
"$FLEECE" wait "$name-snap" --for full=50% > "$SCRATCH/wait" 2>&1 &
waiter=$!
or_bail pattern plain write 3 2M 3M
wait "$waiter"
is "wait for a COW device half full" $? 0
"$FLEECE" wait "$name-snap" --for full=100% --for broken > "$SCRATCH/wait" 2>&1 &
waiter=$!
or_bail pattern plain write 4 6M 8M
wait "$waiter"
is "wait for a broken snapshot" $? 0
wait_until 20 snapshot_field_is plain-snap state broken
is "status of a broken snapshot shows it" "$("$FLEECE" status "$name-snap" --json |
	jq -r '.snapshots[0].state')" broken
"$FLEECE" status "$name-snap" > "$SCRATCH/status"
is "and its exit status is 6" $? 6
exits "map of a broken snapshot" 6 "$FLEECE" map "$name-snap"
exits "serve of a broken snapshot" 6 "$FLEECE" serve "$name-snap"
exits "release of a broken snapshot" 6 "$FLEECE" release "$name-snap" all
exits "wait for a broken snapshot to fill" 6 "$FLEECE" wait "$name-snap" --for full=100%
is "wait tells a program what has ended it" "$("$FLEECE" wait "$name-snap" --for full=100% --json |
	jq -r '.reason, .snapshot.name, .snapshot.state' | paste -sd,)" "broken,$name-snap,broken"
says "check tells of it" "$name-snap: is broken" sh -c "$FLEECE check || :"
is "also a program" "$("$FLEECE" check --json |
	jq -r --arg name "$name-snap" '.ok, (.checks[] | select(.name == $name) | .ok)' | paste -sd,)" \
	false,false
fails "a snapshot is not taken for an origin" "is a snapshot" "$FLEECE" checkpoint list "$name-snap"
succeeds "remove of a broken snapshot" "$FLEECE" remove "$name-snap"
is "the COW device of the user is left" "$(dmsetup info "$PREFIX-cow" | grep -c ACTIVE)" 1

#
# Policies, and what comes later.
#
says "snapshot with every policy" "^frozen for" snapshot --cow "$(path_of cow)" --cluster 4K \
	--since two --checkpoint three --cbw-timeout 1000 --low-water 3 --staging 1M \
	--on-cbw-error break_cluster --on-cow-full wait --release-on-discard
like "its table has them" "$(dmsetup table "$name-snap")" \
	"^0 $SECTORS fleece-snapshot [0-9]+:[0-9]+ [0-9]+:[0-9]+ 8 [0-9]+ .*since two.*checkpoint three.*on_cbw_error break_cluster on_cow_full wait"
# Not with blkdiscard: that of util-linux 2.36 reads first, even with -f, and nothing of a
# snapshot where nothing has changed can be read.
is "its status names the checkpoint" "$("$FLEECE" status "$name-snap" --json |
	jq -r '.snapshots[0].since')" two
gets "a discard releases" ok plain-snap discard 0 -
is "nothing can be read" "$("$FLEECE" status "$name-snap" --json |
	jq '.snapshots[0].accessible_clusters')" 0
succeeds "remove" "$FLEECE" remove "$name-snap"
exits "since an unknown checkpoint" 7 snapshot --cow "$(path_of cow)" --since never
exits "a checkpoint that exists" 5 snapshot --cow "$(path_of cow)" --checkpoint three
# Whoever it complains to has gone.
{
	sleep 1
	snapshot --cow "$(path_of cow)" --checkpoint three
} 2>&1 | true
no_snapshot "policies"

#
# Serve.
#
stop_server()
{
	[ ! -s "$SCRATCH/pid" ] || pkill -F "$SCRATCH/pid" || :
}

# Once more until it has ended: it removes its pid file.
# shellcheck disable=SC2317 # called by wait_until
stop_and_forget()
{
	stop_server
	[ ! -e "$SCRATCH/pid" ]
}

# shellcheck disable=SC2317 # called by wait_until
two_servers_run()
{
	[ "$(pgrep -cf "fleeced --socket $1 ")" -eq 2 ]
}

# serve_twice SOCKET: two at the same time, both of which find nobody there; their exit
# statuses in order of size.
serve_twice()
{
	local i servers=() statuses=()

	exec 9> "$1.lock"
	flock 9
	for i in 1 2; do
		"$FLEECE" serve "$name-snap" --background --socket "$1" --pid-file "$SCRATCH/pid" \
			--log-file "$SCRATCH/log.$i" > /dev/null 2>> "$SCRATCH/said" 9>&- &
		servers+=($!)
	done
	wait_until 20 two_servers_run "$1" || echo "not both started"
	exec 9>&-
	for i in "${servers[@]}"; do
		wait "$i"
		statuses+=($?)
	done
	printf '%s\n' "${statuses[@]}" | sort -n | paste -sd ' '
}

# serve_on_terminal SOCKET HOW: a server in the foreground of a terminal that is closed, or
# where somebody types Ctrl-C. Succeeds when both have ended; who removes the pid file of a
# server that is gone may take a moment.
serve_on_terminal()
{
	timeout $((60 * ${FLEECE_SLOWDOWN:-1})) python3 - "$2" "$SCRATCH/pid" \
		"$FLEECE" serve "$name-snap" --socket "$1" --pid-file "$SCRATCH/pid" <<- END
		import os, pty, sys, time

		how, pid_file = sys.argv[1:3]
		child, terminal = pty.fork()
		if not child:
		    os.execv(sys.argv[3], sys.argv[3:])
		while not os.path.exists(pid_file):
		    time.sleep(0.05)
		if how == "closed":
		    os.close(terminal)
		else:
		    os.write(terminal, b"\x03")
		os.waitpid(child, 0)
		while os.path.exists(pid_file):
		    time.sleep(0.05)
	END
}

test_serve()
{
	local socket=$SCRATCH/nbd pid=$SCRATCH/pid uri

	if [ ! -x "$FLEECE_TREE/userspace/fleeced/fleeced" ]; then
		skip "serve" "fleeced is not built"
		return
	elif ! command -v nbdinfo > /dev/null; then
		skip "serve" "nbdinfo is not installed"
		return
	fi
	or_bail snapshot --cow "$(path_of cow)"
	uri="nbd+unix:///$name-snap?socket=$socket"
	exec 8> "$SCRATCH/lock"
	says "serve in the background prints the URI" "^nbd\+unix:///$name-snap\?socket=$socket$" \
		"$FLEECE" serve "$name-snap" --background --socket "$socket" --pid-file "$pid" \
		--log-file "$SCRATCH/log"
	exec 8>&-
	defer stop_server
	is "what its caller has open is not held by the server" \
		"$(find "/proc/$(cat "$pid")/fd" -lname "$SCRATCH/lock")" ""
	is "nbdinfo sees the size" "$(nbdinfo --size "$uri")" $((SECTORS * 512))
	exits "serve on the same socket" 5 "$FLEECE" serve "$name-snap" --socket "$socket"
	exits "remove of a served snapshot" 5 "$FLEECE" remove "$name-snap"
	wait_until 20 stop_and_forget
	is "of two that serve on it at the same time, one does" "$(serve_twice "$socket")" "0 5"
	like "and the other one says so" "$(cat "$SCRATCH/said")" "somebody serves on $socket already"
	wait_until 20 stop_and_forget
	"$FLEECE" serve "$name-snap" --socket "$socket" --pid-file "$pid" > /dev/null 2>&1 &
	wait_until 20 test -s "$pid" || not_ok "a pid file in the foreground" "there is none"
	exits "is the server's" 5 "$FLEECE" serve "$name-snap" --socket "$socket"
	stop_server
	wait $! || :
	if command -v python3 > /dev/null; then
		succeeds "Ctrl-C ends it" serve_on_terminal "$socket" ctrl-c
		succeeds "so does the end of its terminal" serve_on_terminal "$socket" closed
	else
		skip "serve on a terminal" "python3 is not installed"
	fi
	or_bail dmsetup rename "$name-snap" "$name:snap"
	says "the export of a name that none may have has another one" \
		"^nbd\+unix:///${name}_snap\?" "$FLEECE" serve "$name:snap" --background \
		--socket "$socket" --pid-file "$pid" --log-file "$SCRATCH/log"
	is "which can be read" "$(nbdinfo --size "nbd+unix:///${name}_snap?socket=$socket")" \
		$((SECTORS * 512))
	stop_server
	or_bail wait_until 20 stop_and_forget
	is "a program is told of the device" "$("$FLEECE" serve "$name:snap" --background --json \
		--socket "$socket" --pid-file "$pid" --log-file "$SCRATCH/log" |
		jq -r '.exports[0] | .name, .device' | paste -sd,)" "${name}_snap,$MAPPER/$name:snap"
	stop_server
	or_bail dmsetup rename "$name:snap" "$name-snap"
	fails "one that cannot listen says why" "0.0.0.0 is not a loopback address" \
		"$FLEECE" serve "$name-snap" --background --socket "$SCRATCH/other" \
		--pid-file "$SCRATCH/other.pid" --log-file "$SCRATCH/log" --listen 0.0.0.0
	wait_until 20 "$FLEECE" remove "$name-snap" || not_ok "remove after serving"
	no_snapshot "served"
}
test_serve

# Commands that can work: there is nothing else in it.
test_serve_since()
{
	if [ ! -x "$FLEECE_TREE/userspace/fleeced/fleeced" ]; then
		skip "serve of a limited snapshot" "fleeced is not built"
		return
	fi
	or_bail snapshot --cow "$(path_of cow)" --since two
	"$FLEECE" serve "$name-snap" --background --socket "$SCRATCH/nbd" \
		--pid-file "$SCRATCH/pid" --log-file "$SCRATCH/log" > "$SCRATCH/said"
	stop_server
	is "serve of a limited snapshot shows what can be done with it" \
		"$(awk '/^ / { print $1, $2 }' "$SCRATCH/said" | sed "s/'.*//" | paste -sd,)" \
		"nbdinfo ,nbdinfo --map=qemu:dirty-bitmap:two,fleece pull"
	like "and the pull is an incremental one" "$(cat "$SCRATCH/said")" " --since two"
	or_bail wait_until 20 stop_and_forget
	"$FLEECE" serve "$name-snap" --background --json --socket "$SCRATCH/nbd" \
		--pid-file "$SCRATCH/pid" --log-file "$SCRATCH/log" > "$SCRATCH/said"
	is "a program is told, too" "$(jq -r --rawfile pid "$SCRATCH/pid" \
		'(.pid == ($pid | rtrimstr("\n") | tonumber)), .tls, .socket, (.exports[0] | .name, .since, .uris[0])' \
		"$SCRATCH/said" | paste -sd,)" \
		"true,false,$SCRATCH/nbd,$name-snap,two,nbd+unix:///$name-snap?socket=$SCRATCH/nbd"
	stop_server
	wait_until 20 "$FLEECE" remove "$name-snap" || not_ok "remove after serving"
}
test_serve_since

# serve_uris OPTION...: serve in the background; the URIs that were printed.
serve_uris()
{
	"$FLEECE" serve "$name-snap" --background --socket "$SCRATCH/it's a=b&c/nbd" \
		--pid-file "$SCRATCH/pid" --log-file "$SCRATCH/log" "$@" > "$SCRATCH/said" || return
	grep '^nbd' "$SCRATCH/said"
}

# The libnbd of Debian 11 looks for a host of the name [::1].
takes_ipv6()
{
	! nbdinfo "nbd://[::1]:1/" 2>&1 | grep -qF 'getaddrinfo: [::1]'
}

# can_use URI SHOWN: the export has its size there.
can_use()
{
	if [[ $1 == *//\[* ]] && ! takes_ipv6; then
		skip "the URI can be used: $2" "this libnbd takes no IPv6 addresses"
		return
	fi
	is "the URI can be used: $2" "$(nbdinfo --size "$1" 2>&1)" $((SECTORS * 512))
}

test_serve_uris()
{
	local addresses=(--listen 127.0.0.1 --listen "[::1]:10888") uri uris

	if [ ! -x "$FLEECE_TREE/userspace/fleeced/fleeced" ] || ! command -v nbdinfo > /dev/null; then
		skip "URIs" "fleeced or nbdinfo is missing"
		return
	fi
	! has_module vsock_loopback || addresses+=(--vsock 1:10809)
	mkdir "$SCRATCH/it's a=b&c"
	(umask 077 && echo "backup:$(printf '%064d' 1)" > "$SCRATCH/keys")
	or_bail snapshot --cow "$(path_of cow)"
	uris=$(serve_uris "${addresses[@]}") || bail "serve" "$(cat "$SCRATCH/said")"
	is "each address has a URI" "$(wc -l <<< "$uris")" $((1 + ${#addresses[@]} / 2))
	for uri in $uris; do
		can_use "$uri" "${uri//$SCRATCH/}"
	done
	succeeds "the command that is shown for nbdinfo" \
		bash -c "$(grep -m 1 '^  nbdinfo' "$SCRATCH/said")"
	or_bail wait_until 20 stop_and_forget
	uris=$(serve_uris --allow-release) || bail "serve" "$(cat "$SCRATCH/log")"
	is "with --allow-release there is a URI that releases" \
		"$(sed 's,?.*,,; s,.*/,,' <<< "$uris" | paste -sd' ')" "$name-snap $name-snap%2Brelease"
	like "and a command to pull from it" "$(grep "fleece pull" "$SCRATCH/said" | tail -n 1)" "%2Brelease"
	can_use "${uris#*$'\n'}" "the one that releases"
	or_bail wait_until 20 stop_and_forget
	is "a program is told of both" "$(serve_uris --allow-release --json; jq -r \
		'.exports[0] | .uris[0], .release_uris[0]' "$SCRATCH/said")" "$uris"
	or_bail wait_until 20 stop_and_forget
	uris=$(serve_uris "${addresses[@]}" --tls-psk "$SCRATCH/keys") ||
		bail "serve with TLS" "$(cat "$SCRATCH/log")"
	is "each of them is one for TLS" "$(grep -c ^nbds <<< "$uris")" $((1 + ${#addresses[@]} / 2))
	# libnbd sends the address as the server's name, which GnuTLS takes for names alone.
	for uri in $uris; do
		[[ $uri != *//\[* ]] || continue
		[[ $uri == *\?* ]] || uri="$uri?"
		uri="${uri/:\/\//:\/\/backup@}&tls-psk-file=$SCRATCH/keys"
		can_use "${uri/\?&/?}" "${uri//$SCRATCH/}"
	done
	or_bail wait_until 20 stop_and_forget
	uris=$(serve_uris -- --tls-psk "$SCRATCH/keys")
	like "TLS is seen among the server's own options, too" "$uris" "^nbds\+unix:"
	stop_server
	wait_until 20 "$FLEECE" remove "$name-snap" || not_ok "remove after serving"
}

test_serve_uris

# set_delay MS: what a write to the slow device takes from now on.
set_delay()
{
	local disk

	disk=$(path_of held-disk)
	replace_table slow "0 8192 delay $disk 0 0 $disk 0 $1"
}

# hold_write OFFSET: of the device that is converted, for as long as it matters.
hold_write()
{
	or_bail set_delay 600000
	in_background write pattern held write 1 "$1" 4k
	wait_until 20 has_flying held 1 || bail "preparation: a write that takes long"
}

# end_write NAME: which no conversion has kept waiting, nor anything after it.
end_write()
{
	gets_now "$1: I/O goes on" ok held read 0 4k
	is "$1: nothing is suspended" "$(dmsetup info -c --noheadings -o suspended \
		"$PREFIX-held")" Active
	or_bail set_delay 0
	wait "$background"
	is "$1: the write succeeds" "$(cat "$SCRATCH/write")" ok
}

# Conversions that would have to hold I/O for longer than they may are given up.
test_held_writes()
{
	local held=$PREFIX-held writer

	if ! has_module dm-delay; then
		skip "conversions under writes that take long" "dm-delay is missing"
		return
	fi
	make_disk held-disk 8192
	or_bail dm_create slow "0 8192 linear $(path_of held-disk) 0"
	defer dm_remove_deferred slow
	or_bail dm_create held "0 8192 linear $(path_of slow) 0"
	defer dm_remove_deferred held

	hold_write 1M
	fails "attach is given up" "$held: could not be suspended in time" \
		"$FLEECE" attach "$held" --freeze-timeout 2
	end_write "attach is given up"
	like "attach is given up: the table is the old one" "$(dmsetup table "$held")" " linear "
	fails "attach is given up: nothing is left of it" "No such device" dmsetup table "$held-lower"

	hold_write 3M
	writer=$background
	in_background attach "$FLEECE" attach "$held" --freeze-timeout 600
	wait_until 20 has_called $background dm_suspend || bail "preparation: attach holds I/O"
	kill -9 $background
	background=$writer
	end_write "attach is killed"
	fails "attach is killed: check tells of it" "fleece detach $held" "$FLEECE" check
	says "later it is attached" "attached" "$FLEECE" attach "$held"

	or_bail message held checkpoint_create one
	hold_write 2M
	fails "detach is given up" "$held: could not be suspended in time" \
		"$FLEECE" detach "$held" --freeze-timeout 2
	end_write "detach is given up"
	is "detach is given up: the write was tracked" \
		"$("$FLEECE" checkpoint list "$held" --json | jq '.checkpoints[0].changed_bytes')" 65536
	succeeds "detach is given up: check finds nothing" "$FLEECE" check
	succeeds "detach is given up: messages are heard" message held checkpoint_create two
	or_bail dmsetup load "$held" --table "$(dmsetup table "$held")"
	fails "check finds a conversion that was never ended" "dmsetup clear $held" "$FLEECE" check
	or_bail dmsetup clear "$held"
	says "later it is detached" "detached" "$FLEECE" detach "$held"
}

test_held_writes

says "detach" "detached" "$FLEECE" detach "$name"
nothing_attached "the end"
finish
