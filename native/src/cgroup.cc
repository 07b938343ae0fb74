// The way of processes into a control group of every hierarchy (cgroups(7)): on a thread of its own, since the kernel waits for all processors
// at each move.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <string_view>

#include "cgroup.h"
#include "job.h"

namespace snp {

namespace {

// Controllers that the groups above hand down in version 2, where the kernel has them.
constexpr const char* kControllers[] = {"cpu", "memory", "io", "pids", "cpuset"};
// What a new cpuset of version 1 must have before a process may enter it.
constexpr const char* kCpusetFiles[] = {"/cpuset.cpus", "/cpuset.mems"};
constexpr mode_t kMode = 0755;

std::string Read(const std::string& path) {
  char buffer[4096];
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const ssize_t length = fd.Valid() ? read(fd.Get(), buffer, sizeof(buffer)) : -1;
  std::string text(buffer, length > 0 ? static_cast<size_t>(length) : 0);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

// Answers 0 or an errno.
int Write(const std::string& path, const std::string& text) {
  const Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.Valid()) return errno;
  return write(fd.Get(), text.data(), text.size()) < 0 ? errno : 0;
}

// Whether a list of words, separated by spaces, has one.
bool Has(const std::string& words, std::string_view word) {
  return (" " + words + " ").find(" " + std::string(word) + " ") != std::string::npos;
}

// A controller that a group above ours keeps for itself is not there for ours: that is whoever's choice who made the group above.
void HandDown(const std::string& folder) {
  const std::string there = Read(folder + "/cgroup.controllers");
  if (there.empty()) return;
  const std::string given = Read(folder + "/cgroup.subtree_control");
  for (const char* controller : kControllers) {
    if (Has(there, controller) && !Has(given, controller)) Write(folder + "/cgroup.subtree_control", std::string("+") + controller);
  }
}

// An empty set of processors or nodes lets nobody in. Answers 0 or an errno.
int InheritCpuset(const std::string& parent, const std::string& folder) {
  for (const char* file : kCpusetFiles) {
    if (!Read(folder + file).empty()) continue;
    const int failed = Write(folder + file, Read(parent + file));
    if (failed != 0) return failed;
  }
  return 0;
}

// Answers `[errno, index]`: the first failure and the hierarchy in which it came; `[0, 0]` without one.
class Join : public Job {
 public:
  Join(std::vector<Hierarchy> hierarchies, std::string path, std::vector<std::string> pids)
      : hierarchies_(std::move(hierarchies)), path_(std::move(path)), pids_(std::move(pids)) {
  }

  void Run() override {
    for (size_t i = 0; i < hierarchies_.size(); i++) {
      error_ = MakeGroup(hierarchies_[i], path_);
      const std::string door = hierarchies_[i].root + path_ + "/cgroup.procs";
      for (size_t k = 0; error_ == 0 && k < pids_.size(); k++) {
        error_ = Write(door, pids_[k]);
        // It has ended meanwhile.
        if (error_ == ESRCH) error_ = 0;
      }
      failed_ = i;
      if (error_ != 0) return;
    }
    failed_ = 0;
  }

  napi_value Result(napi_env env) override {
    napi_value pair = nullptr;
    if (napi_create_array_with_length(env, 2, &pair) != napi_ok) return nullptr;
    const napi_value error = NumberOf(env, error_);
    const napi_value failed = NumberOf(env, static_cast<int64_t>(failed_));
    if (error == nullptr || failed == nullptr) return nullptr;
    const bool set = napi_set_element(env, pair, 0, error) == napi_ok && napi_set_element(env, pair, 1, failed) == napi_ok;
    return set ? pair : nullptr;
  }

 private:
  std::vector<Hierarchy> hierarchies_;
  std::string path_;
  std::vector<std::string> pids_;
  int error_ = 0;
  size_t failed_ = 0;
};

// cgroupJoin(roots, second, cpuset, path, pids): the mounted hierarchies with, for each, whether it is of version 2 and whether it has
// cpusets.
Napi::Value CgroupJoin(const Napi::CallbackInfo& info) {
  const auto pids = info[4].As<Napi::Array>();
  std::vector<std::string> texts;
  for (uint32_t i = 0; i < pids.Length(); i++) texts.push_back(std::to_string(pids.Get(i).As<Napi::Number>().Int32Value()));
  return JobsOf(info)->Start(std::make_unique<Join>(HierarchiesAt(info, 0), StringAt(info, 3), std::move(texts)));
}

}  // namespace

std::vector<Hierarchy> HierarchiesAt(const Napi::CallbackInfo& info, size_t index) {
  const auto roots = info[index].As<Napi::Array>();
  const auto second = info[index + 1].As<Napi::Array>();
  const auto cpuset = info[index + 2].As<Napi::Array>();
  std::vector<Hierarchy> hierarchies(roots.Length());
  for (uint32_t i = 0; i < roots.Length(); i++) {
    hierarchies[i].root = roots.Get(i).As<Napi::String>().Utf8Value();
    hierarchies[i].second = second.Get(i).As<Napi::Boolean>().Value();
    hierarchies[i].cpuset = cpuset.Get(i).As<Napi::Boolean>().Value();
  }
  return hierarchies;
}

int MakeGroup(const Hierarchy& hierarchy, const std::string& path) {
  std::string folder = hierarchy.root;
  for (size_t at = 0; at < path.size();) {
    const size_t next = std::min(path.find('/', at + 1), path.size());
    const std::string parent = folder;
    if (hierarchy.second) HandDown(parent);
    folder += path.substr(at, next - at);
    if (mkdir(folder.c_str(), kMode) != 0 && errno != EEXIST) return errno;
    const int failed = hierarchy.cpuset ? InheritCpuset(parent, folder) : 0;
    if (failed != 0) return failed;
    at = next;
  }
  return 0;
}

void InitCgroup(Napi::Env env, Napi::Object exports, Jobs* jobs) {
  exports.Set("cgroupJoin", Napi::Function::New(env, CgroupJoin, "cgroupJoin", jobs));
}

}  // namespace snp
