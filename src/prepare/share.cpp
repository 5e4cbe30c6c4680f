#include "prepare/share.h"

#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <span>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/data/ordered_work.h"
#include "dfm/data/plan.h"

namespace dfm::prepare {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");
using Numbers = std::vector<std::uint64_t>;

void write_numbers(const RunState& state, const std::string& name, const Numbers& numbers) {
  state.write(name, as_text(std::as_bytes(std::span(numbers))));
}

Numbers read_numbers(const RunState& state, const std::string& name) {
  const std::string bytes = state.read(name);
  Numbers numbers(bytes.size() / sizeof(std::uint64_t));
  if (bytes.size() % sizeof(std::uint64_t) != 0) {
    throw DataError("{}: got {} bytes, want a multiple of {}", name, bytes.size(), sizeof(std::uint64_t));
  }
  if (!bytes.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

Numbers items_to_do(const RunState& state, std::size_t num_items) {
  const std::vector<char> is_done = state.done_items(num_items);
  Numbers items;
  for (std::uint64_t i = 0; i < num_items; ++i) {
    if (is_done[i] == 0) items.push_back(i);
  }
  return items;
}

// Pixels of items [first], [first + step] ... of the list.
Numbers measure(const data::Source& source, const data::LoadLimits& limits, std::int64_t num_threads,
                const Numbers& items, std::uint64_t first, std::uint64_t step) {
  const std::uint64_t count = items.size() > first ? (items.size() - first + step - 1) / step : 0;
  constexpr std::uint64_t kWindow = 256;
  data::OrderedWork<std::int64_t> work(0, count, kWindow);
  const data::WorkerThreads<std::int64_t> threads(
      num_threads, work, [&](std::uint64_t i) { return source.num_pixels(items[first + i * step], limits); });
  Numbers pixels;
  while (const std::optional<std::int64_t> size = work.next()) pixels.push_back(static_cast<std::uint64_t>(*size));
  return pixels;
}

}  // namespace

Share deal_items(const data::Source& source, const data::LoadLimits& limits, std::int64_t num_threads, RunState& state,
                 comm::World& world) {
  Share share;
  if (world.size() == 1) {
    share.items = items_to_do(state, source.size());
    share.first_number = state.next_number(0);
    return share;
  }
  const auto num_ranks = static_cast<std::size_t>(world.size());
  Numbers items;
  nlohmann::json from_first;
  if (world.is_first()) {
    std::random_device random;
    from_first["run"] = fmt::format("{}{:08x}{:08x}", kRunPrefix, random(), random());
    for (int rank = 0; rank < world.size(); ++rank) from_first["next"].push_back(state.next_number(rank));
    items = items_to_do(state, source.size());
    write_numbers(state, from_first["run"].get<std::string>() + "-items", items);
  }
  from_first = nlohmann::json::parse(world.gather_text(world.is_first() ? from_first.dump() : "").at(0));
  share.run_name = from_first.at("run");
  share.first_number = from_first.at("next").at(static_cast<std::size_t>(world.rank()));
  if (!world.is_first()) items = read_numbers(state, share.run_name + "-items");

  const auto sizes_name = [&](std::size_t rank) { return fmt::format("{}-sizes-{}", share.run_name, rank); };
  const auto rank = static_cast<std::size_t>(world.rank());
  write_numbers(state, sizes_name(rank), measure(source, limits, num_threads, items, rank, num_ranks));
  static_cast<void>(world.gather_text("measured"));
  std::vector<double> costs(items.size(), 1);
  for (std::size_t peer = 0; peer < num_ranks; ++peer) {
    const Numbers pixels = read_numbers(state, sizes_name(peer));
    for (std::size_t i = 0; i < pixels.size() && peer + i * num_ranks < items.size(); ++i) {
      costs[peer + i * num_ranks] += static_cast<double>(pixels[i]);
    }
  }
  const std::vector<std::vector<std::int64_t>> dealt = data::deal_by_cost(costs, world.size());
  for (const std::int64_t i : dealt[rank]) share.items.push_back(items[static_cast<std::size_t>(i)]);
  return share;
}

}  // namespace dfm::prepare
