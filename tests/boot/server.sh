#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# The servers of guest.sh, outside the guest. usage: server.sh NETBLK_SERVER FOLDER ADDRESS
# On port 10812 is one that comes late, and dies when the guest writes FOLDER/mortal.
server=$1 folder=$2 address=$3
"$server" --export one=file:"$folder/one.img" --export two=file:"$folder/two.img" --export three=file:"$folder/three.img" \
	--export four=file:"$folder/four.img" --listen "netblk://$address:10809" --listen "nbd://$address:10810" > "$folder/server.log" 2>&1 &
while :; do
	mkdir -p "$folder/state"
	"$server" --export one=file:"$folder/one2.img" --export two=file:"$folder/two2.img" --listen "netblk://$address:10812" > "$folder/mortal.log" 2>&1 & pid=$!
	until [ -e "$folder/mortal" ]; do sleep 0.1; done
	kill -KILL $pid; wait $pid
	rm -f "$folder/mortal"
	sleep infinity
done
