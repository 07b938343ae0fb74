// Work that may block, on a thread of its own: the event loop goes on, and libuv's pool, which file operations share, is not held up. One thread
// rests afterwards, and does the next piece: starting one takes as long as the rest of a short piece's part on the loop.
#pragma once

#include <pthread.h>
#include <uv.h>

#include <csignal>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "addon.h"

namespace snp {

// One piece of work. `Run` is called on the thread and touches nothing of JavaScript; `Result` is called on the loop afterwards and makes
// the answer, or a null pointer. That may be while the environment is being torn down, when no JavaScript can run: only raw calls, whose
// failures are answers, will do, since the wrapper's own way with a failure is to throw. What the job acquired is released by its
// destructor unless `HandedOver` says that JavaScript has it.
class Job {
 public:
  Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  virtual ~Job() = default;
  virtual void Run() = 0;
  // Called on the thread after `Run`, while the environment is held up in its end: may write into memory of JavaScript that the job keeps alive.
  virtual void Deliver() {
  }
  // Whether the thread is after `Run` what it was before; one that is not does nothing else.
  virtual bool LeavesThread() const {
    return true;
  }
  virtual napi_value Result(napi_env env) = 0;
  virtual void HandedOver() {
  }
};

// The jobs of one JavaScript environment. A thread may outlive it: what they share is owned by both. (N-API's own thread-safe functions are
// freed with their environment, whoever may still call them.)
class Jobs {
 public:
  explicit Jobs(Napi::Env env) : env_(env), shared_(std::make_shared<Shared>()) {
    uv_loop_t* loop = nullptr;
    if (napi_get_uv_event_loop(env, &loop) != napi_ok || uv_async_init(loop, &shared_->async, OnLanded) != 0) {
      shared_->closed = true;
      return;
    }
    shared_->async.data = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(&shared_->async));
    const Napi::String name = Napi::String::New(env, "snp.job");
    napi_async_init(env, nullptr, name, &context_);
    napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle handle, void* self) { static_cast<Jobs*>(self)->End(handle); }, this, nullptr);
  }

  // Starts a job. Answers the promise of its `Result`, or a negative errno when there is no thread to be had. The program lives until it is
  // done.
  Napi::Value Start(std::unique_ptr<Job> job) {
    if (shared_->closed) return Napi::Number::New(env_, -ECANCELED);
    auto flight = std::make_unique<Flight>();
    flight->job = std::move(job);
    flight->shared = shared_;
    napi_value promise = nullptr;
    if (napi_create_promise(env_, &flight->deferred, &promise) != napi_ok) return Napi::Number::New(env_, -ECANCELED);
    if (!Rouse(&flight)) {
      const int failed = Launch(flight.get());
      if (failed != 0) return Napi::Number::New(env_, -failed);
      flight.release();  // Now it is the thread's.
    }
    if (flying_++ == 0) uv_ref(reinterpret_cast<uv_handle_t*>(&shared_->async));
    return Napi::Value(env_, promise);
  }

 private:
  struct Shared;

  struct Flight {
    std::unique_ptr<Job> job;
    std::shared_ptr<Shared> shared;
    napi_deferred deferred = nullptr;
  };

  // Guarded by its mutex. Once `closed`, nobody takes what has landed, and the handle is gone.
  struct Shared {
    std::mutex mutex;
    std::deque<std::unique_ptr<Flight>> landed;
    uv_async_t async;
    bool closed = false;
    // The thread that rests, which the end waits for; and what it does next.
    std::condition_variable roused;
    pthread_t resting{};
    bool rests = false;
    std::unique_ptr<Flight> next;
  };

  // The deepest job holds a few kilobytes on its stack; what it receives is on the heap.
  static constexpr size_t kStackBytes = 256 * 1024;

  // Gives a job to the thread that rests, if one does.
  bool Rouse(std::unique_ptr<Flight>* flight) {
    const std::lock_guard<std::mutex> guard(shared_->mutex);
    if (!shared_->rests || shared_->next != nullptr) return false;
    shared_->next = std::move(*flight);
    shared_->roused.notify_one();
    return true;
  }

  static int Launch(Flight* flight) {
    pthread_attr_t attributes;
    const int failed = pthread_attr_init(&attributes);
    if (failed != 0) return failed;
    pthread_attr_setstacksize(&attributes, kStackBytes);
    pthread_t thread;
    const int result = pthread_create(&thread, &attributes, Fly, flight);
    pthread_attr_destroy(&attributes);
    return result;
  }

  static void* Fly(void* data) {
    std::unique_ptr<Flight> flight(static_cast<Flight*>(data));
    const std::shared_ptr<Shared> shared = flight->shared;
    // Signals are the main thread's business.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    while (flight != nullptr) {
      flight->job->Run();
      std::unique_lock<std::mutex> lock(shared->mutex);
      if (shared->closed) break;
      const bool stays = flight->job->LeavesThread() && !shared->rests;
      flight->job->Deliver();
      shared->landed.push_back(std::move(flight));
      uv_async_send(&shared->async);
      if (!stays) break;
      shared->rests = true;
      shared->resting = pthread_self();
      shared->roused.wait(lock, [&shared] { return shared->closed || shared->next != nullptr; });
      // It is waited for.
      if (shared->closed) return nullptr;
      shared->rests = false;
      flight = std::move(shared->next);
    }
    pthread_detach(pthread_self());
    return nullptr;
  }

  static void OnLanded(uv_async_t* async) {
    static_cast<Jobs*>(async->data)->Land();
  }

  void Land() {
    std::deque<std::unique_ptr<Flight>> landed;
    {
      const std::lock_guard<std::mutex> guard(shared_->mutex);
      landed.swap(shared_->landed);
    }
    for (const auto& flight : landed) {
      if (--flying_ == 0) uv_unref(reinterpret_cast<uv_handle_t*>(&shared_->async));
      Napi::HandleScope scope(env_);
      napi_callback_scope callback = nullptr;
      const napi_value nothing = Napi::Object::New(env_);
      // What waits for the promise runs when the scope is closed.
      if (napi_open_callback_scope(env_, nothing, context_, &callback) != napi_ok) continue;
      const napi_value result = flight->job->Result(env_);
      if (result != nullptr && napi_resolve_deferred(env_, flight->deferred, result) == napi_ok) flight->job->HandedOver();
      napi_close_callback_scope(env_, callback);
    }
  }

  void End(napi_async_cleanup_hook_handle handle) {
    cleanup_ = handle;
    std::deque<std::unique_ptr<Flight>> landed;
    std::unique_ptr<Flight> next;
    bool rests = false;
    {
      const std::lock_guard<std::mutex> guard(shared_->mutex);
      shared_->closed = true;
      landed.swap(shared_->landed);
      next.swap(shared_->next);
      rests = shared_->rests;
    }
    if (rests) {
      shared_->roused.notify_one();
      pthread_join(shared_->resting, nullptr);
    }
    napi_async_destroy(env_, context_);
    uv_close(reinterpret_cast<uv_handle_t*>(&shared_->async), [](uv_handle_t* closed) {
      auto* self = static_cast<Jobs*>(closed->data);
      const napi_async_cleanup_hook_handle done = self->cleanup_;
      delete self;
      napi_remove_async_cleanup_hook(done);
    });
  }

  Napi::Env env_;
  std::shared_ptr<Shared> shared_;
  napi_async_context context_ = nullptr;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
  int flying_ = 0;
};

inline Jobs* JobsOf(const Napi::CallbackInfo& info) {
  return static_cast<Jobs*>(info.Data());
}

}  // namespace snp
