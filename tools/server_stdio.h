// SPDX-License-Identifier: GPL-2.0-only
// --stdio: the client is whoever started the server, at the other end of its standard input and output.
#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "base/result.h"
#include "io/fd.h"

namespace netblk::tools {

// What is said on the standard output goes to the standard error from here on: the output is a client's, or that of
// whoever started the server for itself.
void say_on_stderr();

// One socket is used as it is. Pipes (or two sockets) are carried by two threads to and from a socket of our own, which
// end when either side has.
class StdioClient {
 public:
  // Takes descriptors 0 and 1, which are /dev/null and the standard error afterwards.
  static Result<std::unique_ptr<StdioClient>> take();
  StdioClient(const StdioClient&) = delete;
  StdioClient& operator=(const StdioClient&) = delete;
  // After the socket that was given away is closed. What the server has said is delivered to a client that takes it.
  ~StdioClient();

  io::UniqueFd socket() { return std::move(socket_); }

 private:
  StdioClient() = default;
  void carry_in();
  void carry_out();

  io::UniqueFd socket_;
  io::UniqueFd in_, out_, inner_;
  std::thread in_thread_, out_thread_;
  std::atomic<bool> closing_{false};
};

}  // namespace netblk::tools
