# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What the shell tests share: TAP output, the module, backing devices with names
# of their own, cleanup, and the kernel's log. Sourced, never run.
#
# A test is a bash script that sources this file, calls what it needs, and ends
# with `finish`. It must run as root on a machine (a VM) that it may load modules
# into. Exit status: 0 passed, 1 failed, 4 skipped.
#
# The module is $FLEECE_MODULE_DIR/dm-fleece.ko, or that of this tree; the C
# programs of the tests are in $FLEECE_TEST_BIN, or where make puts them.
set -u

FLEECE_TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FLEECE_TEST_BIN=${FLEECE_TEST_BIN:-$FLEECE_TREE/selftests/kernel}
TEST_NAME=$(basename "$0" .sh)
PREFIX=fl-$$
MAPPER=/dev/mapper
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/fl-XXXXXX") || exit 1

# Emulated machines are slow: waits end when their condition holds, not before
# this many seconds are over.
WAIT_SECONDS=${FLEECE_WAIT_SECONDS:-60}

#
# TAP.
#
TESTS=0
FAILURES=0

echo "TAP version 13"

note()
{
	local line

	while IFS= read -r line; do
		echo "# $line"
	done < <(printf '%s\n' "$@")
}

ok()
{
	TESTS=$((TESTS + 1))
	echo "ok $TESTS - $1"
}

not_ok()
{
	TESTS=$((TESTS + 1))
	FAILURES=$((FAILURES + 1))
	echo "not ok $TESTS - $1"
	shift
	[ $# -eq 0 ] || note "$@"
}

skip()
{
	TESTS=$((TESTS + 1))
	echo "ok $TESTS - $1 # SKIP $2"
}

skip_all()
{
	trap - EXIT
	on_exit
	echo "1..0 # SKIP $*"
	exit 4
}

# The test cannot go on.
bail()
{
	not_ok "$1" "${@:2}"
	finish
}

# is DESCRIPTION FOUND EXPECTED
is()
{
	if [ "$2" = "$3" ]; then
		ok "$1"
	else
		not_ok "$1" "found: $2" "expected: $3"
	fi
}

# like DESCRIPTION FOUND REGEX
like()
{
	if [[ $2 =~ $3 ]]; then
		ok "$1"
	else
		not_ok "$1" "found: $2" "expected, as a pattern: $3"
	fi
}

# at_most DESCRIPTION FOUND LIMIT
at_most()
{
	if [ "$2" -le "$3" ]; then
		ok "$1"
	else
		not_ok "$1" "found: $2" "at most: $3"
	fi
}

# at_least DESCRIPTION FOUND LIMIT
at_least()
{
	if [ "$2" -ge "$3" ]; then
		ok "$1"
	else
		not_ok "$1" "found: $2" "at least: $3"
	fi
}

# succeeds DESCRIPTION COMMAND...
succeeds()
{
	local output

	if output=$("${@:2}" 2>&1); then
		ok "$1"
	else
		not_ok "$1" "failed: ${*:2}" "$output"
		return 1
	fi
}

# fails DESCRIPTION REGEX COMMAND...: it fails and says something like REGEX.
fails()
{
	local output

	if output=$("${@:3}" 2>&1); then
		not_ok "$1" "did not fail: ${*:3}" "$output"
		return 1
	elif [[ ! $output =~ $2 ]]; then
		not_ok "$1" "failed otherwise than expected: ${*:3}" "$output" "expected: $2"
		return 1
	fi
	ok "$1"
}

# or_bail COMMAND...: what only prepares a test is reported if it fails.
or_bail()
{
	local output

	output=$("$@" 2>&1) || bail "preparation: $*" "$output"
}

# take_tap COMMAND...: adds the TAP lines of a program to this test's own. There must be
# some, and as many as it has planned.
take_tap()
{
	local line status=0 bad=0 lines=0 plan=none

	"$@" > "$SCRATCH/tap" 2>&1 || status=$?
	while IFS= read -r line; do
		case $line in
		"ok "*)
			lines=$((lines + 1))
			ok "$(sed -E 's/^ok [0-9 ]*- //' <<< "$line")"
			;;
		"not ok "*)
			lines=$((lines + 1))
			bad=1
			not_ok "$(sed -E 's/^not ok [0-9 ]*- //' <<< "$line")"
			;;
		"TAP version"*) ;;
		1..*) plan=${line#1..} ;;
		"#"*) echo "$line" ;;
		*) note "$line" ;;
		esac
	done < "$SCRATCH/tap"
	[ $status -eq 0 ] || [ $bad -eq 1 ] || not_ok "$1 ends well" "exit status $status"
	if [ $lines -eq 0 ] || [ "$plan" != $lines ]; then
		not_ok "$1 runs what it has planned" "planned: $plan" "ran: $lines"
	fi
}

#
# Cleanup: registered directly after each acquisition, run in reverse.
#
CLEANUPS=()

defer()
{
	CLEANUPS+=("$(printf '%q ' "$@")")
}

run_cleanups()
{
	local i

	for ((i = ${#CLEANUPS[@]} - 1; i >= 0; i--)); do
		eval "${CLEANUPS[i]}" > "$SCRATCH/cleanup" 2>&1 ||
			note "cleanup failed: ${CLEANUPS[i]}" "$(cat "$SCRATCH/cleanup")"
	done
	CLEANUPS=()
}

on_exit()
{
	run_cleanups
	[ -z "${MODULE_LOADED:-}" ] || wait_until 10 rmmod dm_fleece
	rm -rf "$SCRATCH"
}

trap on_exit EXIT
trap 'exit 1' INT TERM HUP

# Is anything of this test left?
check_leftovers()
{
	local left

	left=$(dmsetup ls 2>/dev/null | grep "^$PREFIX-")
	is "leaves no device behind" "$left" ""
	if [ -d /sys/module/dm_fleece ]; then
		wait_until 10 module_is_idle || :
		is "leaves no reference to the module" "$(cat /sys/module/dm_fleece/refcnt)" 0
	fi
	if [ -n "${MODULE_LOADED:-}" ]; then
		succeeds "the module can be unloaded" rmmod dm_fleece
		MODULE_LOADED=
	fi
	left=$(log_since_start | grep -E 'WARNING:|BUG:|Oops|Call Trace|possible (circular|recursive) locking|inconsistent lock|blocked for more than|refcount_t:|not in table devices list|dm_put_device call missing')
	is "the kernel did not complain" "$left" ""
}

finish()
{
	trap - EXIT
	run_cleanups
	check_leftovers
	rm -rf "$SCRATCH"
	echo "1..$TESTS"
	[ $FAILURES -eq 0 ] || exit 1
	exit 0
}

#
# Requirements.
#
requires_root()
{
	[ "$(id -u)" = 0 ] || skip_all "needs root"
}

requires_program()
{
	local program

	for program; do
		command -v "$program" > /dev/null || skip_all "needs the program $program"
	done
}

# requires_module MODULE [PARAMETER...]: of the kernel; unloaded at the end if
# it was this test that loaded it.
requires_module()
{
	local directory=/sys/module/${1//-/_}

	[ -d "$directory" ] && [ $# -eq 1 ] && return
	[ ! -d "$directory" ] || [ ! -e "$directory/refcnt" ] || modprobe -r "$1" 2>/dev/null
	[ ! -e "$directory/refcnt" ] || skip_all "the module $1 is in use with other parameters"
	modprobe "$@" 2>/dev/null || skip_all "needs the module $1"
	[ ! -e "$directory/refcnt" ] || defer unload_module "$1"
}

# Others may look at its devices for a moment.
unload_module()
{
	wait_until 20 modprobe -r "$1"
}

# has_module MODULE: for a single case; a module that is not in use stays loaded.
has_module()
{
	[ -d "/sys/module/${1//-/_}" ] || modprobe "$1" 2>/dev/null
}

requires_tool()
{
	[ -x "$FLEECE_TEST_BIN/$1" ] || skip_all "needs the test program $1: make -C selftests/kernel"
}

find_module()
{
	local directory

	for directory in "${FLEECE_MODULE_DIR:-$FLEECE_TREE}" "$FLEECE_TREE/drivers"; do
		[ ! -e "$directory/dm-fleece.ko" ] || echo "$directory/dm-fleece.ko"
	done | head -n 1
}

load_fleece()
{
	local module

	requires_root
	requires_program dmsetup blockdev
	requires_tool pattern
	requires_tool fleece-maps
	log_mark_start
	[ ! -d /sys/module/dm_fleece ] || return 0
	module=$(find_module)
	[ -n "$module" ] || skip_all "dm-fleece.ko is not built"
	modprobe dm-mod 2>/dev/null
	insmod "$module" 2> "$SCRATCH/insmod" || bail "loads the module" "$(cat "$SCRATCH/insmod")"
	MODULE_LOADED=1
	wait_until 10 test -e /dev/fleece-control || bail "makes /dev/fleece-control"
}

# set_parameter NAME VALUE: of the module; at the end it is as it was.
set_parameter()
{
	local file=/sys/module/dm_fleece/parameters/$1

	defer eval "echo $(cat "$file") > $file"
	echo "$2" > "$file" || bail "preparation: the parameter $1"
}

module_is_idle()
{
	[ "$(cat /sys/module/dm_fleece/refcnt)" = 0 ]
}

#
# Time.
#
now_ms()
{
	local now=${EPOCHREALTIME//[.,]/}

	echo $((now / 1000))
}

# wait_until SECONDS COMMAND...: waits for the command to succeed, see run-tests for
# the slowdown.
wait_until()
{
	local seconds=$(($1 > WAIT_SECONDS ? $1 : WAIT_SECONDS))
	local deadline=$((${EPOCHREALTIME//[.,]/} + seconds * 1000000 * ${FLEECE_SLOWDOWN:-1}))

	until "${@:2}" > /dev/null 2>&1; do
		[ "${EPOCHREALTIME//[.,]/}" -lt "$deadline" ] || return 1
		sleep 0.05
	done
}

# in_background NAME COMMAND...: as $background. Its output goes to $SCRATCH/NAME, where
# from now on there is nothing of another one's, though this one may not have begun.
in_background()
{
	: > "$SCRATCH/$1"
	"${@:2}" > "$SCRATCH/$1" 2>&1 &
	# shellcheck disable=SC2034 # it is for the caller
	background=$!
}

# elapsed_ms COMMAND...: prints how long it took; its output goes to $SCRATCH/output.
elapsed_ms()
{
	local begin

	begin=$(now_ms)
	"$@" > "$SCRATCH/output" 2>&1
	echo $(($(now_ms) - begin))
}

#
# The kernel's log.
#
log_mark_start()
{
	echo "fleece-test: $PREFIX $TEST_NAME starts" > /dev/kmsg
	LOG_MARK="fleece-test: $PREFIX $TEST_NAME starts"
	LOG_MARKS=0
}

log_after()
{
	dmesg | awk -v mark="$1" 'seen { print } index($0, mark) { seen = 1 }
		END { if (!seen) print "BUG: the log has lost what came before" }'
}

log_since_start()
{
	log_after "fleece-test: $PREFIX $TEST_NAME starts"
}

# From here on, expect_log looks.
log_mark()
{
	LOG_MARKS=$((LOG_MARKS + 1))
	LOG_MARK="fleece-test: $PREFIX mark $LOG_MARKS;"
	echo "$LOG_MARK" > /dev/kmsg
}

log_has()
{
	log_after "$LOG_MARK" | grep -qiE "device-mapper:.*($1)|fleece.*($1)"
}

# expect_log DESCRIPTION REGEX: dm-fleece has said so since log_mark.
expect_log()
{
	if wait_until 5 log_has "$2"; then
		ok "$1"
	else
		not_ok "$1" "expected in the kernel's log: $2" "found:" "$(log_after "$LOG_MARK" | tail -n 5)"
	fi
}

# Devices that are none of device-mapper, by their names here.
declare -A PLAIN=()

#
# Devices. Names are given without the prefix, sizes in sectors. What is called all the time
# starts no process that it can do without: on an emulated machine each costs more than
# anything else that a test does.
#
path_of()
{
	echo "${PLAIN[$1]:-$MAPPER/$PREFIX-$1}"
}

dm_create()
{
	dmsetup create "$PREFIX-$1" "${@:3}" --table "$2" && make_nodes
}

# Where no udev makes the nodes in /dev/mapper, or removes those of devices gone.
make_nodes()
{
	[ -e /run/udev/control ] || dmsetup mknodes
}

# What udev does about a device, it has done.
settle_udev()
{
	[ ! -e /run/udev/control ] || or_bail udevadm settle
}

# udev may look at a device just made: removal waits for it.
dm_remove()
{
	wait_until 20 dmsetup remove "$PREFIX-$1"
}

# device_stat NAME FIELD: of the kernel's statistics of a device: 1 reads, 3 sectors
# read, 5 writes, 7 sectors written.
device_stat()
{
	awk -v field="$2" '{ print $field }' "/sys/dev/block/$(dmsetup info -c --noheadings \
		--separator : -o major,minor "$PREFIX-$1")/stat"
}

# no_probing: udev is not to read from the devices of a test, neither when they are
# made or resumed nor when somebody has written to them. To be called before that.
no_probing()
{
	# After 55-dm.rules, which sets the flags, and before those that heed them.
	local rule=/run/udev/rules.d/56-fleece-test.rules

	[ -e /run/udev/control ] || return 0
	mkdir -p "$(dirname $rule)"
	defer eval "rm -f $rule && udevadm control --reload"
	echo 'ENV{DM_NAME}=="fl-*", ENV{DM_UDEV_DISABLE_DISK_RULES_FLAG}="1",' \
		'ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", OPTIONS:="nowatch"' > $rule
	or_bail udevadm control --reload
}

# At the end: whatever state it is in, it must go.
dm_remove_deferred()
{
	dmsetup info "$PREFIX-$1" > /dev/null 2>&1 || return 0
	dmsetup resume "$PREFIX-$1"
	dm_remove "$1"
}

# make_plain NAME SECTORS ATTRIBUTE=VALUE...: a disk of null_blk's with memory and
# these attributes, and nothing of device-mapper above it, whose clones of bios hide what
# a queue does with those of the target. Fails if there is no such thing here.
make_plain()
{
	local dir=/sys/kernel/config/nullb/fleece-$1 device value

	if [ ! -d /sys/module/null_blk ]; then
		modprobe null_blk nr_devices=0 2> /dev/null || return
		defer unload_module null_blk
	fi
	if ! mountpoint -q /sys/kernel/config; then
		mount -t configfs configfs /sys/kernel/config || return
		defer umount /sys/kernel/config
	fi
	mkdir "$dir" || return
	defer rmdir "$dir"
	for value in memory_backed=1 "size=$((($2 + 2047) / 2048))" blocksize=512 "${@:3}" power=1; do
		echo "${value#*=}" > "$dir/${value%%=*}" || return
	done
	# Newer kernels name the device as the directory, older ones by a number.
	device=/dev/fleece-$1
	[ -d "/sys/block/fleece-$1" ] || device=/dev/nullb$(cat "$dir/index")
	wait_until 10 test -b "$device" || return
	PLAIN[$1]=$device
}

# make_null_blk NAME SECTORS ATTRIBUTE=VALUE...: the same as a slice of it.
make_null_blk()
{
	local device

	make_plain "$@" || return
	device=$(path_of "$1")
	unset "PLAIN[$1]"
	dm_create "$1" "0 $2 linear $device 0" || return
	defer dm_remove_deferred "$1"
}

# The arena: one big RAM disk of which all backing devices are slices, so that a
# test can suspend them, make them fail or slow them down.
ARENA=
ARENA_USED=0

# make_arena MIB: of brd.
make_arena()
{
	requires_module brd rd_nr=1 "rd_size=$(($1 * 1024))"
	wait_until 10 test -b /dev/ram0 || skip_all "brd made no device"
	ARENA=/dev/ram0
	ARENA_USED=0
}

# make_discard_arena MIB: of scsi_debug, which can discard and write zeroes, and
# returns zeroes after a discard.
make_discard_arena()
{
	requires_module scsi_debug "dev_size_mb=$1" lbpu=1 lbpws=1 lbprz=1 delay=0 "${@:2}"
	wait_until 20 find_scsi_debug || skip_all "scsi_debug made no device"
	ARENA=$(find_scsi_debug)
	ARENA_USED=0
}

find_scsi_debug()
{
	local device

	for device in /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*; do
		if [ -b "/dev/${device##*/}" ]; then
			echo "/dev/${device##*/}"
			return 0
		fi
	done
	return 1
}

# make_disk NAME SECTORS: a slice of the arena, sets DISK_START[NAME].
declare -A DISK_START
make_disk()
{
	local room

	room=$(blockdev --getsz "$ARENA")
	[ $((ARENA_USED + $2)) -le "$room" ] || bail "preparation: the arena is too small for $1"
	or_bail dm_create "$1" "0 $2 linear $ARENA $ARENA_USED"
	defer dm_remove_deferred "$1"
	DISK_START[$1]=$ARENA_USED
	# Slices begin at round places, whatever their sizes are.
	ARENA_USED=$(((ARENA_USED + $2 + 2047) / 2048 * 2048))
}

# make_narrow NAME SECTORS: a disk of the arena that takes four requests at a time. While
# NAME-below is suspended it ends none, and who submits a fifth one waits.
#
#     NAME (linear)
#      |
#     loop device, direct I/O
#      |
#     NAME-below (slice of the arena)
make_narrow()
{
	local loop queue

	make_disk "$1-below" "$2"
	has_module loop
	loop=$(losetup --find --show --direct-io=on "$(path_of "$1-below")") ||
		bail "preparation: a loop device"
	defer wait_until 10 eval "! losetup $loop"
	defer losetup -d "$loop"
	queue=/sys/block/${loop##*/}/queue
	or_bail eval "echo none > $queue/scheduler && echo 4 > $queue/nr_requests"
	or_bail dm_create "$1" "0 $2 linear $loop 0"
	defer dm_remove_deferred "$1"
	# What udev reads of a new device would be one of the four.
	settle_udev
}

# has_jitter: can make_jittery work here?
has_jitter()
{
	has_module dm-delay && has_module dm-multipath && has_module dm-round-robin
}

# make_jittery NAME DISK MS: a device on DISK that lets every other read wait for
# some milliseconds, so that I/O that comes later overtakes it.
#
#     NAME (multipath, round robin)
#      |       |
#      |   NAME-slow (delay of reads)
#      DISK ---+
make_jittery()
{
	local sectors disk

	disk=$(path_of "$2")
	sectors=$(blockdev --getsz "$disk")
	or_bail dm_create "$1-slow" "0 $sectors delay $disk 0 $3 $disk 0 0"
	defer dm_remove_deferred "$1-slow"
	or_bail dm_create "$1" "0 $sectors multipath 2 queue_mode bio 0 1 1 round-robin 0 2 1 $disk 1 $(path_of "$1-slow") 1"
	defer dm_remove_deferred "$1"
}

# slice_table NAME: the table a disk was made with, to give it back later.
slice_table()
{
	echo "0 $(blockdev --getsz "$(path_of "$1")") linear $ARENA ${DISK_START[$1]}"
}

# replace_lines NAME < TABLE: with what is in flight drained.
replace_lines()
{
	dmsetup suspend --nolockfs "$PREFIX-$1" && dmsetup load "$PREFIX-$1" &&
		dmsetup resume "$PREFIX-$1"
}

# replace_table NAME TABLE: of one line.
replace_table()
{
	replace_lines "$1" <<< "$2"
}

# delay_writes NAME MS: until it gets another table.
delay_writes()
{
	has_module dm-delay || bail "needs the module dm-delay"
	or_bail replace_table "$1" "$(slice_table "$1" | sed "s/linear \(.*\)/delay \1 0 \1 $2/")"
}

# stall DISK: from now on it ends nothing, and keeps all, until `unstall`.
stall()
{
	or_bail dmsetup suspend --nolockfs --noflush "$PREFIX-$1"
}

unstall()
{
	or_bail dmsetup resume "$PREFIX-$1"
}

# make_origin NAME DISK [GRANULARITY [FEATURES]]
make_origin()
{
	local lower

	lower=$(path_of "$2")
	or_bail dm_create "$1" "0 $(blockdev --getsz "$lower") fleece $lower - ${3:-128} ${4:-}"
	defer dm_remove_deferred "$1"
}

# durable_table DISK METADISK [GRANULARITY]
durable_table()
{
	local lower

	lower=$(path_of "$1")
	echo "0 $(blockdev --getsz "$lower") fleece $lower $(path_of "$2") ${3:-128}"
}

# format_metadata METADISK SECTORS [OPTION...]: for an origin of that size, with options
# of `fleece metadata create`.
format_metadata()
{
	or_bail "$FLEECE_TREE/userspace/fleece/fleece" metadata create "$(path_of "$1")" \
		--origin-size $(($2 * 512)) --force "${@:3}"
}

# make_durable_origin NAME DISK METADISK [GRANULARITY]
make_durable_origin()
{
	or_bail dm_create "$1" "$(durable_table "$2" "$3" "${4:-128}")"
	defer dm_remove_deferred "$1"
}

# snapshot_table DISK COWDISK CLUSTER [FEATURES]: FEATURES begin with their count.
snapshot_table()
{
	echo "0 $(blockdev --getsz "$(path_of "$1")") fleece-snapshot $(path_of "$1") $(path_of "$2") $3 ${4:-}"
}

# refuses DESCRIPTION ERROR LOG TABLE: the table is refused with an error and a
# word in the log that match the patterns, and leaves nothing behind.
refuses()
{
	log_mark
	fails "$1: refused" "$2" dm_create refused "$4" || dm_remove refused
	expect_log "$1: the log says why" "$3"
	dmsetup info "$PREFIX-refused" > /dev/null 2>&1 && not_ok "$1: no device is left"
}

# refuses_message DESCRIPTION ERROR LOG NAME MESSAGE...: likewise.
refuses_message()
{
	log_mark
	fails "$1: refused" "$2" message "${@:4}"
	expect_log "$1: the log says why" "$3"
}

# make_snapshot NAME DISK COWDISK CLUSTER [FEATURES]
make_snapshot()
{
	or_bail dm_create "$1" "$(snapshot_table "$2" "$3" "$4" "${5:-}")"
	defer dm_remove_deferred "$1"
}

# cow_sectors CLUSTER SLOTS: size of a COW device with that many slots.
cow_sectors()
{
	echo $((2048 + $1 * $2))
}

message()
{
	dmsetup message -- "$PREFIX-$1" 0 "${@:2}"
}

# status_of NAME: the status line, without start, length and target.
status_of()
{
	local line

	line=$(dmsetup status "$PREFIX-$1") || return
	echo "${line#* * * }"
}

# origin_field NAME FIELD
origin_field()
{
	local granularity granules changed metadata snapshots checkpoints newest

	# shellcheck disable=SC2034 # they are read by name
	read -r _ _ _ granularity granules changed metadata snapshots checkpoints newest \
		<<< "$(dmsetup status "$PREFIX-$1")"
	echo "${!2}"
}

# settled NAME: no region of the origin has an intent.
settled()
{
	[ "$(origin_field "$1" metadata)" = clean ]
}

# snapshot_field NAME FIELD
snapshot_field()
{
	local state slots used total cluster access accessible clusters copied released lost
	local staged waiting errno sector

	# shellcheck disable=SC2034 # they are read by name
	{
		read -r _ _ _ state slots cluster access copied released lost staged waiting errno \
			sector <<< "$(dmsetup status "$PREFIX-$1")"
		used=${slots%/*}
		total=${slots#*/}
		accessible=${access%/*}
		clusters=${access#*/}
	}
	echo "${!2}"
}

snapshot_field_is()
{
	[ "$(snapshot_field "$1" "$2")" = "$3" ]
}

snapshot_field_reaches()
{
	[ "$(snapshot_field "$1" "$2")" -ge "$3" ]
}

# events_of NAME: how many events its dm device has raised.
events_of()
{
	dmsetup info -c --noheadings -o events "$PREFIX-$1" | tr -d ' '
}

# has_events NAME COUNT: more than COUNT events have been raised.
has_events()
{
	[ "$(events_of "$1")" -gt "$2" ]
}

# copied_and_used: two fields of the snapshot "snap".
copied_and_used()
{
	echo "$(snapshot_field snap copied) $(snapshot_field snap used)"
}

# maps_kib: what the maps of the module take, which vmalloc does not count.
maps_kib()
{
	awk '/ fleece_map_alloc[.+].* vmap/ { sum += $2 } END { print int(sum / 1024) }' /proc/vmallocinfo
}

# Copies go on after the write that caused them has returned.
wait_copied()
{
	wait_until "$WAIT_SECONDS" snapshot_field_is "$1" staged 0
}

# map NAME MAP [CHECKPOINT]: the map as runs "OFFSET LENGTH VALUE", comma-separated.
map()
{
	local IFS=, found_extents

	mapfile -t found_extents < <("$FLEECE_TEST_BIN/fleece-maps" "$MAPPER/$PREFIX-$1" extents "${@:2}")
	echo "${found_extents[*]}"
}

maps()
{
	"$FLEECE_TEST_BIN/fleece-maps" "$MAPPER/$PREFIX-$1" "${@:2}"
}

# pattern NAME VERB ...: an operation on the device NAME, see pattern.c.
pattern()
{
	"$FLEECE_TEST_BIN/pattern" "$MAPPER/$PREFIX-$1" "${@:2}"
}

# gets DESCRIPTION RESULT NAME VERB ...: the operation's result is RESULT.
gets()
{
	is "$1" "$("$FLEECE_TEST_BIN/pattern" "$MAPPER/$PREFIX-$3" "${@:4}" 2>&1)" "$2"
}

# gets_now DESCRIPTION RESULT NAME VERB ...: likewise, where what goes wrong is that the
# operation waits until the test goes on.
gets_now()
{
	local output=$SCRATCH/now-$TESTS

	pattern "${@:3}" > "$output" 2>&1 &
	wait_until 60 test -s "$output"
	is "$1" "$(cat "$output")" "$2"
}

# is_stuck PID: the process is in an operation on a device that does not end.
is_stuck()
{
	[[ $(< "/proc/$1/stat") == *") D "* ]]
}

# has_called PID FUNCTION: the process waits in that function of the kernel.
has_called()
{
	grep -q "$2" "/proc/$1/stack"
}

has_ended()
{
	! kill -0 "$1" 2> /dev/null
}

# has_flying NAME COUNT: so many bios have been given to a device that have not ended.
has_flying()
{
	[ "$(device_stat "$1" 9)" = "$2" ]
}
