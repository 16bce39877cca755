// SPDX-License-Identifier: GPL-2.0-only
// What opening a file and opening an overlay have in common. `options` name the file.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "store/file_store.h"
#include "store/identity.h"

namespace netblk::store {

// Exclusive, or shared when read-only; waits as long as the options say.
Status lock_file(int fd, const FileOptions& options);

// A new file, with its name.
Status make_durable(int fd, const std::string& path);

// Before the file is grown, which changes what it is known by. `fd` outlives the result.
Result<std::unique_ptr<Identity>> open_identity(int fd, const FileOptions& options);

}  // namespace netblk::store
