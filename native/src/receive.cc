// Messages and descriptors that arrive on a socket (recvmsg(2), SCM_RIGHTS), as events of the loop: Node's own sockets lose what comes
// beside the bytes, and know no netlink.
#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "polls.h"

namespace snp {

namespace {

constexpr size_t kBufferBytes = 64 * 1024;
// SCM_MAX_FD of the kernel: no message can carry more.
constexpr size_t kMaxFds = 253;
// Messages taken in one turn of the loop; the rest waits for the next, so that a talkative peer does not hold up the others.
constexpr int kTurnMax = 16;

// The sockets of one environment that are listened to.
class Receivers : public Polls {
 public:
  explicit Receivers(Napi::Env env) : Polls(env, "snp.receive", UV_READABLE), buffer_(kBufferBytes) {
  }

 private:
  void OnEvent(Poll* poll, int) override {
    const int id = poll->id;
    for (int turn = 0; turn < kTurnMax; turn++) {
      std::vector<Fd> fds;
      const ssize_t length = Receive(poll->fd.Get(), &fds);
      if (length == -EAGAIN) return;
      Tell(poll, length, std::move(fds));
      // The callback may have given the receiver up; its memory lives until the next turn, its id does not.
      if (!Has(id)) return;
      // The end of a stream, and errors that stay, would come again and again.
      if (length == 0 || (length < 0 && length != -ENOBUFS)) {
        Remove(id);
        return;
      }
    }
  }

  // Receives one message into the buffer; answers its length or a negative errno.
  ssize_t Receive(int fd, std::vector<Fd>* fds) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxFds)> control;
    iovec part{buffer_.data(), buffer_.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    ssize_t length;
    do {
      length = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (length < 0 && errno == EINTR);
    if (length < 0) return -errno;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; i++) {
        int received;
        std::memcpy(&received, CMSG_DATA(header) + i * sizeof(int), sizeof(received));
        fds->emplace_back(received);
      }
    }
    return length;
  }

  // Calls back with (result, bytes, descriptors). While the environment is torn down nobody takes the descriptors: they are closed.
  void Tell(Poll* poll, ssize_t length, std::vector<Fd> fds) {
    Napi::HandleScope scope(Env());
    const std::array<napi_value, 3> arguments{
        NumberOf(Env(), length), BytesOf(Env(), buffer_.data(), length > 0 ? static_cast<size_t>(length) : 0), NumbersOf(Env(), fds)};
    if (std::find(arguments.begin(), arguments.end(), nullptr) != arguments.end()) return;
    const napi_status status = Call(*poll->context, poll->callback.Value(), arguments.size(), arguments.data());
    if (status == napi_ok || status == napi_pending_exception) {
      for (Fd& fd : fds) fd.Release();
    }
  }

  std::vector<uint8_t> buffer_;
};

Receivers* ReceiversOf(const Napi::CallbackInfo& info) {
  return static_cast<Receivers*>(info.Data());
}

// receive(fd, callback) -> id of the receiver or -errno. The callback gets (length or -errno, bytes, descriptors) for each message, 0 at
// the end of a stream, after which it is not called again. The descriptors are the callee's. Listening does not keep the loop alive.
Napi::Value Receive(const Napi::CallbackInfo& info) {
  Fd copy(fcntl(IntAt(info, 0), F_DUPFD_CLOEXEC, 3));
  if (!copy.Valid()) return AnswerErrno(info);
  return Answer(info, ReceiversOf(info)->Add(std::move(copy), info[1].As<Napi::Function>()));
}

// unreceive(id): the callback will not run any more. Ids that are done are ignored.
Napi::Value Unreceive(const Napi::CallbackInfo& info) {
  ReceiversOf(info)->Remove(IntAt(info, 0));
  return info.Env().Undefined();
}

}  // namespace

void InitReceive(Napi::Env env, Napi::Object exports) {
  auto* receivers = new Receivers(env);
  exports.Set("receive", Napi::Function::New(env, Receive, "receive", receivers));
  exports.Set("unreceive", Napi::Function::New(env, Unreceive, "unreceive", receivers));
}

}  // namespace snp
