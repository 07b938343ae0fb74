// A short stay in a network namespace: what is opened there belongs to it for ever.
#pragma once

#include <fcntl.h>
#include <sched.h>

#include <vector>

#include "job.h"

namespace snp {

// A visit to a namespace that ends with its thread. It answers with descriptors or a negative errno.
class Visit : public Job {
 public:
  explicit Visit(int ns) : ns_(fcntl(ns, F_DUPFD_CLOEXEC, 3)) {
    if (!ns_.Valid()) error_ = errno;
  }

  void Run() final {
    if (error_ == 0 && setns(ns_.Get(), CLONE_NEWNET) != 0) error_ = errno;
    if (error_ == 0) error_ = Make(&made_);
    ns_.Reset(-1);
  }

  Napi::Value Result(Napi::Env env) final {
    if (error_ != 0) return Napi::Number::New(env, -error_);
    auto list = Napi::Array::New(env, made_.size());
    for (size_t i = 0; i < made_.size(); i++) list.Set(static_cast<uint32_t>(i), Napi::Number::New(env, made_[i].Release()));
    return list;
  }

 protected:
  // Makes the descriptors; answers 0 or an errno.
  virtual int Make(std::vector<Fd>* made) = 0;

  // The namespace, while `Make` runs.
  int Namespace() const {
    return ns_.Get();
  }

 private:
  Fd ns_;
  int error_ = 0;
  std::vector<Fd> made_;
};

}  // namespace snp
