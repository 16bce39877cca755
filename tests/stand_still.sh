# SPDX-License-Identifier: GPL-2.0-only
# Sourced by suites: kill() returns before SIGSTOP has stopped anybody, and what was asked meanwhile is still answered.

stands_still() { local states; states=$(grep -hs '^State:' "/proc/$1/task"/*/status) && ! grep -qv '	T ' <<< "$states"; }
# stand_still PID: SIGSTOP, and returns when every thread of the process has stopped
stand_still() {
	kill -STOP "$1"
	until_true 120 "that every thread of process $1 has stopped" stands_still "$1"
}
