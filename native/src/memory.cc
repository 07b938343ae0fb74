// How much memory processes, control groups and the machine use, and how much they wait for it (proc(5), the kernel's accounting/psi and
// cgroup documents): all in one call, on a thread of its own.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string_view>
#include <vector>

#include "job.h"

namespace snp {

namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr double kKib = 1024;
// Larger than any of these files: /proc/meminfo has about 1.5 KiB, /proc/<pid>/status a few hundred bytes before what is read of it.
constexpr size_t kTextMax = 4096;

// One process that is watched. The open files belong to the process: its number may go to another one, which these never tell of.
struct Process {
  int id;
  int pid;
  Fd statm;
  Fd stat;
};

// One control group that is watched; what a hierarchy does not have stays closed.
struct Group {
  int id;
  Fd usage;
  Fd limit;
  Fd stat;
  Fd pressure;
};

// What is watched. A table never changes: whoever samples has the one of its beginning, and the files in it stay open that long.
struct Table {
  std::vector<std::shared_ptr<const Process>> processes;
  std::vector<std::shared_ptr<const Group>> groups;
};

// What is asked of each process beside what is cheap.
enum Detail : int { kShare = 1, kTime = 2 };

// The answer: first numbers of the machine and the numbers of rows, then the columns of processes, then those of groups.
constexpr size_t kHeaderNumbers = 7;
constexpr size_t kPageColumns = 3;
constexpr size_t kTimeColumns = 1;
constexpr size_t kShareColumns = 2;
constexpr size_t kGroupColumns = 5;

// A small file of the kernel from its beginning; empty when it can't be read, or not any more.
std::string_view Text(int fd, std::array<char, kTextMax>* buffer) {
  ssize_t length;
  do {
    length = pread(fd, buffer->data(), buffer->size(), 0);
  } while (length < 0 && errno == EINTR);
  return length <= 0 ? std::string_view() : std::string_view(buffer->data(), static_cast<size_t>(length));
}

std::string_view TextAt(const char* path, std::array<char, kTextMax>* buffer) {
  const Fd file(open(path, O_RDONLY | O_CLOEXEC));
  return file.Valid() ? Text(file.Get(), buffer) : std::string_view();
}

// Takes the number off the front of a text, with the spaces before it.
double TakeNumber(std::string_view* text) {
  text->remove_prefix(std::min(text->find_first_not_of(" \t"), text->size()));
  double number = kUnknown;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error != std::errc()) return kUnknown;
  text->remove_prefix(static_cast<size_t>(end - text->data()));
  return number;
}

// The number behind a name, which stands in this text once.
double NumberAfter(std::string_view text, std::string_view name) {
  const size_t at = text.find(name);
  if (at == std::string_view::npos) return kUnknown;
  text.remove_prefix(at + name.size());
  return TakeNumber(&text);
}

// A file of one number; version 2 writes "max" where there is no limit.
double OneNumber(const Fd& file, std::array<char, kTextMax>* buffer) {
  if (!file.Valid()) return kUnknown;
  std::string_view text = Text(file.Get(), buffer);
  return text.starts_with("max") ? std::numeric_limits<double>::infinity() : TakeNumber(&text);
}

// The sums of all threads in clock ticks: fields 14 and 15 of stat, the first of which behind the name is field 3.
double ProcessTicks(std::string_view stat) {
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string_view::npos) return kUnknown;
  stat.remove_prefix(name_end + 1);
  for (int field = 3; field <= 14; field++) {
    const size_t space = stat.find(' ');
    if (space == std::string_view::npos) return kUnknown;
    stat.remove_prefix(space + 1);
  }
  const double user = TakeNumber(&stat);
  return user + TakeNumber(&stat);
}

class Sample : public Job {
 public:
  Sample(std::shared_ptr<const Table> table, int detail)
      : table_(std::move(table)),
        time_columns_((detail & kTime) == 0 ? 0 : kTimeColumns),
        share_columns_((detail & kShare) == 0 ? 0 : kShareColumns) {
  }

  void Run() override {
    const size_t processes = table_->processes.size();
    const size_t groups = table_->groups.size();
    numbers_.assign(length_, kUnknown);
    ReadHost();
    numbers_[5] = static_cast<double>(processes);
    numbers_[6] = static_cast<double>(groups);
    for (size_t row = 0; row < processes; row++) ReadProcess(*table_->processes[row], &numbers_[kHeaderNumbers + row], processes);
    const size_t after = kHeaderNumbers + columns_ * processes;
    for (size_t row = 0; row < groups; row++) ReadGroup(*table_->groups[row], &numbers_[after + row], groups);
  }

  // Makes the array for the answer, on the loop; the thread fills it. Answers what keeps it alive, or a null pointer: `Result` lets go of it, or
  // whoever could not start the job.
  napi_ref Prepare(napi_env env) {
    void* bytes = nullptr;
    napi_value buffer = nullptr;
    napi_value array = nullptr;
    length_ = kHeaderNumbers + columns_ * table_->processes.size() + kGroupColumns * table_->groups.size();
    if (napi_create_arraybuffer(env, length_ * sizeof(double), &bytes, &buffer) != napi_ok) return nullptr;
    if (napi_create_typedarray(env, napi_float64_array, length_, buffer, 0, &array) != napi_ok) return nullptr;
    filled_ = static_cast<double*>(bytes);
    return napi_create_reference(env, array, 1, &array_) == napi_ok ? array_ : nullptr;
  }

  // The environment, and with it the array, may end while the numbers are read; not here.
  void Deliver() override {
    std::ranges::copy(numbers_, filled_);
  }

  napi_value Result(napi_env env) override {
    napi_value array = nullptr;
    if (napi_get_reference_value(env, array_, &array) != napi_ok) return nullptr;
    napi_delete_reference(env, array_);
    return array;
  }

 private:
  void ReadHost() {
    const std::string_view memory = TextAt("/proc/meminfo", &text_);
    numbers_[0] = NumberAfter(memory, "MemTotal:") * kKib;
    numbers_[1] = NumberAfter(memory, "MemAvailable:") * kKib;
    const std::string_view pressure = TextAt("/proc/pressure/memory", &text_);
    numbers_[2] = NumberAfter(pressure, "some avg10=");
    numbers_[3] = NumberAfter(pressure, "full avg10=");
    numbers_[4] = NumberAfter(pressure, "total=");
  }

  // Columns: id, resident, shared and file pages of it, then what was asked for: clock ticks; proportional share and highest ever. Bytes; unknown
  // when it is gone.
  void ReadProcess(const Process& process, double* column, size_t step) {
    column[0] = process.id;
    if (!ReadPages(process, &column[step], &column[2 * step])) return;
    if (time_columns_ > 0) column[kPageColumns * step] = ProcessTicks(Text(process.stat.Get(), &text_));
    if (share_columns_ == 0) return;
    const double share = NumberAfter(TextOf(process, "smaps_rollup"), "\nPss:") * kKib;
    const double peak = NumberAfter(TextOf(process, "status"), "VmHWM:") * kKib;
    // What the number led to was this process's if the process is still there: nobody else can have the number meanwhile.
    double resident;
    double shared;
    if (!ReadPages(process, &resident, &shared)) return;
    const size_t first = kPageColumns + time_columns_;
    column[first * step] = share;
    column[(first + 1) * step] = peak;
  }

  // A process that has ended and was not waited for has no pages at all.
  bool ReadPages(const Process& process, double* resident, double* shared) {
    std::string_view pages = Text(process.statm.Get(), &text_);
    const double size = TakeNumber(&pages);
    if (!(size > 0)) return false;
    *resident = TakeNumber(&pages) * page_bytes_;
    *shared = TakeNumber(&pages) * page_bytes_;
    return true;
  }

  std::string_view TextOf(const Process& process, const char* name) {
    std::array<char, 64> path;
    snprintf(path.data(), path.size(), "/proc/%d/%s", process.pid, name);
    return TextAt(path.data(), &text_);
  }

  // Columns: id, bytes in use, limit (infinite for none), what of the use is old pages of files, percent of the last ten seconds in which
  // somebody waited for memory.
  void ReadGroup(const Group& group, double* column, size_t step) {
    column[0] = group.id;
    column[step] = OneNumber(group.usage, &text_);
    column[2 * step] = OneNumber(group.limit, &text_);
    if (group.stat.Valid()) {
      const std::string_view stat = Text(group.stat.Get(), &text_);
      // Version 1 tells the group's own pages first; those with the groups below it have a longer name.
      const double all = NumberAfter(stat, "\ntotal_inactive_file ");
      column[3 * step] = std::isnan(all) ? NumberAfter(stat, "\ninactive_file ") : all;
    }
    if (group.pressure.Valid()) column[4 * step] = NumberAfter(Text(group.pressure.Get(), &text_), "some avg10=");
  }

  const std::shared_ptr<const Table> table_;
  const size_t time_columns_;
  const size_t share_columns_;
  const size_t columns_ = kPageColumns + time_columns_ + share_columns_;
  const double page_bytes_ = static_cast<double>(sysconf(_SC_PAGESIZE));
  size_t length_ = 0;
  std::vector<double> numbers_;
  double* filled_ = nullptr;
  napi_ref array_ = nullptr;
  std::array<char, kTextMax> text_;
};

// What one JavaScript environment watches; goes with it. A sample under way keeps its own table.
class Watched {
 public:
  explicit Watched(Jobs* jobs) : jobs_(jobs), table_(std::make_shared<const Table>()) {
  }

  int AddProcess(int pid) {
    const Fd folder(open(("/proc/" + std::to_string(pid)).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!folder.Valid()) return -errno;
    // Both are of one process: the folder is.
    Fd statm(openat(folder.Get(), "statm", O_RDONLY | O_CLOEXEC));
    if (!statm.Valid()) return -errno;
    Fd stat(openat(folder.Get(), "stat", O_RDONLY | O_CLOEXEC));
    if (!stat.Valid()) return -errno;
    auto next = std::make_shared<Table>(*table_);
    next->processes.push_back(std::make_shared<const Process>(Process{next_, pid, std::move(statm), std::move(stat)}));
    table_ = std::move(next);
    return next_++;
  }

  // Empty paths, and files that are not there, count as what the group does not have.
  int AddGroup(const std::string& usage, const std::string& limit, const std::string& stat, const std::string& pressure) {
    const auto file = [](const std::string& path) { return path.empty() ? Fd() : Fd(open(path.c_str(), O_RDONLY | O_CLOEXEC)); };
    auto next = std::make_shared<Table>(*table_);
    next->groups.push_back(std::make_shared<const Group>(Group{next_, file(usage), file(limit), file(stat), file(pressure)}));
    table_ = std::move(next);
    return next_++;
  }

  void Remove(int id) {
    auto next = std::make_shared<Table>(*table_);
    const auto is = [id](const auto& one) { return one->id == id; };
    std::erase_if(next->processes, is);
    std::erase_if(next->groups, is);
    table_ = std::move(next);
  }

  Napi::Value Start(Napi::Env env, int detail) {
    auto sample = std::make_unique<Sample>(table_, detail);
    const napi_ref array = sample->Prepare(env);
    if (array == nullptr) return Napi::Number::New(env, -ENOMEM);
    const Napi::Value started = jobs_->Start(std::move(sample));
    if (started.IsNumber()) napi_delete_reference(env, array);
    return started;
  }

 private:
  Jobs* jobs_;
  std::shared_ptr<const Table> table_;
  int next_ = 1;
};

Watched* WatchedOf(const Napi::CallbackInfo& info) {
  return static_cast<Watched*>(info.Data());
}

// memoryWatch(pid) -> id or -errno
Napi::Value MemoryWatch(const Napi::CallbackInfo& info) {
  return Answer(info, WatchedOf(info)->AddProcess(IntAt(info, 0)));
}

// memoryWatchGroup(usage file, limit file, file of kinds, pressure file) -> id
Napi::Value MemoryWatchGroup(const Napi::CallbackInfo& info) {
  return Answer(info, WatchedOf(info)->AddGroup(StringAt(info, 0), StringAt(info, 1), StringAt(info, 2), StringAt(info, 3)));
}

// memoryUnwatch(id): of a process or a group. Ids that are gone are ignored.
Napi::Value MemoryUnwatch(const Napi::CallbackInfo& info) {
  WatchedOf(info)->Remove(IntAt(info, 0));
  return info.Env().Undefined();
}

// memorySample(detail) -> promise of a Float64Array (see the facade), or -errno
Napi::Value MemorySample(const Napi::CallbackInfo& info) {
  return WatchedOf(info)->Start(info.Env(), IntAt(info, 0));
}

}  // namespace

void InitMemory(Napi::Env env, Napi::Object exports, Jobs* jobs) {
  auto* watched = new Watched(jobs);
  napi_add_env_cleanup_hook(
      env, [](void* self) { delete static_cast<Watched*>(self); }, watched);
  exports.Set("memoryWatch", Napi::Function::New(env, MemoryWatch, "memoryWatch", watched));
  exports.Set("memoryWatchGroup", Napi::Function::New(env, MemoryWatchGroup, "memoryWatchGroup", watched));
  exports.Set("memoryUnwatch", Napi::Function::New(env, MemoryUnwatch, "memoryUnwatch", watched));
  exports.Set("memorySample", Napi::Function::New(env, MemorySample, "memorySample", watched));
}

}  // namespace snp
