// Unix stream sockets as bare descriptors: listening ones to hand to a child, connected ones that carry descriptors (unix(7), SCM_RIGHTS).
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <cstring>

#include "addon.h"

namespace snp {

namespace {

// SCM_MAX_FD of the kernel; the facade holds the same bound.
constexpr size_t kMaxFds = 253;
// A message of this length can be sent without waiting. The kernel allows it unless net.core.wmem_max was lowered.
constexpr int kSendBytes = 208 * 1024;

// Fills in `address`; false when the path does not fit with its final NUL.
bool AddressOf(const std::string& path, sockaddr_un* address) {
  std::memset(address, 0, sizeof(*address));
  address->sun_family = AF_UNIX;
  if (path.size() >= sizeof(address->sun_path)) return false;
  std::memcpy(address->sun_path, path.data(), path.size());
  return true;
}

// listenUnix(path, backlog, mode, blocking) -> descriptor (non-blocking unless blocking is not 0, close-on-exec) or -errno. A file that
// this call made is removed when it fails.
Napi::Value ListenUnix(const Napi::CallbackInfo& info) {
  const std::string path = StringAt(info, 0);
  sockaddr_un address;
  if (!AddressOf(path, &address)) return Answer(info, -ENAMETOOLONG);
  const int waits = IntAt(info, 3) != 0 ? 0 : SOCK_NONBLOCK;
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | waits, 0));
  if (!fd.Valid()) return AnswerErrno(info);
  // The mode of the descriptor becomes the file's at bind, less the umask: there is no moment in which others may connect.
  const auto mode = static_cast<mode_t>(IntAt(info, 2));
  if (fchmod(fd.Get(), mode) != 0) return AnswerErrno(info);
  if (bind(fd.Get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return AnswerErrno(info);
  if (listen(fd.Get(), IntAt(info, 1)) != 0) {
    const int error = errno;
    unlink(path.c_str());
    return Answer(info, -error);
  }
  return Answer(info, fd.Release());
}

// connectUnix(path) -> descriptor (non-blocking, close-on-exec) or -errno; -EAGAIN when the listener's backlog is full.
Napi::Value ConnectUnix(const Napi::CallbackInfo& info) {
  sockaddr_un address;
  if (!AddressOf(StringAt(info, 0), &address)) return Answer(info, -ENAMETOOLONG);
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.Valid()) return AnswerErrno(info);
  // The kernel doubles it, for its own part of each message: what is sent at once has room whatever the machine's default is.
  const int room = kSendBytes;
  setsockopt(fd.Get(), SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
  if (connect(fd.Get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return AnswerErrno(info);
  return Answer(info, fd.Release());
}

// sendFds(fd, bytes, fds) -> bytes sent or -errno. The descriptors go with the first byte; fewer bytes than given may be sent.
Napi::Value SendFds(const Napi::CallbackInfo& info) {
  auto bytes = info[1].As<Napi::Uint8Array>();
  const auto list = info[2].As<Napi::Array>();
  const size_t count = list.Length();
  if (count == 0 || count > kMaxFds) return Answer(info, -EINVAL);

  std::array<int, kMaxFds> fds;
  for (size_t i = 0; i < count; i++) fds[i] = list.Get(static_cast<uint32_t>(i)).As<Napi::Number>().Int32Value();

  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxFds)> control{};
  iovec part{bytes.Data(), bytes.ByteLength()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * count);
  std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * count);

  ssize_t sent;
  do {
    sent = sendmsg(IntAt(info, 0), &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return AnswerErrno(info);
  return Answer(info, static_cast<int>(sent));
}

}  // namespace

void InitSocket(Napi::Env env, Napi::Object exports) {
  exports.Set("listenUnix", Napi::Function::New(env, ListenUnix, "listenUnix"));
  exports.Set("connectUnix", Napi::Function::New(env, ConnectUnix, "connectUnix"));
  exports.Set("sendFds", Napi::Function::New(env, SendFds, "sendFds"));
}

}  // namespace snp
