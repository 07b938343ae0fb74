// Descriptors that are waited for in the event loop of one JavaScript environment, each with a callback of its own.
#pragma once

#include <uv.h>

#include <memory>
#include <unordered_map>
#include <utility>

#include "addon.h"

namespace snp {

class Polls;

// One descriptor that is waited for. Lives until libuv has closed its handle.
struct Poll {
  uv_poll_t handle;
  Polls* owner;
  int id;
  Fd fd;
  Napi::FunctionReference callback;
  std::unique_ptr<Napi::AsyncContext> context;
};

// All of one kind of an environment, which Node destroys only after every handle has been closed. Waiting alone does not keep the program alive.
class Polls {
 public:
  // `name` is for tools that follow asynchronous work, `events` are libuv's (UV_READABLE, ...).
  Polls(Napi::Env env, const char* name, int events) : env_(env), name_(name), events_(events) {
    napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle handle, void* self) { static_cast<Polls*>(self)->End(handle); }, this, nullptr);
  }
  Polls(const Polls&) = delete;
  Polls& operator=(const Polls&) = delete;
  virtual ~Polls() = default;

  // Waits for a descriptor; answers an id or a negative errno.
  int Add(Fd fd, Napi::Function callback) {
    uv_loop_t* loop = nullptr;
    if (ending_ || napi_get_uv_event_loop(env_, &loop) != napi_ok) return -ECANCELED;
    auto poll = std::make_unique<Poll>();
    const int failed = uv_poll_init(loop, &poll->handle, fd.Get());
    if (failed != 0) return failed;
    poll->handle.data = poll.get();
    poll->owner = this;
    poll->id = next_++;
    poll->fd = std::move(fd);
    poll->callback = Napi::Persistent(callback);
    poll->context = std::make_unique<Napi::AsyncContext>(env_, name_);
    Poll* raw = poll.release();  // From here on it belongs to its handle, whose closing deletes it.
    polls_.emplace(raw->id, raw);
    uv_unref(reinterpret_cast<uv_handle_t*>(&raw->handle));
    const int unstarted = uv_poll_start(&raw->handle, events_, [](uv_poll_t* handle, int status, int) {
      auto* ready = static_cast<Poll*>(handle->data);
      ready->owner->OnEvent(ready, status);
    });
    if (unstarted != 0) {
      Remove(raw->id);
      return unstarted;
    }
    return raw->id;
  }

  // Its callback will not run any more; its memory lives until the next turn of the loop. Ids that are done are ignored.
  void Remove(int id) {
    const auto found = polls_.find(id);
    if (found == polls_.end()) return;
    Poll* poll = found->second;
    polls_.erase(found);
    closing_++;
    uv_poll_stop(&poll->handle);
    uv_close(reinterpret_cast<uv_handle_t*>(&poll->handle), [](uv_handle_t* handle) {
      auto* closed = static_cast<Poll*>(handle->data);
      Polls* owner = closed->owner;
      delete closed;
      owner->OnClosed();
    });
  }

 protected:
  // An event, or a negative errno of libuv's. It may come while the environment is being torn down, when no JavaScript can run.
  virtual void OnEvent(Poll* poll, int status) = 0;

  bool Has(int id) const {
    return polls_.find(id) != polls_.end();
  }

  Napi::Env Env() const {
    return env_;
  }

  // Calls back; what the callback throws ends the program as any uncaught exception. The raw call, since the wrapper's own way with a failure
  // is to throw. While the environment is torn down the call fails without an exception, and nobody is told.
  napi_status Call(const Napi::AsyncContext& context, napi_value callback, size_t count, const napi_value* arguments) const {
    const napi_status status = napi_make_callback(env_, context, env_.Global(), callback, count, arguments, nullptr);
    bool thrown = false;
    napi_value error = nullptr;
    if (napi_is_exception_pending(env_, &thrown) == napi_ok && thrown && napi_get_and_clear_last_exception(env_, &error) == napi_ok) {
      napi_fatal_exception(env_, error);
    }
    return status;
  }

 private:
  void End(napi_async_cleanup_hook_handle handle) {
    ending_ = true;
    cleanup_ = handle;
    while (!polls_.empty()) Remove(polls_.begin()->first);
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
  const char* name_;
  int events_;
  std::unordered_map<int, Poll*> polls_;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
  int next_ = 1;
  int closing_ = 0;
  bool ending_ = false;
};

}  // namespace snp
