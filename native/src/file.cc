// FIFOs, which Node can open but not make, closing of bare descriptors, and copies that keep holes.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "addon.h"
#include "job.h"

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

// Copies a file's data extents to the same places of another one, and makes the rest of that one a hole.
class CopyDataJob : public Job {
 public:
  CopyDataJob(int from, int to) : from_(from), to_(to) {
  }

  void Run() override {
    result_ = Copy();
  }

  napi_value Result(napi_env env) override {
    return NumberOf(env, result_);
  }

 private:
  static constexpr size_t kChunkBytes = size_t{1} << 20;

  // The bytes that were copied, or -errno.
  int64_t Copy() {
    struct stat from;
    if (fstat(from_, &from) != 0) return -errno;
    // A new file has nothing to punch, and its file system may not be able to.
    struct stat to;
    if (fstat(to_, &to) != 0) return -errno;
    if (to.st_size > 0 && fallocate(to_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, to.st_size) != 0) return -errno;
    if (to.st_size != from.st_size && ftruncate(to_, from.st_size) != 0) return -errno;
    std::vector<char> buffer(kChunkBytes);
    int64_t copied = 0;
    for (off_t at = 0;;) {
      const off_t start = lseek(from_, at, SEEK_DATA);
      if (start < 0) return errno == ENXIO ? copied : -errno;
      const off_t end = lseek(from_, start, SEEK_HOLE);
      if (end < 0) return -errno;
      const int failed = CopyRange(buffer, start, end);
      if (failed != 0) return -failed;
      copied += end - start;
      at = end;
    }
  }

  // 0 or an errno.
  int CopyRange(std::vector<char>& buffer, off_t at, off_t end) {
    while (at < end) {
      const ssize_t got = pread(from_, buffer.data(), std::min<size_t>(buffer.size(), static_cast<size_t>(end - at)), at);
      if (got < 0) return errno;
      // It has become shorter meanwhile.
      if (got == 0) return EIO;
      for (ssize_t done = 0; done < got;) {
        const ssize_t put = pwrite(to_, buffer.data() + done, static_cast<size_t>(got - done), at + done);
        if (put < 0) return errno;
        done += put;
      }
      at += got;
    }
    return 0;
  }

  int from_;
  int to_;
  int64_t result_ = 0;
};

// copyData(from, to) -> promise of the bytes that were copied, or of -errno
Napi::Value CopyData(const Napi::CallbackInfo& info) {
  return JobsOf(info)->Start(std::make_unique<CopyDataJob>(IntAt(info, 0), IntAt(info, 1)));
}

}  // namespace

void InitFile(Napi::Env env, Napi::Object exports, Jobs* jobs) {
  exports.Set("copyData", Napi::Function::New(env, CopyData, "copyData", jobs));
  exports.Set("makeFifo", Napi::Function::New(env, MakeFifo, "makeFifo"));
  exports.Set("closeFd", Napi::Function::New(env, CloseFd, "closeFd"));
}

}  // namespace snp
