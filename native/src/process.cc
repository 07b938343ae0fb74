// Processes by pidfd (pidfd_open(2)): a number that is used again can never be meant by mistake, and the end is an event of the loop.
#include <fcntl.h>
#include <sys/syscall.h>
#include <uv.h>

#include <csignal>
#include <memory>
#include <unordered_map>

#include "addon.h"

namespace snp {

namespace {

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

class Watches;

// One watched pidfd. Lives until libuv has closed its handle; owns its own copy of the descriptor.
struct Watch {
  uv_poll_t poll;
  Watches* owner;
  int id;
  Fd fd;
  Napi::FunctionReference callback;
  std::unique_ptr<Napi::AsyncContext> context;
};

// The watches of one JavaScript environment. Node destroys it only after every handle has been closed.
class Watches {
 public:
  explicit Watches(Napi::Env env) : env_(env) {
    napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle handle, void* self) { static_cast<Watches*>(self)->End(handle); }, this, nullptr);
  }

  int Add(int pidfd, Napi::Function callback) {
    uv_loop_t* loop = nullptr;
    if (ending_ || napi_get_uv_event_loop(env_, &loop) != napi_ok) return -ECANCELED;
    Fd copy(fcntl(pidfd, F_DUPFD_CLOEXEC, 3));
    if (!copy.Valid()) return -errno;
    auto watch = std::make_unique<Watch>();
    const int failed = uv_poll_init(loop, &watch->poll, copy.Get());
    if (failed != 0) return failed;
    watch->poll.data = watch.get();
    watch->owner = this;
    watch->id = next_++;
    watch->fd = std::move(copy);
    watch->callback = Napi::Persistent(callback);
    watch->context = std::make_unique<Napi::AsyncContext>(env_, "snp.pidfd");
    Watch* raw = watch.release();  // From here on it belongs to its handle, whose closing deletes it.
    watches_.emplace(raw->id, raw);
    // Waiting for a process alone must not keep the program alive.
    uv_unref(reinterpret_cast<uv_handle_t*>(&raw->poll));
    const int unstarted = uv_poll_start(&raw->poll, UV_READABLE, OnReadable);
    if (unstarted != 0) {
      Remove(raw->id);
      return unstarted;
    }
    return raw->id;
  }

  void Remove(int id) {
    const auto found = watches_.find(id);
    if (found == watches_.end()) return;
    Watch* watch = found->second;
    watches_.erase(found);
    closing_++;
    uv_poll_stop(&watch->poll);
    uv_close(reinterpret_cast<uv_handle_t*>(&watch->poll), [](uv_handle_t* handle) {
      auto* closed = static_cast<Watch*>(handle->data);
      Watches* owner = closed->owner;
      delete closed;
      owner->OnClosed();
    });
  }

 private:
  // A pidfd becomes readable once, when the process has ended. This also runs while the environment is being torn down, when no JavaScript
  // can: the call then fails without an exception, and nobody is told.
  static void OnReadable(uv_poll_t* poll, int, int) {
    auto* watch = static_cast<Watch*>(poll->data);
    Watches* owner = watch->owner;
    const Napi::Env env = owner->env_;
    Napi::HandleScope scope(env);
    const Napi::Function callback = watch->callback.Value();
    const std::unique_ptr<Napi::AsyncContext> context = std::move(watch->context);
    owner->Remove(watch->id);
    // The raw call, since the wrapper's own way with a failure is to throw.
    napi_make_callback(env, *context, env.Global(), callback, 0, nullptr, nullptr);
    bool thrown = false;
    napi_value error = nullptr;
    if (napi_is_exception_pending(env, &thrown) == napi_ok && thrown && napi_get_and_clear_last_exception(env, &error) == napi_ok) {
      napi_fatal_exception(env, error);
    }
  }

  void End(napi_async_cleanup_hook_handle handle) {
    ending_ = true;
    cleanup_ = handle;
    while (!watches_.empty()) Remove(watches_.begin()->first);
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
  std::unordered_map<int, Watch*> watches_;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
  int next_ = 1;
  int closing_ = 0;
  bool ending_ = false;
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
  return Answer(info, WatchesOf(info)->Add(IntAt(info, 0), info[1].As<Napi::Function>()));
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
