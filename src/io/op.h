// SPDX-License-Identifier: GPL-2.0-only
// An operation in flight, as every interface of this room takes it.
#pragma once

#include "coro/op.h"

namespace netblk::io {

using coro::await;
using coro::Await;
using coro::Op;

}  // namespace netblk::io
