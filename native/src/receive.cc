// Messages and descriptors that arrive on a socket (recvmsg(2), SCM_RIGHTS), as events of the loop: Node's own sockets lose what comes
// beside the bytes, and know no netlink.
#include <fcntl.h>
#include <sys/socket.h>
#include <uv.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "addon.h"

namespace snp {

namespace {

constexpr size_t kBufferBytes = 64 * 1024;
// SCM_MAX_FD of the kernel: no message can carry more.
constexpr size_t kMaxFds = 253;
// Messages taken in one turn of the loop; the rest waits for the next, so that a talkative peer does not hold up the others.
constexpr int kTurnMax = 16;

class Receivers;

// One socket that is listened to. Lives until libuv has closed its handle; owns its own copy of the descriptor.
struct Receiver {
  uv_poll_t poll;
  Receivers* owner;
  int id;
  Fd fd;
  Napi::FunctionReference callback;
  std::unique_ptr<Napi::AsyncContext> context;
};

// The receivers of one JavaScript environment. Node destroys it only after every handle has been closed.
class Receivers {
 public:
  explicit Receivers(Napi::Env env) : env_(env), buffer_(kBufferBytes) {
    napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle handle, void* self) { static_cast<Receivers*>(self)->End(handle); }, this, nullptr);
  }

  int Add(int socket, Napi::Function callback) {
    uv_loop_t* loop = nullptr;
    if (ending_ || napi_get_uv_event_loop(env_, &loop) != napi_ok) return -ECANCELED;
    Fd copy(fcntl(socket, F_DUPFD_CLOEXEC, 3));
    if (!copy.Valid()) return -errno;
    auto receiver = std::make_unique<Receiver>();
    const int failed = uv_poll_init(loop, &receiver->poll, copy.Get());
    if (failed != 0) return failed;
    receiver->poll.data = receiver.get();
    receiver->owner = this;
    receiver->id = next_++;
    receiver->fd = std::move(copy);
    receiver->callback = Napi::Persistent(callback);
    receiver->context = std::make_unique<Napi::AsyncContext>(env_, "snp.receive");
    Receiver* raw = receiver.release();  // From here on it belongs to its handle, whose closing deletes it.
    receivers_.emplace(raw->id, raw);
    // Listening alone must not keep the program alive.
    uv_unref(reinterpret_cast<uv_handle_t*>(&raw->poll));
    const int unstarted = uv_poll_start(&raw->poll, UV_READABLE, OnReadable);
    if (unstarted != 0) {
      Remove(raw->id);
      return unstarted;
    }
    return raw->id;
  }

  void Remove(int id) {
    const auto found = receivers_.find(id);
    if (found == receivers_.end()) return;
    Receiver* receiver = found->second;
    receivers_.erase(found);
    closing_++;
    uv_poll_stop(&receiver->poll);
    uv_close(reinterpret_cast<uv_handle_t*>(&receiver->poll), [](uv_handle_t* handle) {
      auto* closed = static_cast<Receiver*>(handle->data);
      Receivers* owner = closed->owner;
      delete closed;
      owner->OnClosed();
    });
  }

 private:
  static void OnReadable(uv_poll_t* poll, int, int) {
    auto* receiver = static_cast<Receiver*>(poll->data);
    Receivers* owner = receiver->owner;
    const int id = receiver->id;
    for (int turn = 0; turn < kTurnMax; turn++) {
      std::vector<Fd> fds;
      const ssize_t length = owner->Receive(receiver->fd.Get(), &fds);
      if (length == -EAGAIN) return;
      owner->Tell(receiver, length, std::move(fds));
      // The callback may have given the receiver up; its memory lives until the next turn, its id does not.
      if (owner->receivers_.find(id) == owner->receivers_.end()) return;
      // The end of a stream, and errors that stay, would come again and again.
      if (length == 0 || (length < 0 && length != -ENOBUFS)) {
        owner->Remove(id);
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

  // Calls back with (result, bytes, descriptors). No JavaScript can run while the environment is torn down: the call then fails without an
  // exception, and the descriptors are closed.
  void Tell(Receiver* receiver, ssize_t length, std::vector<Fd> fds) {
    Napi::HandleScope scope(env_);
    const std::array<napi_value, 3> arguments{
        NumberOf(env_, length), BytesOf(env_, buffer_.data(), length > 0 ? static_cast<size_t>(length) : 0), NumbersOf(env_, fds)};
    if (std::find(arguments.begin(), arguments.end(), nullptr) != arguments.end()) return;
    const Napi::Function callback = receiver->callback.Value();
    // The raw call, since the wrapper's own way with a failure is to throw.
    const napi_status status =
        napi_make_callback(env_, *receiver->context, env_.Global(), callback, arguments.size(), arguments.data(), nullptr);
    if (status == napi_ok || status == napi_pending_exception) {
      for (Fd& fd : fds) fd.Release();
    }
    bool thrown = false;
    napi_value error = nullptr;
    if (napi_is_exception_pending(env_, &thrown) == napi_ok && thrown && napi_get_and_clear_last_exception(env_, &error) == napi_ok) {
      napi_fatal_exception(env_, error);
    }
  }

  void End(napi_async_cleanup_hook_handle handle) {
    ending_ = true;
    cleanup_ = handle;
    while (!receivers_.empty()) Remove(receivers_.begin()->first);
    if (closing_ == 0) Finish();
  }

  void OnClosed() {
    closing_--;
    if (ending_ && closing_ == 0) Finish();
  }

  void Finish() {
    napi_async_cleanup_hook_handle handle = cleanup_;
    delete this;
    napi_remove_async_cleanup_hook(handle);
  }

  Napi::Env env_;
  std::vector<uint8_t> buffer_;
  std::unordered_map<int, Receiver*> receivers_;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
  int next_ = 1;
  int closing_ = 0;
  bool ending_ = false;
};

Receivers* ReceiversOf(const Napi::CallbackInfo& info) {
  return static_cast<Receivers*>(info.Data());
}

// receive(fd, callback) -> id of the receiver or -errno. The callback gets (length or -errno, bytes, descriptors) for each message, 0 at
// the end of a stream, after which it is not called again. The descriptors are the callee's. Listening does not keep the loop alive.
Napi::Value Receive(const Napi::CallbackInfo& info) {
  return Answer(info, ReceiversOf(info)->Add(IntAt(info, 0), info[1].As<Napi::Function>()));
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
