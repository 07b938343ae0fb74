// Work that may block, on a thread of its own: the event loop goes on, and libuv's pool, which file operations share, is not held up.
#pragma once

#include <pthread.h>

#include <csignal>
#include <memory>

#include "addon.h"

namespace snp {

// One piece of work. `Run` is called on the thread and touches nothing of JavaScript; `Result` is called on the loop afterwards and makes
// the answer. Whatever the job acquired and did not hand over in `Result` must be released by its destructor: the environment may be gone
// before.
class Job {
 public:
  Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  virtual ~Job() = default;
  virtual void Run() = 0;
  virtual Napi::Value Result(Napi::Env env) = 0;

  // Starts the job; its promise gives `Result`, or a negative errno when there is no thread to be had.
  static Napi::Value Start(Napi::Env env, std::unique_ptr<Job> job) {
    auto flight = std::make_unique<Flight>(Flight{std::move(job), Napi::Promise::Deferred::New(env), nullptr});
    const Napi::Promise promise = flight->deferred.Promise();
    const Napi::String name = Napi::String::New(env, "snp.job");
    if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, Land, &flight->landing) != napi_ok) {
      flight->deferred.Resolve(Napi::Number::New(env, -ENOMEM));
      return promise;
    }
    const int failed = Launch(flight.get());
    if (failed != 0) {
      napi_release_threadsafe_function(flight->landing, napi_tsfn_abort);
      flight->deferred.Resolve(Napi::Number::New(env, -failed));
      return promise;
    }
    flight.release();  // Now it is the thread's.
    return promise;
  }

 private:
  struct Flight {
    std::unique_ptr<Job> job;
    Napi::Promise::Deferred deferred;
    napi_threadsafe_function landing;
  };

  // The deepest job holds a few kilobytes on its stack; what it receives is on the heap.
  static constexpr size_t kStackBytes = 256 * 1024;

  static int Launch(Flight* flight) {
    pthread_attr_t attributes;
    const int failed = pthread_attr_init(&attributes);
    if (failed != 0) return failed;
    pthread_attr_setstacksize(&attributes, kStackBytes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    const int result = pthread_create(&thread, &attributes, Fly, flight);
    pthread_attr_destroy(&attributes);
    return result;
  }

  static void* Fly(void* data) {
    std::unique_ptr<Flight> flight(static_cast<Flight*>(data));
    // Signals are the main thread's business.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    flight->job->Run();
    napi_threadsafe_function landing = flight->landing;
    const napi_status status = napi_call_threadsafe_function(landing, flight.get(), napi_tsfn_nonblocking);
    if (status == napi_ok) flight.release();
    // A closing environment has taken the thread's share back already.
    if (status != napi_closing) napi_release_threadsafe_function(landing, napi_tsfn_release);
    return nullptr;
  }

  static void Land(napi_env env, napi_value, void*, void* data) {
    std::unique_ptr<Flight> flight(static_cast<Flight*>(data));
    if (env == nullptr) return;  // The environment went while the job ran: nobody waits for it any more.
    Napi::HandleScope scope(env);
    flight->deferred.Resolve(flight->job->Result(env));
  }
};

}  // namespace snp
