// SPDX-License-Identifier: GPL-2.0-only
#include "volume_users.h"

#include <cerrno>
#include <optional>

namespace netblk::tools {
namespace {

constexpr uint64_t kPollMs = 1;

}  // namespace

// One handover, as the volume's loop sees it. The server's threads have it too, and longer than who waits for it.
struct ServedVolume::Call final : Given, io::Posted {
  explicit Call(io::Loop& on)
      : Posted([](coro::Runnable& self) {
          auto& call = static_cast<Call&>(static_cast<Posted&>(self));
          {
            const std::lock_guard lock(call.mutex);
            call.is_posted = false;
          }
          call.answered.set();
        }),
        loop(on) {}

  // On any thread. False: nobody waits for it.
  template <typename Change>
  bool tell(const Change& change) {
    const std::lock_guard lock(mutex);
    if (is_abandoned) return false;
    change();
    has_answer = is_posted = true;
    loop.post(*this);
    return true;
  }

  std::shared_ptr<server::Handover> handover;
  io::Loop& loop;
  coro::Event answered;  // of the loop
  std::mutex mutex;      // of what follows; a leaf but for the loop's own
  bool is_posted = false;
  bool has_answer = false;
  bool is_abandoned = false;
  std::optional<Status> given;
  std::vector<std::string> missing;
};

void ServedVolume::add(const std::string& branch, const std::string& user) {
  const std::lock_guard lock(mutex_);
  users_.emplace(branch, user);
}

void ServedVolume::remove(const std::string& branch, const std::string& user) {
  const std::lock_guard lock(mutex_);
  const auto found = users_.find({branch, user});
  if (found != users_.end()) users_.erase(found);
}

bool ServedVolume::has_open(const std::string& branch) {
  const std::lock_guard lock(mutex_);
  const auto first = users_.lower_bound({branch, ""});
  return first != users_.end() && first->first == branch;
}

std::vector<std::string> ServedVolume::users_of(const std::string& branch) {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> users;
  for (auto each = users_.lower_bound({branch, ""}); each != users_.end() && each->first == branch; ++each) users.push_back(each->second);
  return users;
}

// Until there is an answer, or none is waited for.
coro::Task<void> ServedVolume::answer_of(Call& call) {
  for (;;) {
    {
      const std::lock_guard lock(call.mutex);
      if (!call.is_posted && (call.has_answer || stopped_)) {
        call.is_abandoned = !std::exchange(call.has_answer, false);
        co_return;
      }
    }
    co_await call.answered.wait();
  }
}

coro::Task<Result<std::shared_ptr<VolumeUsers::Given>>> ServedVolume::give(const std::string& branch, bool disconnect) {
  if (!hand_over_ || !has_open(branch)) co_return std::shared_ptr<Given>();
  if (stopped_) co_return make_error(ECANCELED, "the server stops");
  auto handover = std::make_shared<server::Handover>();
  auto call = std::make_shared<Call>(loop_);
  // A reload may come before it, and open others.
  handover->names = [this, branch] { return users_of(branch); };
  handover->disconnect = disconnect;
  handover->why = "its volume is rewound";
  handover->keep = keep_;
  // The handover and the call have one another until the last of these.
  handover->on_given = [call](Status given) {
    const std::shared_ptr<server::Handover> of = call->handover;
    const bool ok = given.ok();
    if (!ok) call->handover.reset();
    const bool told = call->tell([&] { call->given.emplace(std::move(given)); });
    if (!told && ok) of->take_back();
  };
  handover->on_taken_back = [call](std::vector<std::string> missing) {
    call->handover.reset();
    call->tell([&] { call->missing = std::move(missing); });
  };
  call->handover = handover;
  calls_.push_back(call);
  hand_over_(std::move(handover));
  co_await answer_of(*call);
  calls_.remove(call);
  if (call->is_abandoned) co_return make_error(ECANCELED, "the server stops");
  if (!call->given->ok()) co_return call->given->error();
  // The last of them may be on its way out in another thread.
  while (has_open(branch)) {
    io::SleepUntil pause(loop_, loop_.now_ms() + kPollMs);
    co_await pause;
  }
  co_return std::shared_ptr<Given>(std::move(call));
}

coro::Task<std::vector<std::string>> ServedVolume::take(std::shared_ptr<Given> given) {
  if (given == nullptr) co_return std::vector<std::string>();
  const std::shared_ptr<Call> call = std::static_pointer_cast<Call>(std::move(given));
  calls_.push_back(call);
  const std::shared_ptr<server::Handover> handover = call->handover;
  handover->take_back();
  co_await answer_of(*call);
  calls_.remove(call);
  const std::lock_guard lock(call->mutex);
  co_return std::move(call->missing);
}

void ServedVolume::stop() {
  stopped_ = true;
  for (const auto& call : calls_) call->answered.set();
}

}  // namespace netblk::tools
