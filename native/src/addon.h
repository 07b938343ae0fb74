// What the parts of the addon share: descriptors that close themselves, and the form of every answer.
#pragma once

#include <napi.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

namespace snp {

// Owns one descriptor; closes it unless it was released.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {
  }
  Fd(Fd&& other) noexcept : fd_(other.Release()) {
  }
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    Reset(-1);
  }

  int Get() const {
    return fd_;
  }
  bool Valid() const {
    return fd_ >= 0;
  }
  int Release() {
    return std::exchange(fd_, -1);
  }
  void Reset(int fd) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

// Every function answers a number: what it made (zero or more), or the negative errno. The facade in TypeScript throws.
inline Napi::Value Answer(const Napi::CallbackInfo& info, int result) {
  return Napi::Number::New(info.Env(), result);
}

inline Napi::Value AnswerErrno(const Napi::CallbackInfo& info) {
  return Answer(info, -errno);
}

inline std::string StringAt(const Napi::CallbackInfo& info, size_t index) {
  return info[index].As<Napi::String>().Utf8Value();
}

inline int IntAt(const Napi::CallbackInfo& info, size_t index) {
  return info[index].As<Napi::Number>().Int32Value();
}

void InitCatch(Napi::Env env, Napi::Object exports);
void InitFile(Napi::Env env, Napi::Object exports);
void InitMount(Napi::Env env, Napi::Object exports);
void InitNetns(Napi::Env env, Napi::Object exports);
void InitProcess(Napi::Env env, Napi::Object exports);
void InitReceive(Napi::Env env, Napi::Object exports);
void InitSocket(Napi::Env env, Napi::Object exports);

}  // namespace snp
