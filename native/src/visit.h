// A short stay in a network namespace: what is opened there belongs to it for ever.
#pragma once

#include <fcntl.h>
#include <sched.h>

#include <vector>

#include "job.h"

namespace snp {

// A visit to a namespace that ends with its thread, which does nothing else. It answers with descriptors or a negative errno.
class Visit : public Job {
 public:
  explicit Visit(int ns) : ns_(fcntl(ns, F_DUPFD_CLOEXEC, 3)) {
    if (!ns_.Valid()) error_ = errno;
  }

  void Run() final {
    if (error_ == 0 && setns(ns_.Get(), CLONE_NEWNET) != 0) error_ = errno;
    if (error_ == 0) error_ = Make(&made_);
    if (error_ != 0) made_.clear();
    ns_.Reset(-1);
  }

  bool LeavesThread() const final {
    return false;
  }

  napi_value Result(napi_env env) final {
    return error_ != 0 ? NumberOf(env, -error_) : NumbersOf(env, made_);
  }

  void HandedOver() final {
    for (Fd& fd : made_) fd.Release();
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
