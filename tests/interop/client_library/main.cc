// SPDX-License-Identifier: GPL-2.0-only
// Writes a block to a netblk/2 server on this machine, flushes, and reads it back: stranger PORT
#include <netblk/client/blocking.h>
#include <netblk/client/netblk2_client.h>
#include <netblk/io/epoll/epoll_backend.h>
#include <netblk/transport/tcp_dialer.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int, char** argv) {
  using namespace netblk;
  const io::SteadyClock clock;
  auto backend = io::make_epoll_backend(1);
  if (!backend) return std::puts(backend.error().message.c_str()), 1;
  auto server = std::make_unique<transport::TcpDialer>("127.0.0.1", static_cast<uint16_t>(std::atoi(argv[1])));
  client::Options2 options;
  options.connections = 2;
  auto disk = client::Netblk2Client::open(*backend.value(), clock, std::move(server), options);
  if (!disk) return std::puts(disk.error().message.c_str()), 1;

  const std::vector<std::byte> block(4096, std::byte{0x5a});
  std::vector<std::byte> back(4096);
  for (const Status& done : {client::write(*disk.value(), 8192, block), client::flush(*disk.value()),
                             client::read(*disk.value(), 8192, back)})
    if (!done) return std::puts(done.error().message.c_str()), 1;
  std::printf("%s %zu bytes\n", block == back ? "same" : "different", back.size());
  return block == back ? 0 : 1;
}
