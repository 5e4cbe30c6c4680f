#include "comm/operations.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <deque>
#include <set>
#include <sstream>

namespace dfm::comm {
namespace {

std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\t' || c == '\r'; }, ' ');
  return text;
}

std::vector<int> parse_ranks(const std::string& text) {
  std::vector<int> ranks;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    int rank = 0;
    const std::size_t first = std::min(part.find_first_not_of(' '), part.size());
    if (std::from_chars(part.data() + first, part.data() + part.size(), rank).ec == std::errc()) ranks.push_back(rank);
  }
  return ranks;
}

std::uint64_t parse_number(const std::string& text) {
  std::uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

std::vector<std::string> split_tabs(const std::string& line) {
  std::vector<std::string> fields;
  for (std::size_t at = 0; at <= line.size();) {
    const std::size_t end = std::min(line.find('\t', at), line.size());
    fields.push_back(line.substr(at, end - at));
    at = end + 1;
  }
  return fields;
}

std::string waited(double seconds) {
  return seconds < 100 ? fmt::format("{:.0f} s", seconds) : fmt::format("{:.0f} min", seconds / 60);
}

// Those that have not begun the operation. For an exchange nothing is known but whom it is with.
std::vector<int> missing_from(const OperationInfo& operation, const std::vector<std::optional<RankState>>& states) {
  if (!operation.peers.empty()) return operation.peers;
  std::vector<int> missing;
  for (const int rank : operation.ranks) {
    const auto at = static_cast<std::size_t>(rank);
    if (at >= states.size() || !states[at]) continue;
    const auto found = states[at]->begun.find(operation.group_key());
    if (found == states[at]->begun.end() || found->second < operation.number) missing.push_back(rank);
  }
  return missing;
}

}  // namespace

std::string list_ranks(const std::vector<int>& ranks) { return fmt::format("{}", fmt::join(ranks, ", ")); }

std::string name_ranks(const std::vector<int>& ranks) {
  return (ranks.size() == 1 ? "rank " : "ranks ") + list_ranks(ranks);
}

std::string OperationInfo::group_key() const { return group + "/" + list_ranks(ranks); }

std::string OperationInfo::describe() const {
  std::string text = fmt::format("{} number {} of group {} ({})", kind, number, group, name_ranks(ranks));
  if (!peers.empty()) text += " with " + name_ranks(peers);
  return text;
}

std::string RankState::to_text() const {
  std::string text = "P\t" + one_line(place) + "\n";
  for (const auto& [key, number] : begun) text += fmt::format("B\t{}\t{}\n", key, number);
  if (oldest) {
    text += fmt::format("O\t{}\t{}\t{}\t{}\t{}\t{:.1f}\n", oldest->group, list_ranks(oldest->ranks), oldest->number,
                        oldest->kind, list_ranks(oldest->peers), oldest->seconds);
  }
  return text;
}

RankState RankState::from_text(const std::string& text) {
  RankState state;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    const std::vector<std::string> fields = split_tabs(line);
    if (fields[0] == "P" && fields.size() == 2) state.place = fields[1];
    if (fields[0] == "B" && fields.size() == 3) state.begun[fields[1]] = parse_number(fields[2]);
    if (fields[0] == "O" && fields.size() == 7) {
      state.oldest = OperationInfo{fields[1], parse_ranks(fields[2]), parse_number(fields[3]),
                                   fields[4], parse_ranks(fields[5]), static_cast<double>(parse_number(fields[6]))};
    }
  }
  return state;
}

std::uint64_t Operations::open(OperationInfo info) {
  const std::lock_guard lock(mutex_);
  const std::string key = info.group_key();
  info.number = info.peers.empty() ? ++begun_[key] : ++exchanges_[key];
  open_.emplace(next_, Open{std::move(info), Clock::now(), nullptr});
  return next_++;
}

std::uint64_t Operations::begin(const Group& group, const char* kind, const std::vector<int>& peers) {
  OperationInfo info;
  info.group = group.name();
  info.ranks = group.ranks();
  info.kind = kind;
  for (const int peer : peers) info.peers.push_back(group.ranks()[static_cast<std::size_t>(peer)]);
  return open(std::move(info));
}

std::uint64_t Operations::begin(const std::string& name, const std::vector<int>& ranks, const char* kind) {
  OperationInfo info;
  info.group = name;
  info.ranks = ranks;
  info.kind = kind;
  return open(std::move(info));
}

void Operations::end(std::uint64_t operation) {
  const std::lock_guard lock(mutex_);
  open_.erase(operation);
}

void Operations::end_when(std::uint64_t operation, std::function<bool()> is_done) {
  const std::lock_guard lock(mutex_);
  const auto found = open_.find(operation);
  if (found != open_.end()) found->second.is_done = std::move(is_done);
}

void Operations::set_place(const std::string& place) {
  const std::lock_guard lock(mutex_);
  place_ = place;
}

void Operations::ask_asynchronous() {
  // Without the lock: an answer may take long, and training must not wait for it.
  std::vector<std::pair<std::uint64_t, std::function<bool()>>> questions;
  {
    const std::lock_guard lock(mutex_);
    for (auto& [id, open] : open_) {
      if (open.is_done) questions.emplace_back(id, open.is_done);
    }
  }
  for (const auto& [id, is_done] : questions) {
    if (is_done()) end(id);
  }
}

void Operations::forgive(std::chrono::duration<double> pause) {
  const std::lock_guard lock(mutex_);
  for (auto& [id, open] : open_) {
    open.since = std::min(Clock::now(), open.since + std::chrono::duration_cast<Clock::duration>(pause));
  }
}

RankState Operations::state() const {
  const std::lock_guard lock(mutex_);
  RankState state;
  state.place = place_;
  state.begun = begun_;
  if (!open_.empty()) {
    const auto oldest = std::min_element(open_.begin(), open_.end(),
                                         [](const auto& a, const auto& b) { return a.second.since < b.second.since; });
    state.oldest = oldest->second.info;
    state.oldest->seconds = std::chrono::duration<double>(Clock::now() - oldest->second.since).count();
  }
  return state;
}

namespace {

// "which is at operation 40 (iteration 3, reading data), in all_gather number 7 of group tensor (ranks 0, 1)"
std::string whereabouts(int rank, const OperationInfo& operation, const std::vector<std::optional<RankState>>& states,
                        const std::vector<bool>& is_silent) {
  const auto at = static_cast<std::size_t>(rank);
  if (at >= states.size() || !states[at]) return "of which nothing is known";
  const RankState& state = *states[at];
  std::string text = is_silent[at] ? "which does not respond and was last " : "which is ";
  if (operation.peers.empty()) {
    const auto found = state.begun.find(operation.group_key());
    text += fmt::format("at operation {} ", found == state.begun.end() ? 0 : found->second);
  }
  text += fmt::format("({})", state.place);
  if (state.oldest && state.oldest->group_key() != operation.group_key()) text += ", in " + state.oldest->describe();
  return text;
}

}  // namespace

std::string describe_stuck(const OperationInfo& operation, const std::vector<std::optional<RankState>>& states,
                           const std::vector<bool>& is_silent) {
  constexpr std::size_t kMostNamed = 4;  // a line must stay readable
  std::vector<int> missing = missing_from(operation, states);
  std::string text = fmt::format("{}: waited {} for ", operation.describe(), waited(operation.seconds));
  if (missing.empty()) {
    // All have begun it: one of them has stopped within, or the link between them.
    text += "its end, which all of its ranks have begun";
    for (const int rank : operation.ranks) {
      const auto at = static_cast<std::size_t>(rank);
      if (is_silent[at] && states[at]) text += fmt::format("; rank {} does not respond ({})", rank, states[at]->place);
    }
    return text;
  }
  text += name_ranks(missing);
  if (missing.size() == 1) text += ", " + whereabouts(missing[0], operation, states, is_silent);
  // Whom those wait for in turn, until a rank that waits for nobody: there the cause is.
  std::set<int> named(missing.begin(), missing.end());
  std::deque<int> queue;
  for (std::size_t i = 0; i < missing.size() && i < kMostNamed; ++i) {
    if (missing.size() > 1) {
      text += fmt::format("; rank {}, {}", missing[i], whereabouts(missing[i], operation, states, is_silent));
    }
    queue.push_back(missing[i]);
  }
  while (!queue.empty() && named.size() < 2 * kMostNamed) {
    const auto at = static_cast<std::size_t>(queue.front());
    queue.pop_front();
    if (at >= states.size() || !states[at] || !states[at]->oldest) continue;
    const OperationInfo& other = *states[at]->oldest;
    for (const int rank : missing_from(other, states)) {
      if (!named.insert(rank).second) continue;
      text += fmt::format("; rank {} waits for rank {}, {}", at, rank, whereabouts(rank, other, states, is_silent));
      queue.push_back(rank);
    }
  }
  return text;
}

}  // namespace dfm::comm
