// SPDX-License-Identifier: GPL-2.0-only
// netblk volume import: a new volume with the contents of a raw disk.
#pragma once

#include "netblk_volume.h"
#include "volume_store.h"

namespace netblk::tools {

int import_volume(const VolumeName& name, const VolumeArguments& arguments);

}  // namespace netblk::tools
