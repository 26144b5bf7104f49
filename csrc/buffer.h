// Uninitialised memory that is kept and grows, in huge pages where the system has them.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <new>

namespace depthg {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free(data_); }

  // Room for `size` values, which are not kept when the buffer grows.
  T* reserve(int64_t size) {
    if (size > size_) {
      release();
      const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
      const int64_t alignment = bytes >= kHuge ? kHuge : 64;
      void* memory = nullptr;
      if (posix_memalign(&memory, alignment, (bytes + 63) / 64 * 64)) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
      if (bytes >= kHuge) madvise(memory, bytes / kHuge * kHuge, MADV_HUGEPAGE);
#endif
      data_ = static_cast<T*>(memory);
      size_ = size;
    }
    return data_;
  }
  void release() {
    free(data_);
    data_ = nullptr;
    size_ = 0;
  }
  void swap(Buffer& other) {
    T* const data = data_;
    const int64_t size = size_;
    data_ = other.data_, size_ = other.size_;
    other.data_ = data, other.size_ = size;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  static constexpr int64_t kHuge = 1 << 21;
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace depthg
