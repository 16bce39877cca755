// SPDX-License-Identifier: GPL-2.0-only
// A generic netlink family of the kernel: one command at a time, each with its acknowledgement, and what its multicast
// group says. Sources that use it include libnl's headers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"

struct nl_msg;
struct nl_sock;
struct nlattr;

namespace netblk::attach {

struct FreeNetlinkSocket {
  void operator()(nl_sock* socket) const;
};
using NetlinkSocket = std::unique_ptr<nl_sock, FreeNetlinkSocket>;

// The number that an attribute holds; nothing: it is not there, or too short for one.
std::optional<uint32_t> u32_of(const nlattr* attribute);

class Genl {
 public:
  // The socket is connected to whoever speaks the family.
  Genl(NetlinkSocket socket, int number, uint8_t version, int max_attribute)
      : socket_(std::move(socket)), number_(number), version_(version), max_attribute_(max_attribute) {}
  // ENOENT: the kernel has no such family.
  static Result<Genl> open(const std::string& name, uint8_t version, int max_attribute);

  // Adds a message's attributes; negative: they do not fit.
  using Fill = std::function<int(nl_msg*)>;
  // An answer's attributes, by their numbers; null where it has none.
  using Take = std::function<void(std::span<nlattr* const>)>;
  // The kernel's refusal is an error with its errno, and its own words where it has some.
  Status ask(uint8_t command, const Fill& fill, const Take& take = {}) const;

 private:
  NetlinkSocket socket_;
  int number_;
  uint8_t version_;
  int max_attribute_;
};

class GenlEvents {
 public:
  // The socket hears what is said, and does not block.
  GenlEvents(NetlinkSocket socket, int max_attribute) : socket_(std::move(socket)), max_attribute_(max_attribute) {}
  // ENOENT: the kernel has no such family or group.
  static Result<GenlEvents> open(const std::string& name, const std::string& group, int max_attribute);

  // Readable when something was said.
  int fd() const;
  // Hands over what was said meanwhile. False: something may have been missed.
  bool take(const std::function<void(uint8_t command, std::span<nlattr* const>)>& heard) const;

 private:
  NetlinkSocket socket_;
  int max_attribute_;
};

}  // namespace netblk::attach
