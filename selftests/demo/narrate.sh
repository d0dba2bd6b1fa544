# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# How the demo speaks: numbered steps, each command before its output, progress,
# and verifications that are counted. It also undoes what was done, in reverse.
# It knows nothing of the story. Sourced, never run.

FLEECE_DEMO_TTY=${FLEECE_DEMO_TTY:-}
STEP=0
FAILED=0
VERIFIED=0
CLEANUPS=()

now()
{
	echo "${EPOCHREALTIME//,/.}"
}

# seconds_since TIME: with one decimal.
seconds_since()
{
	awk -v begin="$1" -v end="$(now)" 'BEGIN { printf "%.1f", end - begin }'
}

mib()
{
	awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'
}

step()
{
	STEP=$((STEP + 1))
	printf '\n== %d. %s   [%s s]\n' $STEP "$*" "$(seconds_since "$BEGIN")"
}

tell()
{
	printf '   %s\n' "$@"
}

give_up()
{
	printf '\ndemo: %s\n' "$*" >&2
	exit 1
}

indent()
{
	sed -u 's/^/   | /'
}

show()
{
	printf '   $ %s\n' "$*"
}

# run COMMAND...: what a user would type; without it the story cannot go on.
run()
{
	show "$@"
	"$@" 2>&1 3>&- | indent
	[ "${PIPESTATUS[0]}" -eq 0 ] || give_up "this failed: $*"
}

# quietly COMMAND...: likewise, for what would only distract.
quietly()
{
	"$@" > "$LOGS/quiet" 2>&1 || {
		indent < "$LOGS/quiet"
		give_up "this failed: $*"
	}
}

# bar PERCENT TEXT
bar()
{
	local filled=$(($1 * 30 / 100)) line

	printf -v line '%*s' "$filled" ''
	printf '\r   [%-30s] %3d%%  %s' "${line// /#}" "$1" "$2"
}

# draw_progress: reads lines N/100. A terminal sees a bar that grows, a file
# sees each quarter.
draw_progress()
{
	local line percent last=-1 quarter=0

	while IFS= read -r line; do
		percent=${line%%/*}
		[ "$percent" != "$last" ] || continue
		last=$percent
		if [ -n "$FLEECE_DEMO_TTY" ]; then
			bar "$percent" ""
		elif [ $((percent / 25)) -gt $quarter ]; then
			quarter=$((percent / 25))
			printf '   %s%d%%' "$([ $quarter -gt 1 ] || echo '... ')" $((quarter * 25))
		fi
	done
	echo
}

# run_with_progress COMMAND...: it reports N/100 on descriptor 3. Its output
# goes to $LOGS/output.
run_with_progress()
{
	local status=0

	{ "$@" 3>&1 > "$LOGS/output" 2> "$LOGS/errors" | draw_progress; } || status=$?
	[ $status -eq 0 ] || {
		indent < "$LOGS/errors"
		give_up "this failed: $*"
	}
}

# verify TEXT COMMAND...: prints PASS or FAIL; the story goes on.
verify()
{
	VERIFIED=$((VERIFIED + 1))
	if "${@:2}" > "$LOGS/verify" 2>&1; then
		printf '   PASS  %s\n' "$1"
	else
		FAILED=$((FAILED + 1))
		printf '   FAIL  %s\n' "$1"
		indent < "$LOGS/verify"
	fi
}

# wait_until SECONDS COMMAND...
wait_until()
{
	local deadline=$((SECONDS + $1))

	until "${@:2}" > /dev/null 2>&1; do
		[ $SECONDS -lt $deadline ] || return 1
		sleep 0.1
	done
}

# defer COMMAND...: to undo what was just done, at the end.
defer()
{
	CLEANUPS+=("$(printf '%q ' "$@")")
}

run_cleanups()
{
	local i

	trap '' INT TERM HUP
	for ((i = ${#CLEANUPS[@]} - 1; i >= 0; i--)); do
		eval "${CLEANUPS[i]}" > /dev/null 2>&1 || :
	done
	CLEANUPS=()
}
