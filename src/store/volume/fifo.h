// SPDX-License-Identifier: GPL-2.0-only
// Fifo: a queue of items that have their own link.
#pragma once

namespace netblk::store::volume {

// link: where an item keeps the next one.
template <class T, T*& (*link)(T&)>
class Fifo {
 public:
  bool empty() const { return first_ == nullptr; }
  T& front() const { return *first_; }

  void push(T& item) {
    link(item) = nullptr;
    (first_ == nullptr ? first_ : link(*last_)) = &item;
    last_ = &item;
  }
  T& pop() {
    T& item = *first_;
    first_ = link(item);
    return item;
  }
  void append(Fifo& other) {
    if (other.empty()) return;
    (first_ == nullptr ? first_ : link(*last_)) = other.first_;
    last_ = other.last_;
    other.first_ = nullptr;
  }

 private:
  T* first_ = nullptr;
  T* last_ = nullptr;
};

}  // namespace netblk::store::volume
