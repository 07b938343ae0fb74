// mount(2) and umount2(2) on libuv's pool: both may wait for a device.
#include <sys/mount.h>

#include "addon.h"

namespace snp {

namespace {

// One call in the pool; its promise gives 0 or -errno.
class MountWorker : public Napi::AsyncWorker {
 public:
  static Napi::Value Mount(const Napi::CallbackInfo& info) {
    auto* worker = new MountWorker(info.Env());
    worker->source_ = StringAt(info, 0);
    worker->target_ = StringAt(info, 1);
    worker->type_ = StringAt(info, 2);
    worker->flags_ = static_cast<unsigned long>(info[3].As<Napi::Number>().Int64Value());
    worker->data_ = StringAt(info, 4);
    worker->Queue();
    return worker->deferred_.Promise();
  }

  static Napi::Value Unmount(const Napi::CallbackInfo& info) {
    auto* worker = new MountWorker(info.Env());
    worker->unmount_ = true;
    worker->target_ = StringAt(info, 0);
    worker->flags_ = static_cast<unsigned long>(IntAt(info, 1));
    worker->Queue();
    return worker->deferred_.Promise();
  }

 protected:
  void Execute() override {
    const int result = unmount_ ? umount2(target_.c_str(), static_cast<int>(flags_))
                                : mount(source_.c_str(), target_.c_str(), type_.c_str(), flags_, data_.empty() ? nullptr : data_.c_str());
    if (result != 0) error_ = errno;
  }

  void OnOK() override {
    deferred_.Resolve(Napi::Number::New(Env(), -error_));
  }

 private:
  explicit MountWorker(Napi::Env env) : Napi::AsyncWorker(env, "snp.mount"), deferred_(Napi::Promise::Deferred::New(env)) {
  }

  Napi::Promise::Deferred deferred_;
  bool unmount_ = false;
  std::string source_;
  std::string target_;
  std::string type_;
  std::string data_;
  unsigned long flags_ = 0;
  int error_ = 0;
};

}  // namespace

void InitMount(Napi::Env env, Napi::Object exports) {
  exports.Set("mount", Napi::Function::New(env, MountWorker::Mount, "mount"));
  exports.Set("unmount", Napi::Function::New(env, MountWorker::Unmount, "unmount"));
}

}  // namespace snp
