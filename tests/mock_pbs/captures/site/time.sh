#!/bin/sh
# /usr/bin/time -f FORMAT COMMAND, as far as the captures need it: a machine of the tests may have none.
shift
format=$1
shift
"$@"
status=$?
[ $status -eq 0 ] || echo "Command exited with non-zero status $status" >&2
# shellcheck disable=SC2059  # the format is ours: its %e becomes a number
printf "$(printf '%s' "$format" | sed 's/%e/0.00/')\n" >&2
exit $status
