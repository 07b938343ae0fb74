// Processes by pidfd (pidfd_open(2)): a number that is used again can never be meant by mistake, and the end is an event of the loop.
#include <fcntl.h>
#include <sys/syscall.h>

#include <csignal>
#include <memory>
#include <utility>

#include "polls.h"

namespace snp {

namespace {

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

// The watched pidfds of one environment.
class Watches : public Polls {
 public:
  explicit Watches(Napi::Env env) : Polls(env, "snp.pidfd", UV_READABLE) {
  }

 private:
  // A pidfd becomes readable once, when the process has ended.
  void OnEvent(Poll* poll, int) override {
    Napi::HandleScope scope(Env());
    const Napi::Function callback = poll->callback.Value();
    const std::unique_ptr<Napi::AsyncContext> context = std::move(poll->context);
    Remove(poll->id);
    Call(*context, callback, 0, nullptr);
  }
};

Watches* WatchesOf(const Napi::CallbackInfo& info) {
  return static_cast<Watches*>(info.Data());
}

// pidfdOpen(pid) -> descriptor (close-on-exec) or -errno
Napi::Value PidfdOpen(const Napi::CallbackInfo& info) {
  const long fd = syscall(SYS_pidfd_open, IntAt(info, 0), 0);
  if (fd < 0) return AnswerErrno(info);
  return Answer(info, static_cast<int>(fd));
}

// pidfdSendSignal(pidfd, signal) -> 0 or -errno; signal 0 only asks whether the process is there (a zombie counts)
Napi::Value PidfdSendSignal(const Napi::CallbackInfo& info) {
  if (syscall(SYS_pidfd_send_signal, IntAt(info, 0), IntAt(info, 1), nullptr, 0) != 0) return AnswerErrno(info);
  return Answer(info, 0);
}

// pidfdWatch(pidfd, callback) -> id of the watch or -errno. The callback runs once; the watch does not keep the loop alive.
Napi::Value PidfdWatch(const Napi::CallbackInfo& info) {
  Fd copy(fcntl(IntAt(info, 0), F_DUPFD_CLOEXEC, 3));
  if (!copy.Valid()) return AnswerErrno(info);
  return Answer(info, WatchesOf(info)->Add(std::move(copy), info[1].As<Napi::Function>()));
}

// pidfdUnwatch(id): the callback will not run any more. Ids that are done are ignored.
Napi::Value PidfdUnwatch(const Napi::CallbackInfo& info) {
  WatchesOf(info)->Remove(IntAt(info, 0));
  return info.Env().Undefined();
}

}  // namespace

void InitProcess(Napi::Env env, Napi::Object exports) {
  auto* watches = new Watches(env);
  exports.Set("pidfdOpen", Napi::Function::New(env, PidfdOpen, "pidfdOpen"));
  exports.Set("pidfdSendSignal", Napi::Function::New(env, PidfdSendSignal, "pidfdSendSignal"));
  exports.Set("pidfdWatch", Napi::Function::New(env, PidfdWatch, "pidfdWatch", watches));
  exports.Set("pidfdUnwatch", Napi::Function::New(env, PidfdUnwatch, "pidfdUnwatch", watches));
}

}  // namespace snp
