// Pages of programs that this process has read and needs no more.
#include <sys/mman.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "addon.h"

namespace snp {

namespace {

struct Mapping {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  // Of a file, private, and never to be written.
  bool constant = false;
  uint64_t resident_kib = 0;
  // No resident page is the process's own.
  bool of_file = false;
};

// The mappings of this process that are as their files are: those without a page of their own, in memory or in swap (proc(5), smaps, which
// tells of swap last). What the loader has relocated and made constant afterwards is not among them.
std::vector<Mapping> UnchangedMappings() {
  std::vector<Mapping> found;
  std::ifstream smaps("/proc/self/smaps");
  Mapping current;
  for (std::string line; std::getline(smaps, line);) {
    uint64_t begin = 0, end = 0, inode = 0, kib = 0;
    char permissions[8] = {};
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %7s %*x %*s %" SCNu64, &begin, &end, permissions, &inode) == 4) {
      current = {begin, end, inode != 0 && permissions[1] == '-' && permissions[3] == 'p'};
    } else if (std::sscanf(line.c_str(), "Rss: %" SCNu64, &kib) == 1) {
      current.resident_kib = kib;
    } else if (std::sscanf(line.c_str(), "Anonymous: %" SCNu64, &kib) == 1) {
      current.of_file = kib == 0;
    } else if (std::sscanf(line.c_str(), "Swap: %" SCNu64, &kib) == 1 && kib == 0 && current.of_file && current.constant &&
               current.resident_kib > 0) {
      found.push_back(current);
    }
  }
  return found;
}

// releaseConstantPages() -> how many bytes were given back. They stay in the kernel's cache as long as it has room, and come back when they are needed.
Napi::Value ReleaseConstantPages(const Napi::CallbackInfo& info) {
  uint64_t kib = 0;
  for (const Mapping& mapping : UnchangedMappings()) {
    if (madvise(reinterpret_cast<void*>(mapping.begin), mapping.end - mapping.begin, MADV_DONTNEED) == 0) kib += mapping.resident_kib;
  }
  return Napi::Number::New(info.Env(), static_cast<double>(kib * 1024));
}

}  // namespace

void InitPages(Napi::Env env, Napi::Object exports) {
  exports.Set("releaseConstantPages", Napi::Function::New(env, ReleaseConstantPages, "releaseConstantPages"));
}

}  // namespace snp
