// FIFOs, which Node can open but not make, and closing of bare descriptors.
#include <sys/stat.h>

#include "addon.h"

namespace snp {

namespace {

// makeFifo(path, mode) -> 0 or -errno
Napi::Value MakeFifo(const Napi::CallbackInfo& info) {
  const std::string path = StringAt(info, 0);
  if (mkfifo(path.c_str(), static_cast<mode_t>(IntAt(info, 1))) != 0) return AnswerErrno(info);
  return Answer(info, 0);
}

// closeFd(fd) -> 0 or -errno. EINTR still closes on Linux, so it is success.
Napi::Value CloseFd(const Napi::CallbackInfo& info) {
  if (close(IntAt(info, 0)) != 0 && errno != EINTR) return AnswerErrno(info);
  return Answer(info, 0);
}

}  // namespace

void InitFile(Napi::Env env, Napi::Object exports) {
  exports.Set("makeFifo", Napi::Function::New(env, MakeFifo, "makeFifo"));
  exports.Set("closeFd", Napi::Function::New(env, CloseFd, "closeFd"));
}

}  // namespace snp
