// What the parts of the addon share: descriptors that close themselves, and the form of every answer.
#pragma once

#include <napi.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>
#include <vector>

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

// Raw makers of values, for where no JavaScript may be able to run: they answer a null pointer instead of throwing.
inline napi_value NumberOf(napi_env env, int64_t number) {
  napi_value value = nullptr;
  return napi_create_int64(env, number, &value) == napi_ok ? value : nullptr;
}

inline napi_value BytesOf(napi_env env, const uint8_t* bytes, size_t length) {
  napi_value value = nullptr;
  return napi_create_buffer_copy(env, length, bytes, nullptr, &value) == napi_ok ? value : nullptr;
}

inline napi_value NumbersOf(napi_env env, const std::vector<Fd>& fds) {
  napi_value list = nullptr;
  if (napi_create_array_with_length(env, fds.size(), &list) != napi_ok) return nullptr;
  for (uint32_t i = 0; i < fds.size(); i++) {
    const napi_value number = NumberOf(env, fds[i].Get());
    if (number == nullptr || napi_set_element(env, list, i, number) != napi_ok) return nullptr;
  }
  return list;
}

class Jobs;

void InitCatch(Napi::Env env, Napi::Object exports, Jobs* jobs);
void InitCgroup(Napi::Env env, Napi::Object exports, Jobs* jobs);
void InitFile(Napi::Env env, Napi::Object exports, Jobs* jobs);
void InitMemory(Napi::Env env, Napi::Object exports, Jobs* jobs);
void InitMount(Napi::Env env, Napi::Object exports);
void InitNetns(Napi::Env env, Napi::Object exports, Jobs* jobs);
void InitPages(Napi::Env env, Napi::Object exports);
void InitPressure(Napi::Env env, Napi::Object exports);
void InitProcess(Napi::Env env, Napi::Object exports);
void InitReceive(Napi::Env env, Napi::Object exports);
void InitSocket(Napi::Env env, Napi::Object exports);
void InitSpawn(Napi::Env env, Napi::Object exports, Jobs* jobs);

}  // namespace snp
