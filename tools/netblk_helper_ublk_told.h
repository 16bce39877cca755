// SPDX-License-Identifier: GPL-2.0-only
// What the users of a disk of ublk were told of their changes, in a file that outlives the helper that told them.
#pragma once

#include <memory>
#include <string>

#include "attach/ublk/ublk_disk.h"
#include "base/result.h"

namespace netblk::tools {

class ToldFile {
 public:
  // The file of a disk, made when it is not there.
  static Result<ToldFile> open(const std::string& path);

  attach::UblkTold& told() const { return *told_; }
  uint64_t unflushed() const { return told_->acknowledged - told_->flushed; }
  // What may be gone has been reported.
  void forget() const { told_->flushed = told_->acknowledged.load(); }

 private:
  struct Unmap {
    void operator()(attach::UblkTold* told) const;
  };
  explicit ToldFile(attach::UblkTold* told) : told_(told) {}
  std::unique_ptr<attach::UblkTold, Unmap> told_;
};

}  // namespace netblk::tools
