# SPDX-License-Identifier: GPL-2.0-only
# Sourced by kernels, modules, boot, run and selftest: paths, words, and what each KIND of kernel is made of.
# Nothing here trusts the environment: it must work under `env -i`.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
unset MAKEFLAGS MFLAGS MAKELEVEL ARCH CROSS_COMPILE KBUILD_OUTPUT

vm_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
project_root=$(cd "$vm_dir/../.." && pwd -P)
HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}; export HOME=${HOME:-/root}
kernels_dir=${NETBLK_CACHE:-$HOME/.cache/netblk}/kernels
all_kinds="uml uml-kasan debian-6.1 debian-6.12 debug arm64"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

check_kind() {
	case " $all_kinds " in *" $1 "*) ;; *) say "unknown kernel '$1'; the kernels are: $all_kinds"; exit 2;; esac
}

# need_packages GROUP...: every package that packages.txt gives to one of the groups is installed, or words.
need_packages() {
	local package hash groups group missing=()
	while read -r package hash groups; do
		case $package in ''|'#'*) continue;; esac
		for group in "$@" all; do
			case " $groups " in *" $group "*)
				[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
				break;;
			esac
		done
	done < "$vm_dir/packages.txt"
	[ ${#missing[@]} = 0 ] || die "not installed: ${missing[*]}
install with: apt-get install --no-install-recommends ${missing[*]}"
}

kernel_path() { printf '%s/%s' "$kernels_dir" "$1"; }

# The make arguments that select a kernel for an external module.
kernel_make_args() {
	local dir; dir=$(kernel_path "$1")
	printf 'KDIR=%s\n' "$dir/kdir"
	case $1 in
		uml|uml-kasan) echo ARCH=um;;
		arm64) echo ARCH=arm64; echo CROSS_COMPILE=aarch64-linux-gnu-;;
		*) echo ARCH=x86;;
	esac
}
