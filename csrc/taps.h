// Taps of linear interpolation without aligned corners, as in torch.nn.functional.interpolate.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <vector>

#include "upsample_cpu.h"

namespace depthg {

class Axis {
 public:
  Axis(int64_t cells, int64_t pixels) : cell_(pixels), lower_(pixels + kSpare), upper_(pixels + kSpare) {
    const double scale = static_cast<double>(cells) / static_cast<double>(pixels);
    for (int64_t n = 0; n < pixels; ++n) {
      const double at = std::max((static_cast<double>(n) + 0.5) * scale - 0.5, 0.0);
      cell_[n] = std::min(static_cast<int64_t>(at), cells - 1);
      upper_[n] = static_cast<float>(at - static_cast<double>(cell_[n]));
      lower_[n] = 1.0f - upper_[n];
    }
  }
  Taps taps() const { return {cell_.data(), lower_.data(), upper_.data()}; }

 private:
  std::vector<int64_t> cell_;
  std::vector<float> lower_, upper_;
};

}  // namespace depthg
