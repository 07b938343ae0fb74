// Triggers of the kernel's pressure stall information (accounting/psi): it says when tasks have waited too long, and nobody asks.
#include <fcntl.h>
#include <uv.h>

#include <memory>
#include <unordered_map>

#include "addon.h"

namespace snp {

namespace {

class Triggers;

// One armed trigger. Lives until libuv has closed its handle; the trigger is as long as its descriptor.
struct Trigger {
  uv_poll_t poll;
  Triggers* owner;
  int id;
  Fd fd;
  Napi::FunctionReference callback;
  std::unique_ptr<Napi::AsyncContext> context;
};

// The triggers of one JavaScript environment. Node destroys it only after every handle has been closed.
class Triggers {
 public:
  explicit Triggers(Napi::Env env) : env_(env) {
    napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle handle, void* self) { static_cast<Triggers*>(self)->End(handle); }, this, nullptr);
  }

  int Add(const std::string& path, const std::string& words, Napi::Function callback) {
    uv_loop_t* loop = nullptr;
    if (ending_ || napi_get_uv_event_loop(env_, &loop) != napi_ok) return -ECANCELED;
    Fd fd(open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!fd.Valid()) return -errno;
    // The terminating zero belongs to the words.
    if (write(fd.Get(), words.c_str(), words.size() + 1) < 0) return -errno;
    auto trigger = std::make_unique<Trigger>();
    const int failed = uv_poll_init(loop, &trigger->poll, fd.Get());
    if (failed != 0) return failed;
    trigger->poll.data = trigger.get();
    trigger->owner = this;
    trigger->id = next_++;
    trigger->fd = std::move(fd);
    trigger->callback = Napi::Persistent(callback);
    trigger->context = std::make_unique<Napi::AsyncContext>(env_, "snp.pressure");
    Trigger* raw = trigger.release();  // From here on it belongs to its handle, whose closing deletes it.
    triggers_.emplace(raw->id, raw);
    uv_unref(reinterpret_cast<uv_handle_t*>(&raw->poll));
    const int unstarted = uv_poll_start(&raw->poll, UV_PRIORITIZED, OnEvent);
    if (unstarted != 0) {
      Remove(raw->id);
      return unstarted;
    }
    return raw->id;
  }

  void Remove(int id) {
    const auto found = triggers_.find(id);
    if (found == triggers_.end()) return;
    Trigger* trigger = found->second;
    triggers_.erase(found);
    closing_++;
    uv_poll_stop(&trigger->poll);
    uv_close(reinterpret_cast<uv_handle_t*>(&trigger->poll), [](uv_handle_t* handle) {
      auto* closed = static_cast<Trigger*>(handle->data);
      Triggers* owner = closed->owner;
      delete closed;
      owner->OnClosed();
    });
  }

 private:
  // An error means that the trigger's control group is gone: it would be told again and again.
  static void OnEvent(uv_poll_t* poll, int status, int) {
    auto* trigger = static_cast<Trigger*>(poll->data);
    Triggers* owner = trigger->owner;
    if (status < 0) {
      owner->Remove(trigger->id);
      return;
    }
    const Napi::Env env = owner->env_;
    Napi::HandleScope scope(env);
    // The raw call, since the wrapper's own way with a failure is to throw. The callback may give the trigger up: its memory lives until
    // the next turn.
    napi_make_callback(env, *trigger->context, env.Global(), trigger->callback.Value(), 0, nullptr, nullptr);
    bool thrown = false;
    napi_value error = nullptr;
    if (napi_is_exception_pending(env, &thrown) == napi_ok && thrown && napi_get_and_clear_last_exception(env, &error) == napi_ok) {
      napi_fatal_exception(env, error);
    }
  }

  void End(napi_async_cleanup_hook_handle handle) {
    ending_ = true;
    cleanup_ = handle;
    while (!triggers_.empty()) Remove(triggers_.begin()->first);
    if (closing_ == 0) Finish();
  }

  void OnClosed() {
    closing_--;
    if (ending_ && closing_ == 0) Finish();
  }

  void Finish() {
    napi_async_cleanup_hook_handle handle = cleanup_;
    delete this;
    napi_remove_async_cleanup_hook(handle);
  }

  Napi::Env env_;
  std::unordered_map<int, Trigger*> triggers_;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
  int next_ = 1;
  int closing_ = 0;
  bool ending_ = false;
};

Triggers* TriggersOf(const Napi::CallbackInfo& info) {
  return static_cast<Triggers*>(info.Data());
}

// pressureWatch(file, trigger, callback) -> id or -errno. The callback runs at each event; the watch does not keep the loop alive.
Napi::Value PressureWatch(const Napi::CallbackInfo& info) {
  return Answer(info, TriggersOf(info)->Add(StringAt(info, 0), StringAt(info, 1), info[2].As<Napi::Function>()));
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
