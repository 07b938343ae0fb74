// Triggers of the kernel's pressure stall information (accounting/psi): it says when tasks have waited too long, and nobody asks.
#include <fcntl.h>

#include <string>
#include <utility>

#include "polls.h"

namespace snp {

namespace {

// The armed triggers of one environment: each is as long as its descriptor.
class Triggers : public Polls {
 public:
  explicit Triggers(Napi::Env env) : Polls(env, "snp.pressure", UV_PRIORITIZED) {
  }

 private:
  // An error means that the trigger's control group is gone: it would be told again and again.
  void OnEvent(Poll* poll, int status) override {
    if (status < 0) {
      Remove(poll->id);
      return;
    }
    Napi::HandleScope scope(Env());
    Call(*poll->context, poll->callback.Value(), 0, nullptr);
  }
};

Triggers* TriggersOf(const Napi::CallbackInfo& info) {
  return static_cast<Triggers*>(info.Data());
}

// pressureWatch(file, trigger, callback) -> id or -errno. The callback runs at each event; the watch does not keep the loop alive.
Napi::Value PressureWatch(const Napi::CallbackInfo& info) {
  const std::string words = StringAt(info, 1);
  Fd fd(open(StringAt(info, 0).c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd.Valid()) return AnswerErrno(info);
  // The terminating zero belongs to the words.
  if (write(fd.Get(), words.c_str(), words.size() + 1) < 0) return AnswerErrno(info);
  return Answer(info, TriggersOf(info)->Add(std::move(fd), info[2].As<Napi::Function>()));
}

// pressureUnwatch(id): the callback will not run any more. Ids that are done are ignored.
Napi::Value PressureUnwatch(const Napi::CallbackInfo& info) {
  TriggersOf(info)->Remove(IntAt(info, 0));
  return info.Env().Undefined();
}

}  // namespace

void InitPressure(Napi::Env env, Napi::Object exports) {
  auto* triggers = new Triggers(env);
  exports.Set("pressureWatch", Napi::Function::New(env, PressureWatch, "pressureWatch", triggers));
  exports.Set("pressureUnwatch", Napi::Function::New(env, PressureUnwatch, "pressureUnwatch", triggers));
}

}  // namespace snp
