// Programs as processes of their own, started on a thread: a process of this size takes milliseconds to copy (fork(2)), while a child that
// borrows its memory until it is another program (CLONE_VM | CLONE_VFORK of clone(2)) takes none. It enters its control groups before it is
// that program: a process with one thread enters them at once, while the move of one with several, or by another process, waits for all
// processors.
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "cgroup.h"
#include "job.h"

namespace snp {

namespace {

// The child runs on a stack of its own, and calls nothing but the kernel.
constexpr size_t kStackBytes = 64 * 1024;
// The ABI's alignment of a stack.
constexpr size_t kStackAlignment = 16;
constexpr size_t kMaxDescriptors = 16;
// What an end by a signal is counted from.
constexpr int kSignalBase = 256;

// What was under way when it failed.
enum Stage : int { kGroup = 0, kDescriptors = 1, kFolder = 2, kProgram = 3, kProcess = 4 };

// All that the child needs, and what it tells: it has no memory of its own.
struct Errand {
  const char* program;
  char* const* arguments;
  const char* folder;
  const std::vector<int>* descriptors;
  // Files of control groups; whoever writes 0 there enters.
  const std::vector<std::string>* doors;
  const std::string* oom_score;
  pid_t parent;
  int error;
  Stage stage;
  size_t index;
};

int Fail(Errand* errand, Stage stage, size_t index = 0) {
  errand->error = errno;
  errand->stage = stage;
  errand->index = index;
  return 1;
}

// Writes to a file of the kernel. Errors are in `errno`.
bool Tell(const char* path, const char* text, size_t length) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool told = write(fd, text, length) >= 0;
  const int error = errno;
  close(fd);
  errno = error;
  return told;
}

// Gives the process its descriptors, 0 and up; -1 is the null device. What it has besides is closed by its execve(2).
bool TakeDescriptors(const std::vector<int>& descriptors) {
  const int count = static_cast<int>(descriptors.size());
  std::array<int, kMaxDescriptors> copies;
  // A place may have one that is needed for another.
  for (int i = 0; i < count; i++) {
    const int given = descriptors[i];
    const int source = given >= 0 ? given : open("/dev/null", O_RDWR | O_CLOEXEC);
    copies[i] = source < 0 ? -1 : fcntl(source, F_DUPFD_CLOEXEC, count);
    if (copies[i] < 0) return false;
  }
  for (int i = 0; i < count; i++) {
    if (dup2(copies[i], i) < 0) return false;
  }
  return true;
}

// Handlers are this program's, and what it ignores would stay ignored.
void ForgetSignals() {
  struct sigaction usual {};
  usual.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; signal++) sigaction(signal, &usual, nullptr);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

// The child. Its parent's thread waits until it is another program or has ended.
int Child(void* data) {
  auto* errand = static_cast<Errand*>(data);
  for (size_t i = 0; i < errand->doors->size(); i++) {
    if (!Tell((*errand->doors)[i].c_str(), "0", 1)) return Fail(errand, kGroup, i);
  }
  ForgetSignals();
  setsid();
  // A value that may not be lowered is left as it is.
  Tell("/proc/self/oom_score_adj", errand->oom_score->data(), errand->oom_score->size());
  if (!TakeDescriptors(*errand->descriptors)) return Fail(errand, kDescriptors);
  if (chdir(errand->folder) != 0) return Fail(errand, kFolder);
  // A later program looks for what this one has started by its arguments and its folder: one without a parent is not found yet.
  if (getppid() != errand->parent) return 1;
  char* environment[] = {nullptr};
  execve(errand->program, errand->arguments, environment);
  return Fail(errand, kProgram);
}

// clone3(2) of a child that runs `Child` on a stack of its own; the C library has no function for it. Answers its number or a negative errno.
// What the child needs is in registers that neither the call nor the end of the chain of frames (ebp) takes.
long Clone3(clone_args* arguments, Errand* errand) {
#ifdef __x86_64__
  long result = SYS_clone3;
  asm volatile(
      "syscall\n\t"
      "testq %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xorl %%ebp, %%ebp\n\t"
      "movq %[errand], %%rdi\n\t"
      "callq *%[run]\n\t"
      "movl %%eax, %%edi\n\t"
      "movl %[exit], %%eax\n\t"
      "syscall\n\t"
      "hlt\n"
      "1:"
      : "+a"(result)
      : "D"(arguments), "S"(sizeof(*arguments)), [run] "d"(Child), [errand] "b"(errand), [exit] "i"(SYS_exit_group)
      : "rcx", "r11", "memory", "cc");
  return result;
#else
  (void)arguments;
  (void)errand;
  return -ENOSYS;
#endif
}

// The kernel, or a filter of system calls, does not know how to bear a child into a group, or the folder is none (EBADF), which the door
// tells. All else is its answer, which entering the group otherwise must not get round: EAGAIN of a group with as many processes as it may
// have (pids.max, which moves into a group do not heed).
bool CantBearIntoGroup(long error) {
  return error == ENOSYS || error == EINVAL || error == E2BIG || error == EPERM || error == EBADF;
}

// What is to be started.
struct Program {
  std::string path;
  std::vector<std::string> arguments;
  std::string folder;
  std::vector<int> descriptors;
  std::string oom_score;
  std::vector<Hierarchy> hierarchies;
  std::string group;
};

// Answers `[pid, pidfd]`, or `[-errno, stage, index]` with the hierarchy in which a group can't be entered.
class Spawn : public Job {
 public:
  explicit Spawn(Program program) : program_(std::move(program)) {
    // They may be closed, and their numbers be others', before the thread runs.
    for (int& fd : program_.descriptors) {
      if (fd < 0) continue;
      Fd copy(fcntl(fd, F_DUPFD_CLOEXEC, 3));
      if (!copy.Valid()) {
        failed_ = {errno, kDescriptors, 0};
        return;
      }
      fd = copy.Get();
      held_.push_back(std::move(copy));
    }
  }

  void Run() override {
    if (failed_.error == 0 && MakeGroups()) Start();
    held_.clear();
    entered_.Reset(-1);
  }

  napi_value Result(napi_env env) override {
    const bool failed = failed_.error != 0;
    const std::vector<int64_t> numbers = failed ? std::vector<int64_t>{-failed_.error, failed_.stage, static_cast<int64_t>(failed_.index)}
                                                : std::vector<int64_t>{pid_, pidfd_.Get()};
    napi_value list = nullptr;
    if (napi_create_array_with_length(env, numbers.size(), &list) != napi_ok) return nullptr;
    for (uint32_t i = 0; i < numbers.size(); i++) {
      const napi_value number = NumberOf(env, numbers[i]);
      if (number == nullptr || napi_set_element(env, list, i, number) != napi_ok) return nullptr;
    }
    return list;
  }

  void HandedOver() override {
    pidfd_.Release();
  }

 private:
  struct Failure {
    int error = 0;
    Stage stage = kProcess;
    size_t index = 0;
  };

  // Makes the groups and finds how each is entered. Of version 2 a child can be born into one; in version 1 a thread enters by `tasks`, which,
  // unlike `cgroup.procs`, waits for nobody. (A cpuset whose memory_migrate is set, which a new one's is not, would move this program's memory.)
  bool MakeGroups() {
    for (size_t i = 0; i < program_.hierarchies.size(); i++) {
      const Hierarchy& hierarchy = program_.hierarchies[i];
      const int error = MakeGroup(hierarchy, program_.group);
      if (error != 0) {
        failed_ = {error, kGroup, i};
        return false;
      }
      const std::string folder = hierarchy.root + program_.group;
      if (hierarchy.second && !entered_.Valid()) {
        entered_ = Fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        born_ = i;
        if (entered_.Valid()) continue;
      }
      AddDoor(i);
    }
    return true;
  }

  void AddDoor(size_t index) {
    const Hierarchy& hierarchy = program_.hierarchies[index];
    doors_.push_back(hierarchy.root + program_.group + (hierarchy.second ? "/cgroup.procs" : "/tasks"));
    owners_.push_back(index);
  }

  void Start() {
    std::vector<char*> arguments;
    for (std::string& argument : program_.arguments) arguments.push_back(argument.data());
    arguments.push_back(nullptr);
    Errand errand{program_.path.c_str(), arguments.data(),     program_.folder.c_str(), &program_.descriptors, &doors_,
                  &program_.oom_score,   getpid(), 0, kProcess, 0};
    const std::unique_ptr<uint8_t[]> stack(new uint8_t[kStackBytes + kStackAlignment]);
    const uintptr_t base = (reinterpret_cast<uintptr_t>(stack.get()) + kStackAlignment - 1) & ~(kStackAlignment - 1);
    int pidfd = -1;
    const long pid = Clone(base, &errand, &pidfd);
    if (pid < 0) {
      if (failed_.error == 0) failed_ = {static_cast<int>(-pid), kProcess, 0};
      return;
    }
    pidfd_ = Fd(pidfd);
    if (errand.error == 0) {
      pid_ = pid;
      return;
    }
    pidfd_.Reset(-1);
    waitpid(static_cast<pid_t>(pid), nullptr, 0);
    failed_ = {errand.error, errand.stage, errand.stage == kGroup ? owners_[errand.index] : 0};
  }

  // Answers the child's number or a negative errno. Where no child can be born into a group (see `CantBearIntoGroup`) it enters by a door.
  long Clone(uintptr_t stack, Errand* errand, int* pidfd) {
    constexpr uint64_t kFlags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD;
    if (entered_.Valid()) {
      clone_args arguments{};
      arguments.flags = kFlags | CLONE_INTO_CGROUP;
      arguments.pidfd = reinterpret_cast<uintptr_t>(pidfd);
      arguments.exit_signal = SIGCHLD;
      arguments.stack = stack;
      arguments.stack_size = kStackBytes;
      arguments.cgroup = static_cast<uint64_t>(entered_.Get());
      const long pid = Clone3(&arguments, errand);
      if (pid > 0) return pid;
      if (!CantBearIntoGroup(-pid)) {
        failed_ = {static_cast<int>(-pid), kGroup, born_};
        return pid;
      }
      AddDoor(born_);
    }
    void* top = reinterpret_cast<void*>(stack + kStackBytes);
    const int pid = clone(Child, top, static_cast<int>(kFlags) | SIGCHLD, errand, pidfd);
    return pid < 0 ? -errno : pid;
  }

  Program program_;
  std::vector<Fd> held_;
  // The group of version 2 that the child is born into, and its hierarchy.
  Fd entered_;
  size_t born_ = 0;
  std::vector<std::string> doors_;
  // The hierarchy of each door.
  std::vector<size_t> owners_;
  Failure failed_;
  int64_t pid_ = 0;
  Fd pidfd_;
};

// spawn(program, arguments, folder, descriptors, oomScore, roots, second, cpuset, group) -> promise, see `Spawn`. The arguments begin with
// the program's name; of the descriptors -1 is the null device; without roots the process stays in its parent's groups.
Napi::Value SpawnProgram(const Napi::CallbackInfo& info) {
  const auto arguments = info[1].As<Napi::Array>();
  const auto descriptors = info[3].As<Napi::Array>();
  Program program;
  program.path = StringAt(info, 0);
  for (uint32_t i = 0; i < arguments.Length(); i++) program.arguments.push_back(arguments.Get(i).As<Napi::String>().Utf8Value());
  program.folder = StringAt(info, 2);
  for (uint32_t i = 0; i < descriptors.Length() && i < kMaxDescriptors; i++)
    program.descriptors.push_back(descriptors.Get(i).As<Napi::Number>().Int32Value());
  program.oom_score = std::to_string(IntAt(info, 4));
  program.hierarchies = HierarchiesAt(info, 5);
  program.group = StringAt(info, 8);
  return JobsOf(info)->Start(std::make_unique<Spawn>(std::move(program)));
}

// childEnd(pid) -> the exit code of a child that has ended, or 256 and its signal, or -errno; -EAGAIN while it runs. It is waited for by this.
Napi::Value ChildEnd(const Napi::CallbackInfo& info) {
  int status = 0;
  pid_t pid;
  do {
    pid = waitpid(IntAt(info, 0), &status, WNOHANG);
  } while (pid < 0 && errno == EINTR);
  if (pid < 0) return AnswerErrno(info);
  if (pid == 0) return Answer(info, -EAGAIN);
  return Answer(info, WIFSIGNALED(status) ? kSignalBase + WTERMSIG(status) : WEXITSTATUS(status));
}

}  // namespace

void InitSpawn(Napi::Env env, Napi::Object exports, Jobs* jobs) {
  exports.Set("spawn", Napi::Function::New(env, SpawnProgram, "spawn", jobs));
  exports.Set("childEnd", Napi::Function::New(env, ChildEnd, "childEnd"));
}

}  // namespace snp
