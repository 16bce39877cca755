// SPDX-License-Identifier: GPL-2.0-only
// Keys of encrypted volumes, as users have them: a file, or a passphrase in a file or typed at a terminal (docs/volumes.md).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "store/volume/keys.h"

namespace netblk::tools {

// Paths; both empty: no key was given.
struct KeyFiles {
  std::string key_file;
  std::string passphrase_file;
  bool none() const { return key_file.empty() && passphrase_file.empty(); }
};

using SharedKey = std::shared_ptr<const store::volume::UserKey>;

// Null where none was given. From here on the process leaves no core dump, and nobody of its user can look into it: what an
// encrypted volume holds passes through all of its memory.
Result<SharedKey> read_key(const KeyFiles& files);
// Typed at this process's terminal, without being shown; `again`: twice. ENOTTY: it has none.
Result<SharedKey> ask_passphrase(const std::string& words, bool again);

// The keys of the volume in this folder, as its newer superblock has them. EOPNOTSUPP: it is not encrypted.
Result<std::vector<store::volume::KeySlotInfo>> key_slots_in(const std::string& folder);
// Whether the volume in this folder is encrypted; false also for what is no volume.
bool is_encrypted_volume(const std::string& folder);

}  // namespace netblk::tools
