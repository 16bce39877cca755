# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034,SC2154  # one program with build.sh: variables cross the files
# Sourced by build.sh: the Debian packages that are missing.

# wanted_packages FILE...: the names in the lists; what follows a name is for other readers.
wanted_packages() {
	local file name rest arch
	arch=$(dpkg --print-architecture)
	for file; do
		[ -e "$file" ] || continue
		while read -r name rest; do
			: "$rest"
			case $name in '' | '#'*) continue ;; esac
			printf '%s\n' "${name//@ARCH@/$arch}"
		done <"$file"
	done | sort -u
}

missing_packages() {
	local name
	for name in $(wanted_packages "$@"); do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || printf '%s\n' "$name"
	done
}

install_missing() {
	local missing as_root=()
	command -v dpkg-query >/dev/null || die "this is no Debian: install the packages of scripts/packages.txt by hand, then use cmake --preset release"
	mapfile -t missing < <(missing_packages "$@")
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null ||
			die "packages are missing and this is not root. As root: apt-get update && apt-get install --no-install-recommends ${missing[*]}"
		as_root=(sudo)
		[ -t 0 ] || as_root=(sudo -n)
	fi
	say "installing ${#missing[@]} packages: ${missing[*]}"
	local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
	logged apt-update "${apt[@]}" update || die "the package lists cannot be fetched (see above)"
	logged apt-install "${apt[@]}" install -y --no-install-recommends "${missing[@]}" ||
		die "packages cannot be installed. As root: apt-get install --no-install-recommends ${missing[*]}"
}
