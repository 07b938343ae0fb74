// What must be made inside a network namespace: a descriptor belongs for ever to the namespace in which it was opened, so one short visit
// by a thread of its own gives sockets and taps that any thread may use afterwards.
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "visit.h"

namespace snp {

namespace {

// A socket for requests to the kernel's routing tables (rtnetlink(7)), or with groups for its announcements.
class NetlinkVisit : public Visit {
 public:
  NetlinkVisit(int ns, uint32_t groups) : Visit(ns), groups_(groups) {
  }

 protected:
  int Make(std::vector<Fd>* made) override {
    Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | (groups_ == 0 ? 0 : SOCK_NONBLOCK), NETLINK_ROUTE));
    if (!fd.Valid()) return errno;
    const int on = 1;
    // Refusals come with the kernel's own words where it has some; kernels that can't are no worse without.
    setsockopt(fd.Get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
    setsockopt(fd.Get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
    // Filters of interfaces that don't exist, and the like, are refused instead of passed over.
    setsockopt(fd.Get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof(on));
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    address.nl_groups = groups_;
    if (bind(fd.Get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return errno;
    made->push_back(std::move(fd));
    return 0;
  }

 private:
  uint32_t groups_;
};

// A tap with as many queues as wanted, one descriptor each. It goes when the last of them is closed.
class TapVisit : public Visit {
 public:
  TapVisit(int ns, std::string name, int queues) : Visit(ns), name_(std::move(name)), queues_(queues) {
  }

 protected:
  int Make(std::vector<Fd>* made) override {
    for (int queue = 0; queue < queues_; queue++) {
      Fd fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
      if (!fd.Valid()) return errno;
      ifreq request{};
      std::memcpy(request.ifr_name, name_.data(), std::min(name_.size(), sizeof(request.ifr_name) - 1));
      int flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
      if (queues_ > 1) flags |= IFF_MULTI_QUEUE;
      // Without this the first queue would join a tap of that name which somebody else has.
      if (queue == 0) flags |= IFF_TUN_EXCL;
      request.ifr_flags = static_cast<short>(flags);
      if (ioctl(fd.Get(), TUNSETIFF, &request) != 0) return errno;
      made->push_back(std::move(fd));
    }
    return 0;
  }

 private:
  std::string name_;
  int queues_;
};

// Messages to the kernel one after another on a netlink socket, each with its answer. Ends at the first refusal.
class ExchangeJob : public Job {
 public:
  ExchangeJob(int fd, std::vector<std::vector<uint8_t>> requests) : fd_(fcntl(fd, F_DUPFD_CLOEXEC, 3)), requests_(std::move(requests)) {
    if (!fd_.Valid()) error_ = -errno;
  }

  void Run() override {
    // The kernel answers at once or never: a lost answer must not hold the thread.
    const timeval limit{kAnswerLimitSeconds, 0};
    if (error_ == 0 && setsockopt(fd_.Get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0) error_ = -errno;
    for (const auto& request : requests_) {
      if (error_ != 0) break;
      std::vector<uint8_t> answer;
      error_ = Exchange(request, &answer);
      if (error_ == 0) answers_.push_back(std::move(answer));
    }
    fd_.Reset(-1);
  }

  napi_value Result(napi_env env) override {
    napi_value result = nullptr;
    napi_value answers = nullptr;
    if (napi_create_object(env, &result) != napi_ok || napi_create_array_with_length(env, answers_.size(), &answers) != napi_ok)
      return nullptr;
    for (uint32_t i = 0; i < answers_.size(); i++) {
      const napi_value answer = BytesOf(env, answers_[i].data(), answers_[i].size());
      if (answer == nullptr || napi_set_element(env, answers, i, answer) != napi_ok) return nullptr;
    }
    const napi_value refusal = BytesOf(env, refusal_.data(), refusal_.size());
    const napi_value error = NumberOf(env, error_);
    if (refusal == nullptr || error == nullptr || napi_set_named_property(env, result, "error", error) != napi_ok ||
        napi_set_named_property(env, result, "refusal", refusal) != napi_ok ||
        napi_set_named_property(env, result, "answers", answers) != napi_ok)
      return nullptr;
    return result;
  }

 private:
  static constexpr int kAnswerLimitSeconds = 5;
  static constexpr size_t kPartBytes = 64 * 1024;
  static constexpr size_t kAnswerBytesMax = 16 * 1024 * 1024;

  // Sends one request and collects its answer's messages, headers included. Answers 0 or a negative errno.
  int Exchange(const std::vector<uint8_t>& request, std::vector<uint8_t>* answer) {
    const auto* asked = reinterpret_cast<const nlmsghdr*>(request.data());
    sockaddr_nl kernel{};
    kernel.nl_family = AF_NETLINK;
    ssize_t sent;
    do {
      sent = sendto(fd_.Get(), request.data(), request.size(), 0, reinterpret_cast<sockaddr*>(&kernel), sizeof(kernel));
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) return -errno;
    part_.resize(kPartBytes);
    for (;;) {
      ssize_t length;
      do {
        length = recv(fd_.Get(), part_.data(), part_.size(), MSG_TRUNC);
      } while (length < 0 && errno == EINTR);
      if (length < 0) return errno == EAGAIN ? -ETIMEDOUT : -errno;
      if (static_cast<size_t>(length) > part_.size() || answer->size() + static_cast<size_t>(length) > kAnswerBytesMax) return -EMSGSIZE;
      const int end = Take(*asked, static_cast<size_t>(length), answer);
      if (end != kMore) return end;
    }
  }

  static constexpr int kMore = 1;

  // Takes one part of an answer; 0 or a negative errno when the answer is complete.
  int Take(const nlmsghdr& asked, size_t length, std::vector<uint8_t>* answer) {
    int left = static_cast<int>(length);
    for (auto* message = reinterpret_cast<nlmsghdr*>(part_.data()); NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
      if (message->nlmsg_seq != asked.nlmsg_seq) continue;
      // A table that changed while it was read: half of the old and half of the new.
      if ((message->nlmsg_flags & NLM_F_DUMP_INTR) != 0) interrupted_ = true;
      const auto* bytes = reinterpret_cast<const uint8_t*>(message);
      if (message->nlmsg_type == NLMSG_DONE) {
        int status = 0;
        if (message->nlmsg_len >= NLMSG_LENGTH(sizeof(int))) std::memcpy(&status, NLMSG_DATA(message), sizeof(status));
        return std::exchange(interrupted_, false) && status == 0 ? -EINTR : status;
      }
      if (message->nlmsg_type == NLMSG_ERROR) {
        int status = -EBADMSG;
        if (message->nlmsg_len >= NLMSG_LENGTH(sizeof(int))) std::memcpy(&status, NLMSG_DATA(message), sizeof(status));
        if (status != 0) refusal_.assign(bytes, bytes + message->nlmsg_len);
        return status;
      }
      answer->insert(answer->end(), bytes, bytes + message->nlmsg_len);
      answer->resize(NLMSG_ALIGN(answer->size()));
    }
    return kMore;
  }

  Fd fd_;
  std::vector<std::vector<uint8_t>> requests_;
  std::vector<std::vector<uint8_t>> answers_;
  std::vector<uint8_t> part_;
  std::vector<uint8_t> refusal_;
  int error_ = 0;
  bool interrupted_ = false;
};

// netnsNetlink(ns, groups) -> promise of [descriptor] or -errno. With groups (RTMGRP_*) the socket is non-blocking and hears announcements.
Napi::Value NetnsNetlink(const Napi::CallbackInfo& info) {
  return JobsOf(info)->Start(std::make_unique<NetlinkVisit>(IntAt(info, 0), info[1].As<Napi::Number>().Uint32Value()));
}

// netnsTap(ns, name, queues) -> promise of [descriptor of each queue] or -errno; -EBUSY when there is an interface of that name.
Napi::Value NetnsTap(const Napi::CallbackInfo& info) {
  return JobsOf(info)->Start(std::make_unique<TapVisit>(IntAt(info, 0), StringAt(info, 1), IntAt(info, 2)));
}

// netlinkExchange(fd, [message...]) -> promise of {error, refusal, answers}: `error` is 0 or the negative errno of the first refused
// message, `refusal` that message's NLMSG_ERROR, `answers` the messages before it. Each message has a whole nlmsghdr and a sequence number
// of its own.
Napi::Value NetlinkExchange(const Napi::CallbackInfo& info) {
  const auto list = info[1].As<Napi::Array>();
  std::vector<std::vector<uint8_t>> requests;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const auto bytes = list.Get(i).As<Napi::Uint8Array>();
    requests.emplace_back(bytes.Data(), bytes.Data() + bytes.ByteLength());
  }
  return JobsOf(info)->Start(std::make_unique<ExchangeJob>(IntAt(info, 0), std::move(requests)));
}

}  // namespace

void InitNetns(Napi::Env env, Napi::Object exports, Jobs* jobs) {
  exports.Set("netnsNetlink", Napi::Function::New(env, NetnsNetlink, "netnsNetlink", jobs));
  exports.Set("netnsTap", Napi::Function::New(env, NetnsTap, "netnsTap", jobs));
  exports.Set("netlinkExchange", Napi::Function::New(env, NetlinkExchange, "netlinkExchange", jobs));
}

}  // namespace snp
