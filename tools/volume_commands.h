// SPDX-License-Identifier: GPL-2.0-only
// The commands themselves: each takes what is asked, and answers with what `--json` prints.
#pragma once

#include "volume_command.h"
#include "volume_keys.h"

namespace netblk::tools {

// What a rollback or a rewind calls what was until then; nobody else gives such names.
inline constexpr std::string_view kBeforeRewind = "before-rewind-";
Status not_reserved(std::string_view name);

coro::Task<Result<Json>> volume_info(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_list(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_snapshot(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_delete(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_check(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_scrub(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_clone(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_rollback(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_rewind(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_resize(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_get(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_set(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_key_add(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_key_remove(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_key_change(VolumeWork& on, const Json& asked);

// A key in what is asked. Whoever has the volume open compares it himself: who may ask may not yet change its keys.
Json key_json(const store::volume::UserKey& key);
Result<SharedKey> key_in(const Json& asked, const char* member);
coro::Task<Result<Json>> volume_send(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_export(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_receive(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_receive_status(VolumeWork& on, const Json& asked);
coro::Task<Result<Json>> volume_receive_abort(VolumeWork& on, const Json& asked);

}  // namespace netblk::tools
