// SPDX-License-Identifier: Apache-2.0
// Random walks of a SequenceTable against a model that keeps, for every sequence, which token of whom it has,
// and for every group which of them it still keeps: a set of tokens, by the rules as the header tells them.
// After every step the table audits itself, every kept token must lie in its page, and what plans refuse must
// be short by the model's own count.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "unit/table_fixture.h"

namespace tq {
namespace {

struct Model {
  int32_t slot;
  std::vector<int64_t> tokens;          // unique numbers
  std::vector<std::vector<bool>> kept;  // [group][token]

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  bool all_kept(size_t group, int64_t first, int64_t end) const {
    for (int64_t i = std::max<int64_t>(first, 0); i < end; i++)
      if (!kept[group][static_cast<size_t>(i)]) return false;
    return true;
  }
};

class Walk {
 public:
  Walk(const Geometry& geometry, uint32_t seed) : t_(geometry), random_(seed) {
    content_.resize(static_cast<size_t>(geometry.num_groups));
    shown_.resize(content_.size());
  }

  void step() {
    const int choice = pick(10);
    if (choice == 0)
      create();
    else if (choice == 1)
      fork();
    else if (choice == 2)
      free_one();
    else if (choice == 3)
      truncate();
    else
      plan(choice == 4);
    ASSERT_STREQ(t_->audit(), "");
    compare();
  }

 private:
  using Pages = std::set<int32_t>;

  int pick(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  std::map<int64_t, Model>::iterator any() {
    return std::next(live_.begin(), pick(static_cast<int>(live_.size())));
  }
  int num_groups() const { return t_.geometry.num_groups; }
  const PageGroup& group(int g) const { return t_.geometry.groups[g]; }
  bool strict(int g) const { return g != t_.geometry.raw_group && group(g).window != kAllTokens; }

  // What a sequence keeps in a group when a plan with these queries has brought it to its length.
  // Codes of new tokens are kept, whatever the queries are: append writes them all.
  void forget(Model& model, int64_t plan_queries, int64_t new_tokens) const {
    for (int g = 0; g < num_groups(); g++) {
      const PageGroup& rule = group(g);
      const int64_t queries = rule.exact ? plan_queries : std::max(plan_queries, new_tokens);
      if (rule.window == kAllTokens) continue;
      const int64_t tail = rule.window == 0 ? 0 : rule.window + std::max(queries - 1, rule.rollback);
      for (int64_t i = rule.sink_tokens; i < model.length() - tail; i++)
        model.kept[static_cast<size_t>(g)][static_cast<size_t>(i)] = false;
    }
  }
  // Entries of the row that hold kept tokens.
  static std::set<int64_t> held(const Model& model, int g) {
    std::set<int64_t> entries;
    for (size_t i = 0; i < model.tokens.size(); i++)
      if (model.kept[static_cast<size_t>(g)][i]) entries.insert(static_cast<int64_t>(i) / 32);
    return entries;
  }
  Pages held_pages(int g) {
    Pages pages;
    for (const auto& entry : live_)
      for (const int64_t i : held(entry.second, g)) pages.insert(t_.pages(g).pages(entry.second.slot)[i]);
    return pages;
  }

  void create() {
    if (static_cast<int32_t>(live_.size()) == t_.geometry.max_sequences) {
      EXPECT_EQ(status_of([&] { t_->prepare_slot(); }), Status::kCapacity);
      return;
    }
    Model model = {t_->prepare_slot(), {}, {}};
    model.kept.resize(static_cast<size_t>(num_groups()));
    live_[t_->commit_create()] = model;
  }
  void fork() {
    if (live_.empty() || static_cast<int32_t>(live_.size()) == t_.geometry.max_sequences) return;
    Model model = any()->second;
    const int32_t source = model.slot;
    model.slot = t_->prepare_slot();
    forget(model, 0, 0);
    live_[t_->commit_fork(source)] = model;
  }
  void free_one() {
    if (live_.empty()) return;
    auto it = any();
    dead_.push_back(it->first);
    check_exclusive(it->second, 0);
    t_->commit_free(it->second.slot);
    live_.erase(it);
  }
  void truncate() {
    if (live_.empty()) return;
    Model& model = any()->second;
    const int64_t length = pick(2) ? pick(static_cast<int>(model.length()) + 1)
                                   : std::max<int64_t>(0, model.length() - pick(50));
    bool lost = false;
    for (int g = 0; g < num_groups(); g++)
      lost |= strict(g) && !model.all_kept(static_cast<size_t>(g), length - group(g).window + 1, length);
    ASSERT_EQ(status_of([&] { t_->check_truncate(model.slot, length); }),
              lost ? Status::kInvalidState : Status::kOk)
        << model.length() << " to " << length;
    if (lost) return;
    check_exclusive(model, length);
    t_->commit_truncate(model.slot, length);
    shorten(model, length);
  }
  static void shorten(Model& model, int64_t length) {
    model.tokens.resize(static_cast<size_t>(length));
    for (std::vector<bool>& kept : model.kept) kept.resize(static_cast<size_t>(length));
  }
  // Exclusive pages are those that nobody holds when the sequence is shorter.
  void check_exclusive(Model& model, int64_t length) {
    for (int g = 0; g < num_groups(); g++) {
      int64_t count;
      const int32_t* pages = t_.pages(g).exclusive_pages(model.slot, length, &count);
      const Pages exclusive(pages, pages + count), before = held_pages(g);
      const Model whole = model;
      shorten(model, length);
      Pages gone;
      const Pages after = held_pages(g);
      std::set_difference(before.begin(), before.end(), after.begin(), after.end(),
                          std::inserter(gone, gone.end()));
      model = whole;
      EXPECT_EQ(exclusive, gone);
    }
  }

  // ---- plans ----

  struct Step {
    std::vector<Growth> growth;  // planned, then leaving
    std::vector<Model*> models;  // of the same entries
    std::vector<Model> after;    // without the new tokens' numbers
    size_t planned;
    Status expected;
  };

  Step choose() {
    Step s = {};
    s.expected = Status::kOk;
    for (auto& entry : live_) {
      if (pick(3) == 0) continue;
      static const int kSizes[] = {0, 1, 1, 2, 31, 32, 33, 63, 64, 65, 7, 100};
      const int64_t news = kSizes[pick(12)], length = entry.second.length() + news;
      s.growth.push_back(
          Growth{entry.second.slot, news, pick(2) ? news : pick(static_cast<int>(length) + 1)});
      s.models.push_back(&entry.second);
    }
    s.planned = s.growth.size();
    for (auto& entry : live_)
      if (pick(4) == 0 && std::find(s.models.begin(), s.models.end(), &entry.second) == s.models.end()) {
        s.growth.push_back(Growth{entry.second.slot, 0, 0});
        s.models.push_back(&entry.second);
      }
    return s;
  }
  // The state after the step, and what must become of it.
  void foresee(Step& s) {
    for (size_t i = 0; i < s.growth.size(); i++) {
      const Growth& growth = s.growth[i];
      Model after = *s.models[i];
      const int64_t length = after.length() + growth.new_tokens;
      if (length > kLongestSequence && s.expected == Status::kOk) s.expected = Status::kCapacity;
      for (int g = 0; g < num_groups(); g++)
        if (s.expected == Status::kOk && strict(g) && growth.query_tokens > 0 &&
            !after.all_kept(static_cast<size_t>(g), length - growth.query_tokens - group(g).window + 1,
                            after.length()))
          s.expected = Status::kInvalidState;
      after.tokens.resize(static_cast<size_t>(length), -1);
      for (std::vector<bool>& kept : after.kept) kept.resize(static_cast<size_t>(length), true);
      forget(after, growth.query_tokens, growth.new_tokens);
      s.after.push_back(after);
    }
    for (int g = 0; g < num_groups() && s.expected == Status::kOk; g++)
      if (!fits(s, g)) s.expected = Status::kCapacity;
  }
  // Pages that nobody holds before go to copies; those that nobody holds after as well, to new tokens.
  bool fits(const Step& s, int g) {
    std::map<int32_t, int> holders;
    int64_t taken = 0, copies = 0;
    for (const auto& entry : live_) {
      const size_t i =
          static_cast<size_t>(std::find(s.models.begin(), s.models.end(), &entry.second) - s.models.begin());
      const std::set<int64_t> before = held(entry.second, g);
      for (const int64_t page : i < s.after.size() ? held(s.after[i], g) : before)
        if (before.count(page))
          holders[t_.pages(g).pages(entry.second.slot)[page]]++;
        else
          taken++;
    }
    const int64_t used = static_cast<int64_t>(holders.size());
    for (size_t i = 0; i < s.planned; i++) {
      const int64_t tail = s.models[i]->length() / 32;
      if (s.growth[i].new_tokens == 0 || s.models[i]->length() % 32 == 0 ||
          !held(*s.models[i], g).count(tail) || !held(s.after[i], g).count(tail))
        continue;
      int& count = holders[t_.pages(g).pages(s.models[i]->slot)[tail]];
      if (count == 1) continue;
      count--;
      copies++;
    }
    return copies <= group(g).num_pages - static_cast<int64_t>(held_pages(g).size()) &&
           used + taken + copies <= group(g).num_pages;
  }

  void plan(bool cancel) {
    Step s = choose();
    foresee(s);
    std::vector<Pages> before;
    std::vector<std::vector<std::vector<int32_t>>> rows;
    for (int g = 0; g < num_groups(); g++) {
      before.push_back(held_pages(g));
      rows.push_back(held_rows(g));
    }
    const Status status = status_of([&] { prepare(t_, s.growth, s.planned); });
    ASSERT_EQ(status, s.expected);
    if (status != Status::kOk || cancel) {
      if (status == Status::kOk) t_->cancel_growth();
      for (int g = 0; g < num_groups(); g++) EXPECT_EQ(rows[static_cast<size_t>(g)], held_rows(g));
      return;
    }
    for (int g = 0; g < num_groups(); g++) follow(s, g, before[static_cast<size_t>(g)]);
    t_->commit_growth();
    for (size_t i = 0; i < s.growth.size(); i++) {
      const int64_t first = s.models[i]->length();
      *s.models[i] = s.after[i];
      for (int64_t j = first; j < s.after[i].length(); j++) append(*s.models[i], j);
    }
    for (int g = 0; g < num_groups(); g++) check_uncleared(g, before[static_cast<size_t>(g)]);
  }
  std::vector<std::vector<int32_t>> held_rows(int g) {
    std::vector<std::vector<int32_t>> rows;
    for (const auto& entry : live_) {
      rows.emplace_back();
      for (const int64_t i : held(entry.second, g))
        rows.back().push_back(t_.pages(g).pages(entry.second.slot)[i]);
    }
    return rows;
  }
  // What a device does with the prepared plan: copies pages, and takes over the changed part of each row.
  void follow(const Step& s, int g, const Pages& before) {
    PageTable& pages = t_.pages(g);
    std::map<int32_t, std::map<int64_t, int64_t>>& content = content_[static_cast<size_t>(g)];
    for (int64_t i = 0; i < pages.num_copies(); i++) {
      EXPECT_FALSE(before.count(pages.copies()[i].target)) << "a page that the plan in force may need";
      content[pages.copies()[i].target] = content[pages.copies()[i].source];
    }
    for (size_t i = 0; i < s.planned; i++) {
      const int32_t slot = s.growth[i].slot;
      std::vector<int32_t>& shown = shown_[static_cast<size_t>(g)][slot];
      const int64_t changed = pages.map().first_changed[i];
      shown.resize(static_cast<size_t>((s.after[i].length() + 31) / 32), -1);
      std::copy(pages.pages(slot) + changed, pages.pages(slot) + shown.size(), shown.begin() + changed);
      for (const int64_t entry : held(s.after[i], g))
        EXPECT_EQ(shown[static_cast<size_t>(entry)], pages.pages(slot)[entry]);
      for (const int32_t id : shown) EXPECT_TRUE(id >= 0 && id < group(g).num_pages);
    }
  }
  void check_uncleared(int g, const Pages& before) {
    const Pages after = held_pages(g);
    Pages gone;
    std::set_difference(before.begin(), before.end(), after.begin(), after.end(),
                        std::inserter(gone, gone.end()));
    int64_t count;
    const int32_t* pages = t_.pages(g).uncleared(&count);
    for (int64_t i = 0; i < count; i++) EXPECT_EQ(gone.count(pages[i]), 1u);
    EXPECT_EQ(static_cast<size_t>(count), gone.size());
  }

  // Writes one token where a backend would.
  void append(Model& model, int64_t index) {
    const int64_t number = next_number_++;
    model.tokens[static_cast<size_t>(index)] = number;
    for (int g = 0; g < num_groups(); g++)
      if (held(model, g).count(index / 32))
        content_[static_cast<size_t>(g)][t_.pages(g).pages(model.slot)[index / 32]][index % 32] = number;
  }

  void compare() {
    EXPECT_EQ(t_->num_sequences(), static_cast<int32_t>(live_.size()));
    for (const int64_t id : dead_)
      EXPECT_EQ(status_of([&] { t_->find(id, "id"); }), Status::kInvalidArgument);
    for (auto& entry : live_) {
      const Model& model = entry.second;
      ASSERT_EQ(t_->find(entry.first, "id"), model.slot);
      ASSERT_EQ(t_->length(model.slot), model.length());
      for (int g = 0; g < num_groups(); g++) {
        const std::vector<bool>& kept = model.kept[static_cast<size_t>(g)];
        const KeptTokens said = t_.pages(g).kept(model.slot);
        for (int64_t i = 0; i < model.length(); i++) {
          ASSERT_EQ(i < said.sink_end || i >= said.first, kept[static_cast<size_t>(i)]) << i;
          if (!kept[static_cast<size_t>(i)]) continue;
          ASSERT_EQ(content_[static_cast<size_t>(g)][t_.pages(g).pages(model.slot)[i / 32]][i % 32],
                    model.tokens[static_cast<size_t>(i)]);
        }
        EXPECT_EQ(t_.pages(g).pages_used(), static_cast<int64_t>(held_pages(g).size()));
        if (g != t_.geometry.raw_group) continue;
        EXPECT_EQ(t_->window_is_short(model.slot),
                  !model.all_kept(static_cast<size_t>(g), model.length() - group(g).window, model.length()));
      }
    }
  }

  Table t_;
  std::mt19937 random_;
  std::map<int64_t, Model> live_;
  std::vector<int64_t> dead_;
  std::vector<std::map<int32_t, std::map<int64_t, int64_t>>> content_;  // [group] page -> place -> number
  std::vector<std::map<int32_t, std::vector<int32_t>>> shown_;          // [group] slot -> a device's row
  int64_t next_number_ = 1;
};

TEST(PageTable, RandomWalksAgreeWithTheModel) {
  uint32_t walk = 0;
  for (const int32_t window : {0, 1, 5, 40})
    for (const int32_t rollback : {0, 3, 40})
      for (const int32_t sinks : {0, 4, 33})
        for (uint32_t seed = 0; seed < 3; seed++, walk++) {
          SCOPED_TRACE("window " + std::to_string(window) + ", rollback " + std::to_string(rollback) +
                       ", sinks " + std::to_string(sinks) + ", seed " + std::to_string(seed));
          const int64_t pages = 8 + static_cast<int64_t>(seed) * 6;
          Geometry g = one_group(pages);
          if (window > 0 && seed > 0) g = with_sliding(g, (seed == 1 ? 2 : 1) * window, rollback, pages - 1);
          if (window + sinks > 0) g = with_exact(g, window, rollback, sinks, pages - 2);
          Walk w(g, walk);
          for (int i = 0; i < 250; i++) {
            w.step();
            if (::testing::Test::HasFailure()) return;
          }
        }
}

}  // namespace
}  // namespace tq
